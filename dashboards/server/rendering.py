"""How the pages are filled: the filters of all templates, and those that only pages have."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment

from dashboards.server.figure_files import FORMS, OF_A_RUN
from dashboards.templating import UNKNOWN, template_environment, utc
from energy import human

TEMPLATES = Path(__file__).with_name("templates")


def environment(base: str) -> Environment:
    """base: the prefix of every address."""
    found = template_environment(TEMPLATES)
    found.filters |= {
        "digits": lambda value: UNKNOWN if value is None else human.digits(value),
        "clock": lambda unix_s: utc(unix_s, "%H:%M:%S"),
        "path": lambda name: quote(str(name), safe="", errors="surrogateescape"),
    }
    found.globals |= {"base": base, "figures": OF_A_RUN, "figure_forms": [*FORMS]}
    return found
