"""The record of a run: footprint.json, chained by hashes to all that it was computed from and to the one before it.

    footprint.json   the record: a pure function of the run's files, sorted, replaced in one move
    records.jsonl    a line for each record that the run has had: its hash, the one before, when it was written and why
    records/         the records that were replaced, whole, each by the first digits of its hash

Of two that write at once one waits for the other: a record is written under a lock on records.jsonl.

A record whose source is missing is not replaced without a reason: the files that a figure came from may be lost, the
figure must not go with them.

The record itself holds no clock and no place of this machine, so that the same files give the same bytes elsewhere.
When it was written stands in records.jsonl alone. A record that comes out as it was makes no new line.

What the hashes cover (`chain` in the record): every file under energy/ of each node (.ledger, .seconds, .raw and
.raw.old), the metrics of each rank, experiment.yaml, run.json key by key, and each factor that was used. Of a file the
length is kept too: files that only grew since (a run that was resumed) are told apart from files that were changed. A
raw file that was full has been replaced by the time the record is written: the hash is of what was left, and each of
its rows that is gone had given its energy to the seconds and minutes before.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from energy.accounting.account import account_run
from energy.carbon.series import IntensitySeries
from energy.factors import tables_now
from energy.factors.model import Basis
from energy.records.footprint import SCHEMA, make_footprint
from energy.records.turns import alone
from energy.run_version import program_version
from energy.runs import SERIES, RunFolder, replace_file

FILE_NAME = "footprint.json"
ENTRIES = "records.jsonl"
SPEC = "experiment.yaml"
SOURCES = ("energy/*.ledger", "energy/*.seconds", "energy/*.raw", "energy/*.raw.old", "metrics/*.jsonl", SERIES, SPEC)
KEPT = "records"
FIRST = "first record"
CUT_OFF = "the writing of its entry had been cut off"
MOST_CHANGES = 12  # listed in an entry; the rest is counted
BLOCK = 1 << 20
ALGORITHM = "sha256"
ABSENT = object()
KEYS: dict[str, Any] = {
    "record_sha256": str, "previous_sha256": str | None, "entry_sha256": str, "previous_entry_sha256": str | None,
    "time": str, "reason": str,
}  # fmt: skip


def canonical(record: dict[str, Any]) -> str:
    """The record as text: sorted keys, full precision, no NaN, a final newline."""
    return json.dumps(record, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def hash_of(value: Any) -> str:
    """SHA-256 of a JSON value, whatever its layout in the file was (keys sorted, no spaces)."""
    return _digest(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())


def hash_of_file(path: Path, first_bytes: int | None = None) -> tuple[str, int]:
    """(SHA-256, length in bytes) of a file, or of its first bytes."""
    digest, length = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while data := file.read(BLOCK if first_bytes is None else min(BLOCK, first_bytes - length)):
            digest.update(data)
            length += len(data)
    return digest.hexdigest(), length


def hash_of_text(text: str) -> str:
    return _digest(text.encode())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def source_files(folder: Path) -> list[Path]:
    """The files that a record is computed from, run.json apart, by name."""
    return sorted(path for pattern in SOURCES for path in folder.glob(pattern) if path.is_file())


def spec_sections(folder: Path) -> dict[str, str]:
    """A hash of each section of experiment.yaml, so that a changed one can be named; {} where it cannot be read."""
    return {str(key): _digest(repr(value).encode()) for key, value in _spec(folder).items()}


def _spec(folder: Path) -> dict[Any, Any]:
    import yaml

    try:
        spec = yaml.safe_load((folder / SPEC).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return spec if isinstance(spec, dict) else {}


def factors_used(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The numbers from elsewhere that a record rests on, by key, each with value, unit and source."""
    found: dict[str, dict[str, Any]] = {}
    for factor in record.get("assumptions") or []:
        key, number = str(factor["key"]), 2
        while key in found:  # one key twice: an intensity by location and one by market
            key, number = f"{factor['key']} {number}", number + 1
        found[key] = dict(factor)
    return found


def chain_of(run: RunFolder, record: Mapping[str, Any], previous_sha256: str | None) -> dict[str, Any]:
    """What ties a record to its sources (see the top of the file)."""
    folder = Path(run.path)
    files = {}
    for path in source_files(folder):
        digest, length = hash_of_file(path)
        files[path.relative_to(folder).as_posix()] = {"sha256": digest, "bytes": length}
    return {
        "algorithm": ALGORITHM,
        "files": files,
        "run": {key: hash_of(value) for key, value in sorted(run.read_run().items())},
        "spec": spec_sections(folder),
        "factors": {key: hash_of(factor) for key, factor in sorted(factors_used(record).items())},
        "previous_sha256": previous_sha256,
    }


