"""The published JSON Schemas of what hoofprint writes: footprint-1.schema.json is that of footprint.json."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
RECORD_VERSION = 1
FAMILY = "hoofprint/footprint/"


@cache
def record_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a record."""
    return json.loads((FOLDER / f"footprint-{RECORD_VERSION}.schema.json").read_text(encoding="utf-8"))


def require_known(record: dict[str, Any]) -> None:
    """ValueError for what is no record, or one of a newer schema than this program knows."""
    name = record.get("schema")
    version = name.removeprefix(FAMILY) if isinstance(name, str) and name.startswith(FAMILY) else ""
    if not version.isdecimal():
        raise ValueError(f"not a record: its schema is {name!r}, expected {FAMILY}{RECORD_VERSION}")
    if int(version) > RECORD_VERSION:
        raise ValueError(
            f"the record has schema {name}, and this hoofprint reads up to {FAMILY}{RECORD_VERSION}: it was written by "
            "a newer version, take that one"
        )


def schema_faults(record: dict[str, Any]) -> list[str]:
    """Every place at which a record breaks its schema: 'energy.pue: ...'."""
    from jsonschema import Draft202012Validator

    faults = []
    for error in sorted(Draft202012Validator(record_schema()).iter_errors(record), key=lambda error: error.json_path):
        place = error.json_path.removeprefix("$").removeprefix(".") or "the record"
        text = error.message if len(error.message) <= 160 else f"{error.message[:157]}..."
        faults.append(f"{place}: {text}")
    return faults
