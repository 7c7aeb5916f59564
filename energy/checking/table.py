"""Reads anybody's table of footprints (CSV) or a record (footprint.json) as claims that `checking.checks` can weigh.

Columns are known by their names and units in many spellings ("GPU hours", "Carbon emitted (tCO2eq)", "energy_it_mwh");
what is not known is listed, what is missing makes its checks impossible and is said. Nothing is guessed: a figure whose
unit its column does not name is left out.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from energy.checking.checks import Claim, Finding, check_claims, check_record
from energy.units import INTENSITIES, KWH, TONNES, intensity_unit

_NAMES = ("model", "name", "run", "run_id", "system", "item", "experiment")
_DEVICE = ("device", "gpu", "gpu_type", "hardware", "hardware_type", "accelerator", "device_type", "type_of_gpu")
_DEVICES = ("devices", "gpus", "num_gpus", "n_gpus", "number_of_gpus", "gpu_count", "device_count", "accelerators")
_HOURS = re.compile(r"(^|_)(gpu|device|accelerator|tpu|chip)_?(hours|h|hrs|days)$|^(hours_used|time_gpu_hours)$")
_NO_SPAN = re.compile(r"flop|gpu|device|accelerator|tpu|chip|(^|_)(pf|pfs|node|cpu|core)_")  # of a product with days
_SPAN = re.compile(r"(^|_)(wall_?clock_)?(hours|days|weeks|months)$|^(hours_or_days|duration|training_time|time)$")
_POWER = re.compile(r"(^|_)(power|tdp)(_consumption|_capacity|_draw)?(_per_(gpu|device))?_(w|kw)$")
_ENERGY = re.compile(r"(^|_)(kwh|mwh|gwh|wh)$")
_CARBON = re.compile(
    r"(^|_)(t|mt|kt|kg|g|tonnes|tons)_?co2(eq|e)?$|co2(eq|e)?_(t|kg|g|tonnes)$|carbon_(t|kg|g|tonnes)$"
)
_KWH = {unit.lower(): factor for unit, factor in KWH.items()}
_TONNES = TONNES | dict.fromkeys(("mt", "tonnes", "tons"), 1.0)
_SPAN_H = {"hour": 1.0, "h": 1.0, "day": 24.0, "d": 24.0, "week": 168.0, "month": 365.25 * 2, "year": 365.25 * 24}
_IN_TEXT = re.compile(r"([\d.,]+)\s*(hours?|h|days?|d|weeks?|months?|years?)\b", re.IGNORECASE)
_DEVICES_IN_TEXT = re.compile(r"([\d,]+)\s*x?\s*(?:gpus?|tpus?|accelerators|devices|[AHV]\d{3}s?)\b", re.IGNORECASE)
_NOTHING = {"", "-", "–", "—", "n/a", "na", "none", "null", "unknown", "not known", "?"}
_SUFFIX = {"k": 1e3, "m": 1e6, "b": 1e9}


@dataclass(frozen=True)
class Column:
    """What a column holds: the field of a claim, the factor to its unit, and the column's own name."""

    field: str
    factor: float
    name: str


@dataclass(frozen=True)
class Checked:
    """What was found in a file, and what must be said about how it was read."""

    claims: int
    findings: list[Finding]
    notes: list[str]


def plain(header: str) -> str:
    """A header as lower-case words with underscores: "Carbon Emitted (tCO₂eq)" is carbon_emitted_tco2eq."""
    text = header.lower().replace("₂", "2").replace("/", " per ").replace("co2-eq", "co2eq")
    return re.sub(r"[^a-z0-9]+", "_", text).strip("_")


def _span_unit(name: str) -> float:
    """Hours in the unit that a duration column is named by; 0 when the cell has to say."""
    words = name.split("_")
    units = [word for word in ("hours", "days", "weeks", "months") if word in words]
    return _SPAN_H[units[0][:-1]] if len(units) == 1 else 0.0


