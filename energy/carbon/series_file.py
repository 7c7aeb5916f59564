"""Reads an intensity series from a user's CSV or JSON file, and says by line what is wrong with it.

Taken: our own columns (`start_utc` or `start_unix_s`, `intensity_g_per_kwh`), Electricity Maps' and WattTime's exports
and API answers, and any file whose time and intensity columns are named in the call. Unit and time zone have to be
clear: a time without a zone is refused unless the column says UTC, for local times repeat one hour a year and skip one.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypedDict, Unpack

from energy.carbon.series import IntensitySeries, utc
from energy.factors import Basis
from energy.units import INTENSITIES, intensity_unit

HIGHEST_G_PER_KWH = 2000.0  # above what any fuel gives: oil shale and old lignite stay below 1,400
_TIME = re.compile(r"^(start_utc|start_unix_s|time_unix_s|unix_s|timestamp|date_?time|point_time|start|time)\b", re.I)
_UTC = re.compile(r"utc|unix|gmt", re.IGNORECASE)


@dataclass(frozen=True)
class _Row:
    line: int
    unix_s: float
    value: float | None


def _plain(text: str) -> str:
    return text.strip().lower().replace("-", "")


def _is_intensity(name: str) -> bool:
    plain = _plain(name)
    return intensity_unit(name) is not None or plain in {"moer", "carbonintensity", "carbon_intensity", "value"}


def _basis_in(name: str) -> str:
    plain = _plain(name)
    words = ["marginal"] if "moer" in plain or "marginal" in plain else []
    if "life" in plain or "lca" in plain:
        words.append("lifecycle")
    elif "direct" in plain:
        words.append("direct")
    return " ".join(words)


def _column(name: str, columns: list[str], wanted: str | None, path: str, what: str) -> str:
    if wanted is not None:
        if wanted not in columns:
            raise ValueError(f"{path}: no column {wanted!r}; it has {', '.join(columns)}")
        return wanted
    found = [each for each in columns if (_TIME.match(each.strip()) if name == "time" else _is_intensity(each))]
    exact = [each for each in found if each.strip().lower() in ("start_utc", "start_unix_s", "intensity_g_per_kwh")]
    found = exact or found
    if len(found) == 1:
        return found[0]
    if not found:
        raise ValueError(f"{path}: no column for {what}; it has {', '.join(columns)}; name it")
    raise ValueError(f"{path}: {what} could be {' or '.join(map(repr, found))}; say which")


def _unix_s(text: str, column: str, place: str) -> tuple[float, float | None]:
    """(unix seconds, offset from UTC in s as written; None for unix seconds)."""
    text = text.strip()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        if "unix" not in column.lower():
            raise ValueError(
                f"{place}: {text!r} is a number; call the column start_unix_s or write 2024-03-31T02:00:00Z"
            )
        return float(text), None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{place}: {text!r} is no time; write it as 2024-03-31T02:00:00Z") from None
    if moment.tzinfo is None:
        if not _UTC.search(column):
            raise ValueError(
                f"{place}: {text!r} has no time zone; write 2024-03-31T02:00:00Z, or call the column "
                f"'{column} (UTC)' if that is what it is (local time repeats an hour in autumn)"
            )
        moment = moment.replace(tzinfo=UTC)
    return moment.timestamp(), (moment.utcoffset() or timedelta()).total_seconds()


def _number(text: Any, place: str) -> float | None:
    """The cell as a number; None for an empty one or NaN."""
    if text is None or str(text).strip().lower() in ("", "nan", "null", "none", "n/a"):
        return None
    try:
        value = float(text)
    except (TypeError, ValueError):
        raise ValueError(f"{place}: {text!r} is no number") from None
    if not math.isfinite(value):
        raise ValueError(f"{place}: {text!r} is not finite")
    if value < 0:
        raise ValueError(f"{place}: {value:g} is negative; a grid intensity is not")
    return value


def _records(path: Path) -> tuple[list[tuple[int, dict[str, Any]]], dict[str, Any], str]:
    """([(line or number, record)], what the file says about itself, the word for a place in it)."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    if path.suffix.lower() != ".json":
        if not text.strip():
            raise ValueError(f"{path.name}: the file is empty")
        # newline="" keeps line ends inside quotes; line_num names the line as an editor does
        reader = csv.DictReader(io.StringIO(text, newline=""))
        return [(reader.line_num, row) for row in reader], {}, "line"
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path.name}: not JSON ({error})") from None
    return records_in(document, path.name)


