"""How templates are filled: everything is escaped, and what is not known is a dash."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dashboards.server.parts import UNKNOWN
from energy import human

TEMPLATES = Path(__file__).with_name("templates")


def utc(unix_s: Any, form: str = "%Y-%m-%d %H:%M") -> str:
    try:
        return UNKNOWN if unix_s is None else datetime.fromtimestamp(float(unix_s), UTC).strftime(form)
    except (ValueError, TypeError, OverflowError, OSError):
        return UNKNOWN


def environment(base: str) -> Environment:
    found = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "energy": human.human_energy,
        "carbon": human.human_carbon,
        "seconds": human.human_time,
        "percent": human.percent,
        "digits": lambda value: UNKNOWN if value is None else human.digits(value),
        "utc": utc,
        "clock": lambda unix_s: utc(unix_s, "%H:%M:%S"),
        "words": lambda name: str(name).replace("_", " "),
        "path": lambda name: quote(str(name), safe="", errors="surrogateescape"),
    }
    found.globals |= {"base": base}
    return found