def column_of(header: str) -> Column | None:
    """What a column holds, by its name; None when it is not known."""
    name = plain(header)
    if name in _NAMES:
        return Column("name", 1.0, header)
    if name in _DEVICE:
        return Column("device", 1.0, header)
    if name in _DEVICES:
        return Column("devices", 1.0, header)
    if name in ("pue", "power_usage_effectiveness"):
        return Column("pue", 1.0, header)
    if name in ("energy_boundary", "boundary"):
        return Column("boundary", 1.0, header)
    if name in ("kind", "method", "note", "notes", "comment"):
        return Column(f"text_{name}", 1.0, header)
    if _HOURS.search(name):
        return Column("device_hours", 24.0 if name.endswith("days") else 1.0, header)
    if unit := intensity_unit(name):
        return Column("intensity_g_per_kwh", INTENSITIES[unit], header)
    if match := _POWER.search(name):
        key = "gpu_power_w" if "gpu" in name.split("_") else "power_w"
        return Column(key, 1e3 if match[6] == "kw" else 1.0, header)
    if match := _ENERGY.search(name):
        words = set(name.split("_"))
        part = next((part for part in ("facility", "it", "gpu") if part in words), None)
        return Column(f"energy_{part}_kwh" if part else "energy_kwh", _KWH[match[2]], header)
    if match := _CARBON.search(name):
        mass = match[2] or match[5] or match[6]
        return Column("market_t" if "market" in name else "carbon_t", _TONNES[mass], header)
    if _SPAN.search(name) and not _NO_SPAN.search(name):
        return Column("duration_h", _span_unit(name), header)
    return None


def _number(text: str, place: str) -> tuple[float | None, float]:
    """(value, one unit of its last printed digit); None for an empty cell."""
    bare = text.strip().replace(" ", "").replace("_", "").lstrip("~≈")
    if bare.lower() in _NOTHING:
        return None, 0.0
    match = re.fullmatch(r"([-+]?)(\d{1,3}(?:,\d{3})+|\d+)?(\.\d*)?(e[-+]?\d+)?([kmb]?)", bare, re.IGNORECASE)
    if not match or not (match[2] or match[3]):
        raise ValueError(f"{place}: {text.strip()!r} is no number")
    scale = _SUFFIX.get(match[5].lower(), 1.0)
    value = float(bare[: len(bare) - len(match[5])].replace(",", "")) * scale
    if value < 0 or not math.isfinite(value):
        raise ValueError(f"{place}: {text.strip()} cannot be negative or infinite")
    decimals = len(match[3] or ".") - 1
    whole = (match[2] or "").replace(",", "")
    # 390 and 1,900 are taken for rounded to their last digit that is not zero
    zeros = len(whole) - len(whole.rstrip("0")) if not decimals and whole.strip("0") else 0
    return value, 10.0 ** (zeros - decimals) * float(f"1{match[4] or ''}") * scale


def _duration(text: str, unit_h: float, place: str) -> tuple[float | None, float]:
    if text.strip().lower() in _NOTHING:
        return None, 0.0
    match = _IN_TEXT.search(text)
    if match:
        word = match[2].lower()
        unit_h, text = _SPAN_H[word if word in _SPAN_H else word.rstrip("s")], match[1]
    elif not unit_h:
        raise ValueError(f"{place}: {text.strip()!r} names no unit; write it as '21 days'")
    value, step = _number(text, place)
    return (None if value is None else value * unit_h), step * unit_h


def _claim(row: dict[str, str], columns: dict[str, Column], place: str, file: str) -> Claim:
    told: dict[str, Any] = {"name": "", "place": place, "step": {}}
    boundary, words = "", []
    for key, column in columns.items():
        text = row[column.name] or ""
        where = f"{file}: {place}, column {column.name!r}"
        if key == "boundary":
            boundary = text.lower()
        elif key.startswith("text_"):
            words.append(text.strip())
        elif key in ("name", "device"):
            told[key] = text.strip()
        elif key == "duration_h":
            told[key], told["step"][key] = _duration(text, column.factor, where)
        else:
            value, step = _number(text, where)
            key = "power_w" if key == "gpu_power_w" else key
            if key != "market_t" and value is not None:
                told[key], told["step"][key] = value * column.factor, step * column.factor
                told["power_of_gpu"] = told.get("power_of_gpu", False) or column.field == "gpu_power_w"
    _from_name(told)
    part = next((p for p in ("facility", "gpu", "it") if re.search(rf"\b{p}\b", boundary)), None)
    if part and "energy_kwh" in told and f"energy_{part}_kwh" not in told:
        told[f"energy_{part}_kwh"] = told.pop("energy_kwh")
        told["step"][f"energy_{part}_kwh"] = told["step"].pop("energy_kwh", 0.0)
    told["text"] = "; ".join(filter(None, words))
    told["embodied"] = "embodied" in boundary
    # "measured power" is one mean figure times hours, and the product must hold; sampled energy need not be a product
    told["measured"] = bool(re.search(r"\b(metered|sampled|measured)\b(?! (system )?power)", told["text"].lower()))
    return Claim(**told)