def records_in(document: Any, name: str) -> tuple[list[tuple[int, dict[str, Any]]], dict[str, Any], str]:
    """The records of a JSON document: a list, or one under data, history or forecast."""
    told: dict[str, Any] = {}
    if isinstance(document, dict):
        told = dict(document.get("meta") or {}) | {k: v for k, v in document.items() if isinstance(v, str)}
        document = next((document[key] for key in ("data", "history", "forecast") if key in document), None)
    if not isinstance(document, list) or not all(isinstance(row, dict) for row in document):
        raise ValueError(f"{name}: expected a list of records, or an object with one under 'data'")
    return list(enumerate(document, start=1)), told, "entry"


class Layout(TypedDict, total=False):
    """What a file does not make clear itself.

    time_column, intensity_column: where several could be meant; unit: one of `energy.units.INTENSITIES`, where the
    column's name has none; basis: words such as "average lifecycle"; step_s: how long an entry that stands alone holds.
    """

    time_column: str
    intensity_column: str
    unit: str
    basis: str
    step_s: float


def read_series(path: str | Path, **layout: Unpack[Layout]) -> IntensitySeries:
    """The series in a CSV or JSON file, in g/kWh and UTC.

    ValueError names file, line and what was expected; what can be read and still deserves a word is in `.warnings`.
    """
    path = Path(path)
    records, told, word = _records(path)
    return make_series(records, told, word, path.name, **layout)


def make_series(
    records: list[tuple[int, dict[str, Any]]], told: dict[str, Any], word: str, name: str, **layout: Unpack[Layout]
) -> IntensitySeries:
    """As `read_series`, from records that were already read; `word` is what a place in them is called."""
    if not records:
        raise ValueError(f"{name}: no entries")
    columns = [str(column) for column in records[0][1] if column is not None]
    times = _column("time", columns, layout.get("time_column"), name, "the time")
    column = _column("intensity", columns, layout.get("intensity_column"), name, "the intensity")
    unit = layout.get("unit") or intensity_unit(column) or intensity_unit(str(told.get("units", "")))
    if unit is None and _plain(column) == "carbonintensity":
        unit = "g/kWh"  # Electricity Maps' API knows no other
    if unit is None and _plain(column) == "moer":
        unit = "lb/MWh"  # WattTime's download
    if unit not in INTENSITIES:
        raise ValueError(f"{name}: the unit of column {column!r} is not clear; say one of {', '.join(INTENSITIES)}")
    basis = layout.get("basis") or _told_basis(column, told, records)
    rows, offsets = _parsed(records, times, column, INTENSITIES[unit], word, name)
    rows, warnings = _ordered(rows, word, name)
    warnings += _zone_warnings(offsets)
    starts, ends, values, more = _intervals(rows, layout.get("step_s"), word, name)
    warnings += more + _size_warnings(values, unit)
    geography = _only_zone(records, name)
    return IntensitySeries(
        tuple(starts), tuple(ends), tuple(values), name, Basis.parse(basis), geography, tuple(warnings)
    )


def _only_zone(records: list[tuple[int, dict[str, Any]]], name: str) -> str | None:
    found = dict.fromkeys(str(row[key]) for _, row in records for key in ("Zone id", "zone") if row.get(key))
    if len(found) > 1:
        raise ValueError(f"{name}: entries of {len(found)} zones ({', '.join(list(found)[:4])}); keep one")
    return next(iter(found), None)


def _told_basis(column: str, told: dict[str, Any], records: list[tuple[int, dict[str, Any]]]) -> str:
    words = _basis_in(column)
    if _plain(column) == "carbonintensity" or any("Zone id" in row for _, row in records[:1]):
        words += " average consumption location"  # Electricity Maps: traced through the flows between zones
    signal = str(told.get("signal_type", ""))
    if "moer" in signal:
        words += " marginal"
    if "aoer" in signal:
        words += " average"
    scopes = {str(row["emissionFactorType"]) for _, row in records if row.get("emissionFactorType")}
    if len(scopes) > 1:
        raise ValueError(f"mixed bases in one series: {' and '.join(sorted(scopes))}")
    if scopes and scopes <= {"direct", "lifecycle"}:
        words += f" {scopes.pop()}"
    return words


