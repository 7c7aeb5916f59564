"""The factor tables: CSV files beside this module, each with a version and a hash of what it holds."""

from __future__ import annotations

import csv
import hashlib
from functools import lru_cache
from pathlib import Path

from energy.factors.model import Basis, Factor

FOLDER = Path(__file__).parent


def read_table(name: str) -> list[dict[str, str]]:
    """The rows of a factor table (file name without .csv) as text; an empty cell is an empty string."""
    with (FOLDER / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def number(text: str) -> float | None:
    """A cell as a number; an empty one is None, never zero."""
    return float(text) if text.strip() else None


def table_sha256(name: str) -> str:
    """SHA-256 of a table's text, whatever line ends the checkout gave it."""
    text = (FOLDER / f"{name}.csv").read_bytes().replace(b"\r\n", b"\n")
    return hashlib.sha256(text).hexdigest()


def table_versions() -> dict[str, dict[str, str]]:
    """{table: {version, sha256}} for a record: which tables its factors were taken from."""
    return {row["table"]: {"version": row["version"], "sha256": row["sha256"]} for row in read_table("versions")}


def factor_of(key: str, row: dict[str, str]) -> Factor:
    """A row of a table with the columns value, unit, year, geography, basis, source and note."""
    return Factor(
        key=key,
        value=number(row["value"]),
        unit=row["unit"],
        source=row["source"],
        year=int(row["year"]) if row["year"] else None,
        geography=row["geography"] or None,
        basis=Basis.parse(row["basis"]),
        note=row["note"],
    )


@lru_cache(maxsize=1)
def pue() -> dict[str, Factor]:
    """Power usage effectiveness (facility energy over IT energy) by name: published fleets and surveys."""
    return {row["name"]: factor_of("pue", row) for row in read_table("pue")}


@lru_cache(maxsize=1)
def wue() -> dict[str, Factor]:
    """On-site water usage effectiveness, litres per IT kWh, by name."""
    return {row["name"]: factor_of("wue_l_per_kwh", row) for row in read_table("wue")}


@lru_cache(maxsize=1)
def presets() -> dict[str, dict[str, Factor]]:
    """{preset: {key: factor}}: named sets of assumptions, such as the LLaMA paper's."""
    found: dict[str, dict[str, Factor]] = {}
    for row in read_table("presets"):
        found.setdefault(row["preset"], {})[row["key"]] = factor_of(row["key"], row)
    return found