def _from_name(told: dict[str, Any]) -> None:
    """A total often says in its name how many devices took how long."""
    match = _DEVICES_IN_TEXT.search(told["name"])
    if match and told.get("devices") is None:
        told["devices"] = float(match[1].replace(",", ""))
    match = _IN_TEXT.search(told["name"])
    if match and told.get("duration_h") is None and told.get("devices") is not None:
        told["duration_h"], _ = _duration(match[0], 0.0, told["name"])


def _columns(headers: list[str], file: str) -> tuple[dict[str, Column], list[str]]:
    columns: dict[str, Column] = {}
    notes = []
    for header in headers:
        column = column_of(header)
        if column is None:
            continue
        if column.field in columns:
            notes.append(f"column {header!r} was left out: {columns[column.field].name!r} holds the same")
        else:
            columns[column.field] = column
    if "name" not in columns:
        columns = {"name": Column("name", 1.0, headers[0])} | columns
    if "gpu_power_w" in columns and "power_w" in columns:
        notes.append(f"column {columns.pop('power_w').name!r} was left out: the GPU's own power was taken")
    energy = {key for key in columns if key.startswith("energy_")}
    if not energy and "carbon_t" not in columns:
        raise ValueError(
            f"{file}: nothing to check: it needs a column for energy with its unit (energy_mwh, energy_it_kwh) or for "
            f"carbon (tco2eq, kgco2eq); it has {', '.join(headers)}"
        )
    hours = "device_hours" in columns or {"devices", "duration_h"} <= set(columns)
    power = {"power_w", "gpu_power_w"} & set(columns)
    missing = [] if hours else ["device-hours (gpu_hours, or devices and days)"]
    missing += [] if power else ["power (gpu_power_w)"]
    missing += [text for key, text in (("pue", "PUE (pue)"), ("intensity_g_per_kwh", "intensity (g_per_kwh)"),
                                       ("carbon_t", "carbon (tco2eq)")) if key not in columns]  # fmt: skip
    missing += [] if energy else ["energy (energy_mwh)"]
    if missing:
        notes.append(f"no column for {', '.join(missing)}: what needs it was not checked")
    return columns, notes


def read_claims(path: str | Path) -> tuple[list[Claim], list[str]]:
    """(one claim for each row, notes on how the file was read). ValueError names file, line and column."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path.name}: not UTF-8 text") from None
    if not text.strip():
        raise ValueError(f"{path.name}: the file is empty")
    first = text.splitlines()[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise ValueError(f"{path.name}: line {reader.line_num}: not CSV ({error})") from None
    headers = [header.strip() for header in rows[0][1]]
    doubled = {header for header in headers if headers.count(header) > 1}
    if doubled:
        raise ValueError(f"{path.name}: column {', '.join(sorted(doubled))!r} stands twice")
    columns, notes = _columns(headers, path.name)
    claims = []
    for line, cells in rows[1:]:
        if len(cells) != len(headers):
            raise ValueError(f"{path.name}: line {line} has {len(cells)} cells, the header {len(headers)}")
        claims.append(_claim(dict(zip(headers, cells, strict=True)), columns, f"line {line}", path.name))
    if not claims:
        raise ValueError(f"{path.name}: a header and no rows")
    return claims, notes


def check_file(path: str | Path) -> Checked:
    """Plausibility of a table (CSV) or a record (footprint.json); ValueError for a file that cannot be read."""
    path = Path(path)
    if path.suffix.lower() == ".json":
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path.name}: not JSON ({error})") from None
        if not isinstance(record, dict) or not str(record.get("schema", "")).startswith("hoofprint/footprint/"):
            raise ValueError(f"{path.name}: expected a record with a schema of hoofprint/footprint/...")
        return Checked(1, check_record(record), [])
    claims, notes = read_claims(path)
    return Checked(len(claims), check_claims(claims), notes)
