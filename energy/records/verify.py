"""Verifies a record: computed again from the run's files and compared, every hash and every sum looked at.

Every hash is compared as it stands. Numbers are computed again by sums, products and roots, which are the same on every
machine, and intervals that are rounded so that its sine and exponential do not show; should one differ in its last
digits all the same (within TOLERANCE), it counts as the same, and their number is told. What does not hold is named by
its file, its field, and both values.

That a record is what its sources give, and that its figures can be believed, are two things. An honest record of a
sensor that reads nonsense verifies: it says `implausible: ...` in its own warnings, and so does the verification, as a
doubt. A record that keeps such a warning back does not.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from energy.checking.checks import IMPLAUSIBLE, LESS_THAN_IDLE, MORE_THAN_RATED, check_record
from energy.ledger.readings import is_fine, read_sessions
from energy.metering.track import MISSING, RESET, UNKNOWN
from energy.records import record as records
from energy.records.record import (
    ABSENT,
    ENTRIES,
    FILE_NAME,
    SPEC,
    canonical,
    differences,
    factors_used,
    hash_of,
    hash_of_file,
    short,
)
from energy.records.verify_tables import changed_tables, look_at_tables, why_it_differs
from energy.runs import RunFolder
from energy.schemas import require_known, schema_faults
from energy.units import JOULE_PER_KWH

TOLERANCE = 1e-9  # relative: of sums inside a record (J to kWh, device by device), and of what is computed again
# A record from before they were noted lacks them.
ADDED = ("compute.mean_devices", "compute.quantities.mean_devices", "energy.devices[].metered_s")
# How warnings begin that were worded otherwise before `metered_s` was noted, or were of other seconds.
REWORDED = (IMPLAUSIBLE + MORE_THAN_RATED, IMPLAUSIBLE + LESS_THAN_IDLE, "no grid intensity")
Found = tuple[list[str] | None, str]  # what does not hold (None: could not be looked at), a note
ODD = (OSError, ValueError, LookupError, TypeError, AttributeError)  # whatever an altered file may lead to
MOST_FAULTS = 20  # named of each check; the rest is counted


@dataclass
class Check:
    """One thing that was looked at. `ok` is None where it could not be looked at, and `note` says why.

    doubts: what is right as a record and hard to believe of the world. A check with doubts alone is `ok`.
    """

    name: str
    ok: bool | None
    note: str = ""
    faults: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)


@dataclass
class Verification:
    """What became of a record: all its checks, in the order in which they were made."""

    run: str
    checks: list[Check]

    @property
    def ok(self) -> bool:
        """Whether the record is what its sources give, and says of itself all that must be said."""
        return all(check.ok is not False for check in self.checks)

    @property
    def implausible(self) -> list[str]:
        """What the record itself calls implausible: it verifies all the same, and its reader must know."""
        return [doubt for check in self.checks for doubt in check.doubts]

    def as_json(self) -> dict[str, Any]:
        return {
            "run": self.run,
            "ok": self.ok,
            "plausible": not self.implausible,
            "implausible": self.implausible,
            "checks": [asdict(check) for check in self.checks],
        }


def verify_run(run: RunFolder) -> Verification:
    """Look at everything a record claims.

    ValueError for what cannot be verified at all: no run, no record, no ledger, a record of a newer schema.
    """
    folder = Path(run.path)
    if not run.run_file.exists() and not (folder / FILE_NAME).exists():
        raise ValueError(f"{folder} is not a run: it has no run.json")
    record, text = _read(folder)
    if isinstance(record, str):
        return Verification(folder.name, [Check("the record can be read", False, faults=[record])])
    require_known(record)
    told = record.get("chain")
    chain = told if isinstance(told, dict) else {}
    named = [name for name in chain.get("files") or [] if str(name).endswith(".ledger")]
    if not run.ledgers() and not named:
        raise ValueError(f"{folder} has no ledger (energy/*.ledger): nothing was metered, so nothing can be verified")
    looks: list[tuple[str, Callable[[], Found]]] = [
        ("the record fits its schema", lambda: (schema_faults(record), record["schema"])),
        ("the record is the one entered last", lambda: _entered(run, text, chain)),
        ("the records before it are kept", lambda: _kept(folder)),
        ("its sources are as they were", lambda: _sources(run, chain)),
        ("its factors are as they were", lambda: _factors(record)),
        ("the tables of factors are unaltered", lambda: look_at_tables(chain)),
        ("the ledgers are whole", lambda: _ledgers(run, record)),
        ("the curves grow as the counters do", lambda: _counters(run)),
        ("computed again, every field is the same", lambda: _recomputed(run, record)),
        ("devices, phases and attempts sum up", lambda: _sums(record)),
    ]
    checks = [_look(name, look) for name, look in looks]
    return Verification(folder.name, [*checks, _plausible(record)])


def _look(name: str, look: Callable[[], Found]) -> Check:
    """One check. In a record that was tampered with anything may stand anywhere: that too is a finding."""
    try:
        faults, note = look()
    except ODD as error:
        return Check(name, False, faults=[f"cannot be looked at: {type(error).__name__}: {error}"])
    if faults is None:
        return Check(name, None, note)
    more = [f"and {len(faults) - MOST_FAULTS} more"] if len(faults) > MOST_FAULTS else []
    return Check(name, not faults, note, faults[:MOST_FAULTS] + more)


def _read(folder: Path) -> tuple[dict[str, Any] | str, str]:
    """(the record or what is wrong with the file, its text)."""
    path = folder / FILE_NAME
    try:
        text = path.read_bytes().decode("utf-8")
        record = json.loads(text)
    except FileNotFoundError:
        raise ValueError(f"{folder} has no {FILE_NAME}; write it: hoofprint report {folder}") from None
    except ValueError as error:
        return f"{FILE_NAME}: not JSON any more ({error})", ""
    return (record, text) if isinstance(record, dict) else (f"{FILE_NAME}: not a JSON object", "")


def _entered(run: RunFolder, text: str, chain: Mapping[str, Any]) -> Found:
    folder = Path(run.path)
    entries, faults = records.read_entries(folder)
    if not entries:
        return [*faults, f"{ENTRIES}: no entry for this record; write it again: hoofprint report {folder}"], ""
    last = entries[-1]
    if last["record_sha256"] != records.hash_of_text(text):
        if _is_cut_off(run, text, last):
            told = f"what its sources give, without an entry in {ENTRIES}, the writing of which was cut off"
            return [*faults, f"{FILE_NAME}: {told}; write it again: hoofprint report {folder}"], ""
        faults.append(f"{FILE_NAME}: changed after it was written (its hash is not that of the last line of {ENTRIES})")
    if chain.get("previous_sha256") != last.get("previous_sha256"):
        faults.append(f"{FILE_NAME}: chain.previous_sha256 is not what {ENTRIES} says")
    many = "" if len(entries) == 1 else f", after {len(entries) - 1} before it"
    return faults, f"{last['time']}: {last['reason']}{many}"


def _is_cut_off(run: RunFolder, text: str, last: Mapping[str, Any]) -> bool:
    try:
        return records.is_cut_off(run, text, last)
    except ODD:  # it cannot be computed again, as a check below says
        return False


def _kept(folder: Path) -> Found:
    """Each record that was replaced lies under records/ as it was; one that was gone already has its entry alone."""
    entries, faults = records.read_entries(folder)[0], []
    replaced = [str(entry["replaced_sha256"]) for entry in entries if entry.get("replaced_sha256")]
    for sha256 in replaced:
        path = records.kept_file(folder, sha256)
        name = path.relative_to(folder).as_posix()
        if not path.exists():
            faults.append(f"{name}: missing, a record that was replaced")
        elif hash_of_file(path)[0] != sha256:
            faults.append(f"{name}: changed after it was kept")
    gone = [name for entry in entries for name in entry.get("missing_sources") or []]
    lost = f"; once computed without {', '.join(dict.fromkeys(gone))}" if gone else ""
    return faults, f"{len(replaced) or 'none'}{lost}"


def _sources(run: RunFolder, chain: Mapping[str, Any]) -> Found:
    folder, faults = Path(run.path), []
    files = chain.get("files")
    if not files:
        return [f"{FILE_NAME}: it names no sources (chain.files); write it again: hoofprint report {folder}"], ""
    for name, about in files.items():
        path = folder / name
        if not path.exists():
            faults.append(f"{name}: missing")
            continue
        if hash_of_file(path) == (about["sha256"], about["bytes"]):
            continue
        grown = path.stat().st_size > about["bytes"]
        if grown and hash_of_file(path, about["bytes"])[0] == about["sha256"]:
            faults.append(f"{name}: grew since the record was written; write it again: hoofprint report {folder}")
        else:
            faults.append(f"{name}: changed since the record was written{_where(folder, name, chain)}")
    for path in records.source_files(folder):
        name = path.relative_to(folder).as_posix()
        if name not in files:
            faults.append(f"{name}: was not there when the record was written")
    faults += _run_keys(run, chain)
    size = sum(about["bytes"] for about in files.values())
    amount = f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.1f} kB"
    return faults, f"{len(files)} files and run.json, {amount}"


def _where(folder: Path, name: str, chain: Mapping[str, Any]) -> str:
    """The section of the spec that changed; of other files the checks below say more."""
    if name != SPEC:
        return ""
    before, now = chain.get("spec") or {}, records.spec_sections(folder)
    changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if not now:
        return " (it is not YAML any more)"
    return f" (section {', '.join(changed)})" if changed else " (its layout or a comment, no value)"


def _run_keys(run: RunFolder, chain: Mapping[str, Any]) -> list[str]:
    try:
        now = run.read_run()
    except (OSError, ValueError) as error:
        return [str(error)]
    before = chain.get("run") or {}
    lost = [f"run.json: {key} is missing" for key in before if key not in now]
    return lost + [
        f"run.json: {key} changed since the record was written"
        for key in before
        if key in now and hash_of(now[key]) != before[key]
    ]


def _ledgers(run: RunFolder, record: Mapping[str, Any]) -> Found:
    """Each frame has a checksum of its own: damage is named with its byte. What a crash tore stands in the record."""
    told = (record.get("quality") or {}).get("damaged") or []
    known, faults, stretches = 0, [], 0
    fine = is_fine(run.ledgers())  # else the account has not read the finer files, and the record knows no damage there
    for path in run.ledgers():
        sessions, damaged = read_sessions(path, fine=fine)
        faults += [text for text in damaged if text not in told]
        known += sum(text in told for text in damaged)
        stretches += len(sessions)
    note = f"{_many(len(run.ledgers()), 'node')}, {_many(stretches, 'uninterrupted stretch', 'es')}"
    if not fine:
        note += "; in rows a minute apart: the finer files are too large together"
    return faults, f"{note}; {_many(known, 'damage')} that the record names" if known else note


def _many(count: int, noun: str, plural: str = "s") -> str:
    return f"{count} {noun}{'' if count == 1 else plural}"


def _factors(record: Mapping[str, Any]) -> Found:
    chained = (record.get("chain") or {}).get("factors") or {}
    used = factors_used(record)
    faults = [f"{FILE_NAME}: assumptions[{key}] is gone" for key in chained if key not in used]
    for key, factor in used.items():
        if key not in chained:
            faults.append(f"{FILE_NAME}: assumptions[{key}] was added")
        elif hash_of(factor) != chained[key]:
            faults.append(f"{FILE_NAME}: assumptions[{key}] changed: {factor.get('value')} {factor.get('unit')}")
    given = [key for key, factor in used.items() if factor.get("value") is not None]
    return faults, ", ".join(given) or "none was given"


def _recomputed(run: RunFolder, record: Mapping[str, Any]) -> Found:
    again = json.loads(canonical(records.compute_record(run)))
    told = record
    if not any("metered_s" in device for device in record["energy"]["devices"]):
        told, again = _without_new_words(record), _without_new_words(again)
    found = [each for each in differences(told, again) if each.old is not ABSENT or not _was_added(each.field)]
    rounding = [each for each in found if _last_digits(each.old, each.new)]
    tables = changed_tables(record.get("chain") or {})
    faults = [
        f"{FILE_NAME}: {field} is {short(said)}, its sources give {short(now)}{why_it_differs(field, tables)}"
        for field, said, now in found
        if not _last_digits(said, now)
    ]
    exactly = f"{len(rounding)} of them within {TOLERANCE:g}" if rounding else "exactly"
    return faults, f"{_leaves(again):,} fields, {exactly}"


def _was_added(field: str) -> bool:
    return re.sub(r"\[.*\]", "[]", field) in ADDED


def _without_new_words(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Without what was worded otherwise before `metered_s` was noted: some warnings, and notes on what is counted."""
    quality = record["quality"]
    kept = [text for text in quality["warnings"] if not text.startswith(REWORDED)]
    return {**record, "quality": {**quality, "warnings": kept}} | {
        block: {**record[block], "note": None} for block in ("embodied", "water")
    }


