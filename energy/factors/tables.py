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
    path = FOLDER / f"{name}.csv"
    about = path.stat()
    return _sha256(path, about.st_mtime_ns, about.st_size)


@lru_cache(maxsize=128)
def _sha256(path: Path, _mtime_ns: int, _size: int) -> str:
    """Of a file as it was changed last: a record is computed often, and no table is hashed twice for that."""
    return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()


def table_versions() -> dict[str, dict[str, str]]:
    """{table: {version, sha256}} as `versions.csv` has them: what the tables ought to be."""
    return {row["table"]: {"version": row["version"], "sha256": row["sha256"]} for row in read_table("versions")}


def tables_now() -> dict[str, dict[str, str]]:
    """{table: {version, sha256}} for a record, of the tables as they stand: whoever alters one leaves its hash."""
    found = {name: about for name, about in table_versions().items() if (FOLDER / f"{name}.csv").exists()}
    return {name: about | {"sha256": table_sha256(name)} for name, about in found.items()}


def stale_versions() -> list[str]:
    """Tables whose file differs from what `versions.csv` says of it: changed, not listed, or listed and gone."""
    listed = table_versions()
    there = {path.stem for path in FOLDER.glob("*.csv")} - {"versions"}
    changed = {name for name in there & set(listed) if listed[name]["sha256"] != table_sha256(name)}
    return sorted(changed | (there ^ set(listed)))


def write_versions() -> list[str]:
    """Brings `versions.csv` up to date and returns the names of the tables that were stale.

    A changed table goes up by one version, a new one starts at 1. `python -m energy.factors` calls it.
    """
    listed, stale = table_versions(), stale_versions()
    lines = ["table,version,sha256"]
    for name in sorted({path.stem for path in FOLDER.glob("*.csv")} - {"versions"}):
        version = int(listed[name]["version"]) + (name in stale) if name in listed else 1
        lines.append(f"{name},{version},{table_sha256(name)}")
    (FOLDER / "versions.csv").write_bytes(("\n".join(lines) + "\n").encode())
    return stale


def factor_of(key: str, row: dict[str, str]) -> Factor:
    """A row of a table with the columns value, unit, year, geography, basis, source and note.

    A table may have the columns low and high: the range that the source gives, and the note then says of what. The note
    begins with the row's name, if it has one, and ends with what the figure was checked against.
    """
    checked = f"checked against {row['checked']}" if row.get("checked") else ""
    return Factor(
        key=key,
        value=number(row["value"]),
        low=number(row.get("low", "")),
        high=number(row.get("high", "")),
        unit=row["unit"],
        source=row["source"],
        year=int(row["year"]) if row["year"] else None,
        geography=row["geography"] or None,
        basis=Basis.parse(row["basis"]),
        note="; ".join(filter(None, (row.get("name"), row["note"], checked))),
    )


@lru_cache(maxsize=16)
def _by_name(table: str, key: str) -> dict[str, Factor]:
    return {row["name"]: factor_of(key, row) for row in read_table(table)}


def pue() -> dict[str, Factor]:
    """Power usage effectiveness (facility energy over IT energy) by name: fleets, cloud regions, surveys."""
    return _by_name("pue", "pue")


def wue() -> dict[str, Factor]:
    """On-site water usage effectiveness, litres per IT kWh, by name: fleets and cloud regions."""
    return _by_name("wue", "wue_l_per_kwh")


def residual_mix() -> dict[str, Factor]:
    """What is left of a grid's generation when everything sold by certificate is taken out: market-based, by zone.

    None where everything is certified, which does not mean zero.
    """
    return _by_name("residual_mix", "intensity_market_g_per_kwh")


def marginal_intensity() -> dict[str, Factor]:
    """What one more kWh emits, by country or balancing area: for decisions, never for an inventory."""
    return _by_name("marginal_intensity", "intensity_g_per_kwh")


def water_intensity() -> dict[str, Factor]:
    """Water that power stations consume per kWh, by country: off site, beside the site's own WUE."""
    return _by_name("water_intensity", "water_intensity_l_per_kwh")


def transmission_loss() -> dict[str, Factor]:
    """Share of generation that is lost between power station and site, by country."""
    return _by_name("transmission_loss", "transmission_loss")


def checkpointing() -> dict[str, Factor]:
    """What a published training says of its storage and its interruptions, by name."""
    rows = read_table("checkpointing")
    return {row["name"]: factor_of(row["name"], row | {"year": "", "geography": "", "basis": ""}) for row in rows}


def absent(table: str) -> list[str]:
    """What a table does not hold, and why: a line for each."""
    return [f"{row['geography']}: {row['reason']}" for row in read_table("absent") if row["table"] == table]


@lru_cache(maxsize=1)
def presets() -> dict[str, dict[str, Factor]]:
    """{preset: {key: factor}}: named sets of assumptions, such as the LLaMA paper's."""
    found: dict[str, dict[str, Factor]] = {}
    for row in read_table("presets"):
        found.setdefault(row["preset"], {})[row["key"]] = factor_of(row["key"], row)
    return found


def preset_factors(name: str) -> dict[str, Factor]:
    """{key: factor} of one preset; ValueError with the known names when it is none."""
    if name not in presets():
        raise ValueError(f"unknown preset {name!r}; known: {', '.join(presets())}")
    return presets()[name]
