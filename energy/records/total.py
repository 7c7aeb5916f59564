"""A project's total: all runs of a folder by what they were for, each joule once, and what is missing named.

A final run is the least part of what a model took: LLaMA's four final runs are a third of its development (Table 15
and section 6 of the paper). The total therefore has failed, development and evaluation runs in it by name. Of each
figure only what is known is summed, and beside the sum stands the number of runs for which it is not: such a sum is a
lower bound and says so.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from energy.accounting.merge import merge
from energy.boundaries import SHARES
from energy.ledger.readings import first_devices
from energy.records.record import FILE_NAME
from energy.run_holder import is_held
from energy.run_version import require_known as require_known_run
from energy.runs import MEASURE, RunFolder
from energy.schemas import require_known
from energy.units import JOULE_PER_KWH

PURPOSES = ("final", "development", "failed", "evaluation", "measure")
NOT_SAID = "not said"
FAILED = ("failed", "lost")
# What reading files of another shape leads to, down to a number of 400 digits and lists that are nested 10,000 deep.
BROKEN = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)
SUMMED = ("energy_it_kwh", "energy_facility_kwh", "carbon_tco2eq", "embodied_tco2eq", "gpu_hours", "compute_flop")


@dataclass
class Entry:
    """One run as its files tell of it, without computing anything. Figures that are not known are None.

    start_unix_s and end_unix_s bound its time; `devices` are the UUIDs that it metered, `gpus` the GPUs' among them.
    boundary, shares: of its energy (energy.boundaries). went_on: since its record was written, which knows it up to
    end_unix_s. `note` says what is wrong.
    """

    name: str
    path: Path
    status: str
    purpose: str
    start_unix_s: float | None = None
    end_unix_s: float | None = None
    tokens: float | None = None
    loss: float | None = None
    gpu_hours: float | None = None
    compute_flop: float | None = None
    energy_it_kwh: float | None = None
    energy_facility_kwh: float | None = None
    carbon_tco2eq: float | None = None
    embodied_tco2eq: float | None = None
    devices: frozenset[str] = frozenset()
    gpus: frozenset[str] = frozenset()
    boundary: str | None = None
    shares: Mapping[str, float | None] = field(default_factory=dict)
    has_record: bool = False
    went_on: bool = False
    note: str = ""

    @property
    def group(self) -> str:
        """Under what its energy is summed up: a run that failed is its own kind, whatever it was meant for."""
        return "failed" if self.status in FAILED else self.purpose

    def as_json(self) -> dict[str, Any]:
        keys = ("name", "status", "purpose", "start_unix_s", "end_unix_s", "tokens", "loss", *SUMMED, "note")
        return {key: getattr(self, key) for key in keys} | {"path": str(self.path)}


@dataclass
class RunList:
    """The runs of a folder, oldest first, and what else lies there: broken or foreign folders by name and reason."""

    entries: list[Entry] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def read_runs(directory: Path) -> RunList:
    """Every run in a folder, from its run.json and footprint.json alone. ValueError when there is no such folder."""
    if not directory.is_dir():
        raise ValueError(f"{directory}: no such folder; give the folder that holds the runs: --runs DIR")
    found = RunList()
    for path in sorted(directory.iterdir()):
        if not path.is_dir() or path.name.startswith("."):
            continue
        try:
            found.entries.append(read_entry(path))
        except FileNotFoundError:
            found.left_out.append(f"{path.name}: not a run, it has no run.json")
        except (OSError, *BROKEN) as error:
            text = str(error).removeprefix(f"{path}/")
            found.left_out.append(f"{path.name}: cannot be read ({text})")
    found.entries.sort(key=lambda entry: (entry.start_unix_s or math.inf, entry.name))
    return found


def read_entry(path: Path) -> Entry:
    """One run. FileNotFoundError without a run.json; ValueError for one that holds no JSON object."""
    run, record = RunFolder(path).read_run(), _read_record(path)
    created, status = run.get("created_unix_s"), str(run.get("status") or "not known")
    was_lost = status == "running" and not is_held(path, look_only=True)
    entry = Entry(
        name=path.name,
        path=path,
        status="lost" if was_lost else status,
        purpose=str(run.get("purpose") or NOT_SAID),
        start_unix_s=None if created is None else float(created),
        end_unix_s=run.get("ended_unix_s"),
    )
    try:
        require_known_run(path, {"run.json": run, FILE_NAME: None if isinstance(record, Exception) else record})
    except ValueError as newer:
        entry.note = str(newer)
        return entry
    try:
        if isinstance(record, Exception):
            raise record
        require_known(record)
        _take(entry, record)
        entry.went_on = run.get("ended_unix_s") != entry.end_unix_s
    except FileNotFoundError:
        entry.note = "no record"
    except (OSError, *BROKEN) as error:
        entry.note = f"record unreadable: {error}"
    if was_lost:
        why = f"its process ended without a word; write what it took: hoofprint report {path}"
        entry.note = f"{entry.note}; {why}" if entry.note else why
    return entry


def _read_record(path: Path) -> Any:
    """What footprint.json holds, or why it cannot be read."""
    try:
        return json.loads((path / FILE_NAME).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        return error


def _take(entry: Entry, record: Mapping[str, Any]) -> None:
    data, energy, time = record["data"], record["energy"], record["time"]
    loss = data["validation_loss"]
    entry.tokens, entry.loss = data["tokens_trained"], data["training_loss"] if loss is None else loss
    entry.energy_it_kwh, entry.energy_facility_kwh = energy["energy_it_kwh"], energy["energy_facility_kwh"]
    entry.boundary, entry.shares = energy["boundary"], {key: energy[key] for key in SHARES}
    entry.carbon_tco2eq = record["carbon"]["carbon_tco2eq"]
    entry.embodied_tco2eq = record["embodied"]["carbon_tco2eq"]
    entry.gpu_hours, entry.compute_flop = time["gpu_hours"], record["compute"]["compute_flop"]
    entry.start_unix_s, entry.end_unix_s = time["started_unix_s"], time["ended_unix_s"]
    entry.devices = frozenset(device["uuid"] for device in record["hardware"]["devices"])
    entry.gpus = frozenset(device["uuid"] for device in record["hardware"]["devices"] if device.get("kind") == "gpu")
    entry.has_record = True


def _sum(entries: Sequence[Entry]) -> dict[str, Any]:
    """Each figure over the entries that know it (None when none does), and how many do not; of the IT energy what share
    was measured, modelled and assumed, and how many runs have which boundary."""
    found: dict[str, Any] = {"runs": len(entries)}
    for key in SUMMED:
        known = [float(value) for value in (getattr(entry, key) for entry in entries) if value is not None]
        found[key] = math.fsum(known) if known else None
        found[f"{key}_unknown_runs"] = len(entries) - len(known)
    metered = [(entry, float(entry.energy_it_kwh)) for entry in entries if entry.energy_it_kwh]
    sum_kwh = math.fsum(used_kwh for _, used_kwh in metered)
    for key in SHARES:
        parts = [used_kwh * (entry.shares.get(key) or 0.0) for entry, used_kwh in metered]
        found[key] = math.fsum(parts) / sum_kwh if sum_kwh else None
    found["boundaries"] = dict(sorted(Counter(entry.boundary or NOT_SAID for entry, _ in metered).items()))
    return found


def roll_up(entries: Sequence[Entry], overlap: Mapping[str, float] | None = None) -> dict[str, Any]:
    """The total of some runs: by purpose, over all, what is missing, and how many times the final runs it is.

    overlap: of each summed key what two runs metered at once, which the total has once (see `overlaps`).
    """
    groups = [*PURPOSES, *sorted({entry.group for entry in entries} - set(PURPOSES))]
    by_purpose = {name: _sum([entry for entry in entries if entry.group == name]) for name in groups}
    by_purpose = {name: part for name, part in by_purpose.items() if part["runs"]}
    total = _sum(entries)
    for key, twice in (overlap or {}).items():
        if total.get(key) is not None:
            total[key] -= twice
    final = by_purpose.get("final", {})
    return {
        "by_purpose": by_purpose,
        "overlap": dict(overlap or {}),
        "total": total,
        "total_to_final": {
            key: total[key] / final[key] if final.get(key) and total[key] is not None else None
            for key in ("energy_it_kwh", "energy_facility_kwh", "carbon_tco2eq", "gpu_hours")
        },
        "missing": missing(entries),
    }


def missing(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """What keeps the total from being whole: {what, runs by name}."""
    recorded = [entry for entry in entries if entry.has_record]
    measured = [entry for entry in recorded if entry.energy_it_kwh is not None]
    housed = [entry for entry in measured if entry.energy_facility_kwh is not None]
    found = [
        ("no record: nothing of them is in the total", [e for e in entries if not e.has_record]),
        ("still running: the total has what their record knew", [e for e in entries if e.status == "running"]),
        ("purpose not said: they are under none of the kinds", [e for e in entries if e.purpose == NOT_SAID]),
        ("nothing was measured: energy not known", [e for e in recorded if e.energy_it_kwh is None]),
        ("no PUE: facility energy and carbon not known", [e for e in measured if e.energy_facility_kwh is None]),
        ("no grid intensity: carbon not known", [e for e in housed if e.carbon_tco2eq is None]),
        ("no embodied figure: not in the total", [e for e in recorded if e.embodied_tco2eq is None]),
    ]
    return [{"what": what, "runs": [entry.name for entry in which]} for what, which in found if which]


# Of a ledger, which is only ever added to: its path and inode, when its run began, and the devices in its head.
Heads = dict[tuple[str, int, float | None], set[str]]


class Together:
    """Finds what two runs metered at once. Of each ledger and each group of runs it remembers what it found, so that a
    folder to which a run is added is not read again.

    looked, of: how far it is with the runs that were metered while another was; the others are not opened.
    """

    def __init__(self) -> None:
        self.looked = self.of = 0
        self._heads: Heads = {}
        self._merged: dict[tuple[Any, ...], float] = {}

    def overlaps(self, entries: Iterable[Entry]) -> dict[str, float]:
        """What two runs metered at once, in the units of the summed keys: from the ledgers of those runs alone.

        Facility energy and carbon of the overlap are in the same proportion to its IT energy as in the runs that share
        it. Of a measured command's GPU-hours and embodied carbon those parts are in it that another run has too.
        """
        twice: dict[str, list[float]] = {}
        merged: dict[tuple[Any, ...], float] = {}
        for cluster in self.clusters(entries):
            for key in ("gpu_hours", "embodied_tco2eq"):
                if held := _held_twice(cluster, key):
                    twice.setdefault(key, []).append(held)
            for key in ("energy_it_kwh", "energy_facility_kwh", "carbon_tco2eq"):
                summed = [entry for entry in cluster if getattr(entry, key) is not None]
                if len(summed) < 2:
                    continue  # the sum has one of them alone, and nothing twice
                which = tuple((str(e.path), e.energy_it_kwh, e.end_unix_s, e.went_on) for e in summed)
                if which not in merged:
                    merged[which] = self._merged[which] if which in self._merged else _overlap_kwh(summed)
                parts = _sum(summed)
                if merged[which] and parts["energy_it_kwh"]:
                    twice.setdefault(key, []).append(merged[which] * parts[key] / parts["energy_it_kwh"])
        self._merged = merged  # what is gone is forgotten
        return {key: math.fsum(values) for key, values in twice.items()}

    def clusters(self, entries: Iterable[Entry]) -> list[list[Entry]]:
        """Runs that metered a device at the same time, together; runs that share nothing with another are left out."""
        newest: dict[str, tuple[float, int]] = {}  # of each device: until when it is taken, and by which cluster
        joined: list[list[Entry]] = []
        found = _at_once(entries)
        self.looked, self.of = 0, len(found)
        heads: Heads = {}
        for entry in found:
            start, end = entry.start_unix_s or 0.0, entry.end_unix_s or 0.0
            devices = self._devices(entry, heads)
            self.looked += 1
            near = sorted({newest[uuid][1] for uuid in devices if uuid in newest and newest[uuid][0] > start})
            if near:
                home = near[0]
                for other in near[1:]:
                    joined[home] += joined[other]
                    joined[other] = []
                    newest = {uuid: (until, home if at == other else at) for uuid, (until, at) in newest.items()}
                joined[home].append(entry)
            else:
                home = len(joined)
                joined.append([entry])
            for uuid in devices:
                newest[uuid] = (max(end, newest.get(uuid, (end, home))[0]), home)
        self._heads = heads
        return [cluster for cluster in joined if len(cluster) > 1]

    def _devices(self, entry: Entry, heads: Heads) -> set[str]:
        """What a run metered, and on which machines: in containers of one machine its CPUs have several names. heads:
        takes what was found in its ledgers."""
        found = set(entry.devices)
        for path in RunFolder(entry.path).ledgers():
            which = (str(path), path.stat().st_ino, entry.start_unix_s)
            names = self._heads.get(which) or first_devices(path)
            if names:  # one that is empty so far is looked at again
                heads[which] = names
            found |= names
        return found


def _at_once(entries: Iterable[Entry]) -> list[Entry]:
    """The runs whose time overlaps with another's, by their start: by their records, and no ledger is opened."""
    timed = [entry for entry in entries if entry.start_unix_s is not None and entry.end_unix_s is not None]
    timed.sort(key=lambda entry: (entry.start_unix_s or 0.0, entry.name))
    nexts = [*(entry.start_unix_s or 0.0 for entry in timed[1:]), math.inf]
    found, taken_s = [], -math.inf
    for entry, next_s in zip(timed, nexts, strict=False):
        if taken_s > (entry.start_unix_s or 0.0) or next_s < (entry.end_unix_s or 0.0):
            found.append(entry)
        taken_s = max(taken_s, entry.end_unix_s or 0.0)
    return found