def _last_digits(said: Any, now: Any) -> bool:
    return isinstance(said, float) and isinstance(now, float) and math.isclose(said, now, rel_tol=TOLERANCE)


def _leaves(value: Any) -> int:
    if isinstance(value, Mapping):
        return sum(_leaves(part) for key, part in value.items() if key != "chain")
    return sum(_leaves(part) for part in value) if isinstance(value, list) else 1


def _near(left: float, right: float, size: float) -> bool:
    return math.isclose(left, right, rel_tol=TOLERANCE, abs_tol=TOLERANCE * abs(size))


def _sums(record: Mapping[str, Any]) -> Found:
    energy, carbon = record.get("energy") or {}, record.get("carbon") or {}
    total = energy.get("energy_it_kwh")
    faults: list[str] = []
    if total is None:
        for name, key in (("phases", "phase"), ("attempts", "attempt")):
            told = [part for part in energy[name] if part["energy_kwh"] is not None]
            faults += [f"{FILE_NAME}: energy.{name}[{part[key]}] has {part['energy_kwh']!r} kWh" for part in told]
        return faults, "no energy was measured: nothing to sum up"

    def compare(what: str, found: float, expected: float, how: str = "energy_it_kwh") -> None:
        if not _near(found, expected, total):
            faults.append(f"{FILE_NAME}: {what} give {found!r}, {how} is {expected!r}")

    def column(name: str) -> float:
        return math.fsum(part["energy_kwh"] or 0.0 for part in energy[name])

    compare("energy.devices", column("devices"), total)
    compare("energy.phases", column("phases"), total)
    for device in (each for each in energy["devices"] if each["energy_j"] is not None):
        energy_kwh = device["energy_j"] / JOULE_PER_KWH
        compare(f"energy.devices[{device['uuid']}].energy_j", energy_kwh, device["energy_kwh"], "its energy_kwh")
    compare("energy.attempts", column("attempts"), total)
    facility, pue, tonnes = energy["energy_facility_kwh"], energy["pue"], carbon["carbon_tco2eq"]
    if facility is not None and pue is not None:
        compare("energy_it_kwh x pue", total * pue, facility, "energy_facility_kwh")
    intensity = carbon["intensity_g_per_kwh"]
    if tonnes is not None and intensity is not None and facility is not None:
        if not _near(facility * intensity / 1e6, tonnes, tonnes):
            product = facility * intensity / 1e6
            faults.append(f"{FILE_NAME}: facility energy x intensity is {product!r} t, carbon_tco2eq is {tonnes!r}")
    return faults, f"within {TOLERANCE:g} of the total"


