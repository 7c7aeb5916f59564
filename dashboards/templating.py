"""How the templates of reports and pages are filled: HTML is escaped, and quantities are said in one way.

Light: no figure is loaded for it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from energy import human

UNKNOWN = "–"


def utc(unix_s: Any, form: str = "%Y-%m-%d %H:%M") -> str:
    """A moment in UTC; a dash where it is not known, or no moment at all: files hold what others wrote."""
    try:
        return UNKNOWN if unix_s is None else datetime.fromtimestamp(float(unix_s), UTC).strftime(form)
    except (ValueError, TypeError, OverflowError, OSError):
        return UNKNOWN


def day(unix_s: Any) -> str:
    return utc(unix_s, "%Y-%m-%d")


def template_environment(folder: Path, keep_trailing_newline: bool = False) -> Environment:
    """Of the templates in a folder (*.html.j2 and *.md.j2), with what they all say of quantities as filters."""
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=keep_trailing_newline,
    )
    environment.filters |= {
        "energy": human.human_energy,
        "carbon": human.human_carbon,
        "seconds": human.human_time,
        "percent": human.percent,
        "utc": utc,
        "day": day,
        "words": lambda name: str(name).replace("_", " "),
    }
    return environment