def _held_twice(cluster: Sequence[Entry], key: str) -> float:
    """What measured commands have of `gpu_hours` or `embodied_tco2eq` for GPUs that another run held in the same time.

    A run held its GPU-hours evenly over its time, and of a command's GPUs at most those that both metered; a command
    that comes first stands for what it has of its own alone.
    """
    known = [entry for entry in cluster if entry.gpu_hours and getattr(entry, key) is not None]
    known.sort(key=lambda entry: entry.purpose == MEASURE)  # of two commands the later one has nothing of its own
    twice, own = [], dict[str, float]()  # of a command the share that no run before it has
    for place, entry in enumerate(known):
        if entry.purpose != MEASURE:
            continue
        shared_h = 0.0
        for others, hours in _beside(entry, known[:place]):
            held = math.fsum(
                min(_gpus_held(other) * own.get(other.name, 1.0), len(other.gpus & entry.gpus)) for other in others
            )
            together = len(entry.gpus & frozenset().union(*(other.gpus for other in others)))
            shared_h += min(_gpus_held(entry), held, together) * hours
        share = shared_h / (entry.gpu_hours or 1.0)
        own[entry.name] = 1.0 - share
        twice.append(getattr(entry, key) * share)
    return math.fsum(twice)


def _span_h(entry: Entry) -> tuple[float, float]:
    return (entry.start_unix_s or 0.0) / 3600, (entry.end_unix_s or 0.0) / 3600