def _parsed(
    records: list[tuple[int, dict[str, Any]]], times: str, column: str, factor: float, word: str, name: str
) -> tuple[list[_Row], Counter[float | None]]:
    rows, offsets = [], Counter[float | None]()
    for line, record in records:
        place = f"{name}: {word} {line}"
        if record.get(times) in (None, ""):
            raise ValueError(f"{place}: no time")
        unix_s, offset = _unix_s(str(record[times]), times, place)
        offsets[offset] += 1
        value = _number(record.get(column), place)
        rows.append(_Row(line, unix_s, None if value is None else value * factor))
    return rows, offsets


def _ordered(rows: list[_Row], word: str, name: str) -> tuple[list[_Row], list[str]]:
    """By time and each time once; two values for one moment are an error."""
    warnings = []
    back = next((b for a, b in zip(rows, rows[1:], strict=False) if b.unix_s < a.unix_s), None)
    if back is not None:
        warnings.append(f"not in order of time from {word} {back.line} ({utc(back.unix_s)}) on: sorted")
    kept: list[_Row] = []
    doubled: list[int] = []
    for row in sorted(rows, key=lambda each: (each.unix_s, each.line)):
        if not kept or row.unix_s != kept[-1].unix_s:
            kept.append(row)
        elif row.value == kept[-1].value:
            doubled.append(row.line)
        else:
            raise ValueError(
                f"{name}: {word}s {kept[-1].line} and {row.line} give {utc(row.unix_s)} twice with different values; "
                "local time does that in autumn: write the times in UTC"
            )
    if doubled:
        warnings.append(f"{word} {', '.join(map(str, doubled[:5]))}: the same entry again, taken once")
    return kept, warnings


def _zone_warnings(offsets: Counter[float | None]) -> list[str]:
    others = {offset for offset in offsets if offset}
    if not others:
        return []
    named = ", ".join(f"{'+' if o >= 0 else '-'}{int(abs(o)) // 3600:02d}:{int(abs(o)) % 3600 // 60:02d}" for o in
                      sorted(others))  # fmt: skip
    if len(offsets) > 1:
        return [f"the times are written with offsets that change ({named}): converted to UTC"]
    return [f"the times are not in UTC but at {named}: converted"]


def _intervals(
    rows: list[_Row], step_s: float | None, word: str, name: str
) -> tuple[list[float], list[float], list[float], list[str]]:
    """How long each entry holds: to the next one, but no longer than the usual step. The rest is a hole, and named."""
    steps = Counter(round(b.unix_s - a.unix_s, 3) for a, b in zip(rows, rows[1:], strict=False))
    if step_s is None:
        if not steps:
            raise ValueError(f"{name}: one entry alone does not say how long it holds; give step_s")
        step_s = steps.most_common(1)[0][0]
    warnings: list[str] = []
    holes = [(a, b) for a, b in zip(rows, rows[1:], strict=False) if b.unix_s - a.unix_s > step_s * 1.001]
    for a, b in holes[:5]:
        jump = _clock_change(a.unix_s + step_s, b.unix_s - a.unix_s - step_s)
        warnings.append(
            f"gap after {word} {a.line}: {utc(a.unix_s + step_s)} to {utc(b.unix_s)} is not covered"
            + ("; one hour on a day when clocks go forward: are these times local?" if jump else "")
        )
    if len(holes) > 5:
        warnings.append(f"{len(holes) - 5} more gaps, the last after {word} {holes[-1][0].line}")
    empty = [row.line for row in rows if row.value is None]
    if empty:
        listed = ", ".join(map(str, empty[:5])) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
        warnings.append(f"{word} {listed}: no value, so that time is not covered")
    starts, ends, values = [], [], []
    for i, row in enumerate(rows):
        if row.value is None:
            continue
        following = rows[i + 1].unix_s if i + 1 < len(rows) else math.inf
        starts.append(row.unix_s)
        ends.append(min(row.unix_s + step_s, following))
        values.append(row.value)
    if not values:
        raise ValueError(f"{name}: no {word} has a value")
    return starts, ends, values, warnings


def _clock_change(unix_s: float, seconds: float) -> bool:
    """Whether a hole is one hour in the night of a March or April Sunday, when clocks go forward."""
    moment = datetime.fromtimestamp(unix_s, UTC)
    return abs(seconds - 3600) < 1 and moment.weekday() == 6 and moment.month in (3, 4, 9, 10) and moment.hour <= 3


def _size_warnings(values: list[float], unit: str) -> list[str]:
    most = max(values)
    if most > HIGHEST_G_PER_KWH:
        return [f"up to {most:,.0f} g/kWh, which no grid has: is {unit} the unit?"]
    if 0 < most < 2:
        return [f"at most {most:.3g} g/kWh: are these kg/kWh?"]
    return []