def _counters(run: RunFolder) -> Found:
    """Between two rows without a reset or an unknown stretch the curve grows by exactly what the counter grows."""
    faults, compared, fine = [], 0, is_fine(run.ledgers())
    for path in run.ledgers():
        for session in read_sessions(path, fine=fine)[0]:
            rows = session.ticks["rows"]
            for place, about in enumerate(session.sensors):
                if about.get("method") != "counter":
                    continue
                counter, curve = rows["counter_mj"][:, place], rows["energy_mj"][:, place]
                odd = rows["flags"][1:, place].astype(np.int64) & (RESET | UNKNOWN | MISSING)
                clean = (odd == 0) & (counter[1:] >= 0) & (counter[:-1] >= 0)
                wrong = np.flatnonzero(clean & (np.diff(counter) != np.diff(curve)))
                compared += int(clean.sum())
                for row in wrong[:3]:
                    grown, booked = int(np.diff(counter)[row]), int(np.diff(curve)[row])
                    when = float(session.times()[row + 1])
                    faults.append(
                        f"{path.name}: {about['uuid']} before {when:.3f}: its counter grew by {grown} mJ, the curve "
                        f"by {booked} mJ"
                    )
                if len(wrong) > 3:
                    faults.append(f"{path.name}: {about['uuid']}: and {len(wrong) - 3} intervals more")
    return faults, f"{compared:,} intervals" if compared else "no device has a counter"


def _plausible(record: dict[str, Any]) -> Check:
    """What is implausible is a doubt where the record says so itself, and a fault where it keeps it back."""
    name = "its figures are plausible, or it says that they are not"
    doubts: list[str] = []

    def look() -> Found:
        found = [str(finding) for finding in check_record(record)]
        said = record["quality"]["warnings"]
        doubts.extend(text for text in found if IMPLAUSIBLE + text in said)
        return [text for text in found if IMPLAUSIBLE + text not in said], ""

    check = _look(name, look)
    check.doubts = doubts
    return check