def compute_record(run: RunFolder, previous_sha256: str | None = None) -> dict[str, Any]:
    """The record as the run's files give it now; writes nothing."""
    record = make_footprint(run.read_run(), account_run(run), run.steps(), run.evaluations(), series_of(run))
    record["chain"] = chain_of(run, record, previous_sha256)
    record["chain"]["tables"] = tables_now()
    return record


def series_of(run: RunFolder) -> IntensitySeries | None:
    """The intensities that were kept with the run; None where a constant holds. ValueError for a file that is none."""
    path = Path(run.path) / SERIES
    if not path.exists():
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        starts, ends, values = (tuple(stored[key]) for key in ("start_unix_s", "end_unix_s", "g_per_kwh"))
        told = (stored["source"], Basis(**stored["basis"]), stored["geography"], tuple(stored["warnings"]))
        return IntensitySeries(starts, ends, values, *told)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a series of intensities ({error})") from None


def read_entries(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """(the lines of records.jsonl, what is wrong with them): each must be sealed and follow the one before."""
    try:
        lines = (folder / ENTRIES).read_bytes().splitlines()
    except FileNotFoundError:
        return [], []
    entries: list[dict[str, Any]] = []
    faults = []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            if not all(isinstance(entry[key], kind) for key, kind in KEYS.items()):
                raise TypeError
            sealed = _seal(entry) == entry["entry_sha256"] and _line(entry) == line.decode()
        except (ValueError, KeyError, TypeError):
            faults.append(f"{ENTRIES} line {number}: not an entry, or not a whole one")
            continue
        if not sealed:
            faults.append(f"{ENTRIES} line {number}: changed after it was written (its own hash does not fit)")
        before = entries[-1] if entries else {}
        if entry.get("previous_entry_sha256") != before.get("entry_sha256"):
            faults.append(f"{ENTRIES} line {number}: the line before it is not the one it was written after")
        elif entry.get("previous_sha256") != before.get("record_sha256"):
            faults.append(f"{ENTRIES} line {number}: does not name the record before it")
        entries.append(entry)
    return entries, faults


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, sort_keys=True, ensure_ascii=False)


def _seal(entry: Mapping[str, Any]) -> str:
    return hash_of({key: value for key, value in entry.items() if key != "entry_sha256"})


def write_record(run: RunFolder, reason: str | None = None) -> dict[str, Any]:
    """Computes the record from the folder's files, writes it where it differs from the last one, and returns it.

    A record that differs is a new entry in records.jsonl with its reason: the one given, else what has changed in the
    sources; the one that it replaces is kept whole under records/. ValueError, without a reason, when a source of the
    last record is missing. Raises OSError when the folder cannot be written; it is never left with half a record.
    """
    with alone(Path(run.path) / ENTRIES):
        return _write(run, reason)


def _write(run: RunFolder, reason: str | None) -> dict[str, Any]:
    folder = Path(run.path)
    path = folder / FILE_NAME
    entries, _ = read_entries(folder)
    last = entries[-1] if entries else None
    old_data = path.read_bytes() if path.exists() else None
    old = _parsed(old_data) if old_data is not None else {}
    if old.get("schema") not in (None, SCHEMA):
        raise ValueError(
            f"{path}: a record of {old['schema']}, which this version ({SCHEMA}) does not know: it is left "
            "as it is; use the version of hoofprint that wrote it"
        )
    foreign = old_data is not None and (last is None or _digest(old_data) != last["record_sha256"])
    record = compute_record(run, last["previous_sha256"] if last else None)
    text = canonical(record)
    same = last is not None and hash_of_text(text) == last["record_sha256"]
    if same and not foreign:
        if old_data is None:
            replace_file(path, text)
        return record
    missing = _missing_sources(folder, last, old)
    lost = [name for name in missing if name != SERIES or not _declared_away(folder)]
    if lost and reason is None:
        raise ValueError(
            f"{folder}: {', '.join(lost[:MOST_CHANGES])} {'is' if len(lost) == 1 else 'are'} missing, from which "
            f"the last record was computed: it is left as it is. Bring the files back, or say why they are gone: "
            f'hoofprint report {folder} --reason "..."'
        )
    if last is not None:
        record["chain"]["previous_sha256"] = last["record_sha256"]
        text = canonical(record)
    cut_off = last is not None and old_data == text.encode()
    if last is not None and cut_off:  # what it replaced was kept before: the entry tells what changed since then
        kept = kept_file(folder, last["record_sha256"])
        old_data = kept.read_bytes() if kept.exists() else None
        old = _parsed(old_data) if old_data is not None else {}
    told = reason or ("computed again" if same else _what_changed(old, record) if old or last else FIRST)
    if foreign:
        how = "had no entry" if last is None else "had been changed"
        told += f"; {CUT_OFF}" if cut_off else f"; the {FILE_NAME} that lay here {how}"
    if old_data is not None:
        _keep(folder, old_data)
    replace_file(path, text)
    replaced = {"replaced_sha256": None if old_data is None else _digest(old_data), "missing_sources": missing}
    _append(folder, last, record, text, told, old, replaced)
    return record