def _gpus_held(entry: Entry) -> float:
    """How many GPUs a run held in the mean over its time."""
    start_h, end_h = _span_h(entry)
    return (entry.gpu_hours or 0.0) / (end_h - start_h) if end_h > start_h else 0.0


def _beside(entry: Entry, others: Sequence[Entry]) -> list[tuple[list[Entry], float]]:
    """(the runs beside a run, for how many hours) of each part of its time."""
    start_h, end_h = _span_h(entry)
    edges = sorted({min(max(edge, start_h), end_h) for each in (entry, *others) for edge in _span_h(each)})
    return [
        ([each for each in others if _span_h(each)[0] <= begun < _span_h(each)[1]], ended - begun)
        for begun, ended in zip(edges, edges[1:], strict=False)
    ]


def _overlap_kwh(entries: Sequence[Entry]) -> float:
    # Of a run that went on the sum has what its record knew, and its ledgers more.
    until = {entry.path: entry.end_unix_s for entry in entries if entry.went_on and entry.end_unix_s is not None}
    return merge((RunFolder(entry.path) for entry in entries), until_unix_s=until).overlap_j / JOULE_PER_KWH


def clusters(entries: Iterable[Entry]) -> list[list[Entry]]:
    """`Together.clusters`, once."""
    return Together().clusters(entries)


def overlaps(entries: Iterable[Entry]) -> dict[str, float]:
    """`Together.overlaps`, once."""
    return Together().overlaps(entries)


def project_total(directory: Path) -> tuple[RunList, dict[str, Any]]:
    """(the runs of a folder, their total with each joule once)."""
    runs = read_runs(directory)
    return runs, roll_up(runs.entries, overlaps(runs.entries))