def is_cut_off(run: RunFolder, text: str, last: Mapping[str, Any]) -> bool:
    """Whether a footprint.json that is not the record of the last entry is the next one, whose entry a crash cut off:
    what the sources give now, after the record of that entry."""
    return canonical(compute_record(run, last["record_sha256"])) == text


def kept_file(folder: Path, sha256: str) -> Path:
    """Where a record that was replaced lies."""
    return folder / KEPT / f"{sha256[:16]}.json"


def _keep(folder: Path, data: bytes) -> None:
    path = kept_file(folder, _digest(data))
    path.parent.mkdir(exist_ok=True)
    replace_file(path, data)


def _missing_sources(folder: Path, last: Mapping[str, Any] | None, old: Mapping[str, Any]) -> list[str]:
    """The files that the last record names and that are not there; its entry names them too, should it be gone."""
    chain = old.get("chain")
    files = chain.get("files") if isinstance(chain, dict) else None
    named = {*(files if isinstance(files, dict) else ()), *((last or {}).get("sources") or ())}
    return sorted(name for name in named if not (folder / name).exists())


def _declared_away(folder: Path) -> bool:
    """Whether a run that had a series by the hour was resumed under a spec without one, whose run took it out."""
    energy = _spec(folder).get("energy")
    return isinstance(energy, dict) and energy.get("grid_series") is None and energy.get("grid_zone") is None


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        old = json.loads(data)
    except ValueError:
        return {}
    return old if isinstance(old, dict) else {}


def _append(
    folder: Path,
    last: Mapping[str, Any] | None,
    record: Mapping[str, Any],
    text: str,
    reason: str,
    old: Mapping[str, Any],
    replaced: Mapping[str, Any],
) -> None:
    now = time.time()
    found = differences(old, json.loads(text)) if old else ()
    changes = [f"{field}: {short(was)}, now {short(is_now)}" for field, was, is_now in found]
    entry = {
        "record_sha256": hash_of_text(text),
        "previous_sha256": last["record_sha256"] if last else None,
        "previous_entry_sha256": last["entry_sha256"] if last else None,
        "time_unix_s": now,
        "time": datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "reason": reason,
        "hoofprint": program_version(),
        "schema": record["schema"],
        "changed": changes[:MOST_CHANGES],
        "changed_fields": len(changes),
        "sources": sorted(record["chain"]["files"]),
        **replaced,
    }
    entry["entry_sha256"] = _seal(entry)
    path = folder / ENTRIES
    torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    with open(path, "a", encoding="utf-8") as file:
        file.write(("\n" if torn else "") + _line(entry) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _what_changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The sources that differ between two records; none differ when the program computes otherwise than before."""
    before, after = old.get("chain") or {}, new["chain"]
    if not before:
        return "recomputed; the record before cannot be read, so what has changed since is not known"
    parts = [(name, before.get("files", {}).get(name), about) for name, about in after["files"].items()]
    parts += [(f"run.json: {key}", before.get("run", {}).get(key), digest) for key, digest in after["run"].items()]
    tables = before.get("tables") or after["tables"]  # a record from before they were named
    parts += [(f"table {name}", tables.get(name), about) for name, about in after["tables"].items()]
    changed = [name for name, was, is_now in parts if was != is_now]
    changed += [name for name in before.get("files", {}) if name not in after["files"]]
    return f"recomputed; changed: {', '.join(changed)}" if changed else "recomputed by another version of the program"


class Difference(NamedTuple):
    """A field in which two records differ, with its values; ABSENT where one of them has no such field."""

    field: str
    old: Any
    new: Any


def differences(old: Any, new: Any, place: str = "") -> Iterator[Difference]:
    """Each field in which two records differ, `chain` left out."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new} - (set() if place else {"chain"})):
            inner = f"{place}.{key}" if place else str(key)
            yield from differences(old.get(key, ABSENT), new.get(key, ABSENT), inner)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (was, is_now) in enumerate(zip(old, new, strict=True)):
            yield from differences(was, is_now, f"{place}[{_name(was, number)}]")
    elif type(old) is not type(new) or old != new:
        yield Difference(place, old, new)


def _name(item: Any, number: int) -> str:
    """How people call an item of a list: a device by its UUID, a phase or a factor by its name."""
    keys = ("uuid", "phase", "key") if isinstance(item, Mapping) else ()
    return next((str(item[key]) for key in keys if key in item), str(number))


def short(value: Any) -> str:
    """A value of a record on a part of a line."""
    if value is ABSENT:
        return "nothing"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
