"""The account of a run: joules by device, phase and attempt, from the ledgers and the marks of rank 0 alone.

Each device has a curve of cumulative energy (energy.accounting.curves). A phase's energy is that of the curves at
its spans' ends less that at their starts; phases, `unattributed` and `gap` sum to the total exactly, and so do the
attempts. The energy is that between `start_unix_s` and `end_unix_s`, to which the curves are cut
(energy.ledger.readings.Session.span); with several nodes, each has its own start and end, and these are the first and
the last.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from energy.accounting.curves import Array, Curve, Gap, curve_of, power_of
from energy.accounting.lost_meters import mark_lost
from energy.accounting.phases import UNATTRIBUTED, PhaseEnergy, Timeline, by_phase, disjoint, overlay, union_s
from energy.accounting.placement import gpus_held, is_others, own_stretches
from energy.accounting.stretches import Machines, Stretch, join, unite
from energy.accounting.uncertainty import Part, share_of
from energy.accounting.whole_node import Line, Straight, incredible, missing_s, rests, unread
from energy.ledger.readings import Session, first_devices, is_fine, read_sessions
from energy.runs import RunFolder

SLOT_S = 300.0  # grid intensities hold for five minutes or more
LOST, IDLE_DEVICES, GAP, COMPILE = "lost", "idle_devices", "gap", "compile"
USEFUL = ("train_step",)  # not `compile`, the first step of an attempt whose model is compiled: that is start-up


@dataclass
class DeviceEnergy:
    """Energy of one device over the run in J.

    `gap_s`: time in s in which nothing was read from it. `metered_s`: time in s that its energy is of, None where that
    is not known. `doubt_j`: half width of what sampled power may have missed.
    `counter_to_power`: what its counter says over what its integrated power says, None where one of them is missing.
    `in_node_j`: what of its energy a sensor of the whole node has read too; of the rest of the node, less than none, by
    what its sensor read of other devices. `taken_out`: the parts of that which are in no total.
    """

    uuid: str
    name: str
    node: str
    kind: str
    boundary: str
    method: str
    energy_j: float
    samples: int
    gap_s: float
    doubt_j: float = 0.0
    integrated_j: float = 0.0
    counter_to_power: float | None = None
    in_node_j: float = 0.0
    taken_out: list[Part] = field(default_factory=list)
    metered_s: float | None = None


@dataclass
class Account:
    """Joules of a run. `phases` {name: {energy_j, seconds, standard_error_j, method}} and `attempts` both sum to
    `energy_j`. Of a node with a sensor of its own, the device `rest of the node` is that less all other devices, where
    it was read."""

    devices: list[DeviceEnergy] = field(default_factory=list)
    phases: dict[str, dict[str, Any]] = field(default_factory=dict)
    attempts: list[dict[str, float]] = field(default_factory=list)
    power: list[tuple[str, Array, Array]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    start_unix_s: float | None = None
    end_unix_s: float | None = None
    overhead: dict[str, Any] = field(default_factory=dict)
    cut_off: int = 0  # stretches of metering that have not said what the metering itself took
    compiling: list[tuple[float, float]] = field(default_factory=list)  # spans in unix s
    nodes: list[str] = field(default_factory=list)  # all that were metered
    other_nodes: list[str] = field(default_factory=list)  # metered, but no rank of the run was ever there
    curve: tuple[Array, Array] | None = None  # all devices: unix s on the five minutes, cumulative J

    @property
    def energy_j(self) -> float:
        """All devices, over the whole metered time, gaps included."""
        return math.fsum(device.energy_j for device in self.devices)

    @property
    def useful_j(self) -> float:
        """Energy of training steps whose result was kept, without those by which the model was compiled."""
        return math.fsum(self.phases[name]["energy_j"] for name in USEFUL if name in self.phases)


@dataclass
class _Books:
    """What is summed up over the ledgers."""

    timeline: Timeline
    phases: dict[str, list[PhaseEnergy]] = field(default_factory=dict)
    attempts: dict[int, list[float]] = field(default_factory=dict)
    windows: list[tuple[int, float, float]] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    seen: dict[str, str] = field(default_factory=dict)  # the ledger that each device was found in
    slots: dict[int, list[float]] = field(default_factory=dict)  # J by slot of SLOT_S since 1970
    metered: list[tuple[DeviceEnergy, list[Session]]] = field(default_factory=list)
    nodes: dict[str, bool] = field(default_factory=dict)  # those that were metered, and whether they were the run's
    machines: Machines = field(default_factory=Machines)


def account_run(run: RunFolder, *, fine: bool | None = None) -> Account:
    """The account of a run folder. What is damaged or missing is a warning, never an exception.

    fine: read the seconds and raw files too (else a row a minute); None: where they are not too large together.
    """
    account = Account()
    phases = run.phases()
    account.compiling = [(span["start_unix_s"], span["end_unix_s"]) for span in phases if span["phase"] == COMPILE]
    spans = overlay(disjoint(phases), LOST, lost_windows(run.steps(), phases))
    books = _Books(Timeline(spans))
    edges = [edge for _, start, end in spans for edge in (start, end)]
    ledgers = run.ledgers()
    if fine is None:
        fine = is_fine(ledgers)
        if not fine:
            account.warnings.append("phases are told by rows a minute apart: the finer files are too large together")
    used, in_turns = gpus_held(run)
    for group in with_shared_devices(ledgers):
        found: dict[str, list[Stretch]] = {}
        for path in group:
            sessions, damaged = read_sessions(path, fine=fine, around=edges or None)
            account.damaged += damaged
            own = own_stretches(sessions, path.stem, account.warnings, in_turns)
            books.nodes |= {session.header["node"]: False for session in sessions} | books.nodes
            books.nodes |= {session.header["node"]: True for session in own}
            _collect(account, books, path, own, found)
        nodes: dict[str, list[list[Stretch]]] = {}
        for stretches in unite(found):
            nodes.setdefault(books.machines.node(stretches[0][1].header), []).append(stretches)
        for devices in nodes.values():
            _add_node(account, books, devices, used)
    account.warnings += account.damaged
    account.nodes = sorted(books.nodes)
    account.other_nodes = sorted(node for node, own in books.nodes.items() if not own)
    if not books.windows:
        account.warnings.append("nothing was metered: no reading in the run's ledgers")
        return account
    account.start_unix_s = min(start for _, start, _ in books.windows)
    account.end_unix_s = max(end for _, _, end in books.windows)
    account.warnings += mark_lost(books.metered, books.windows, run.devices_by_attempt(), fine)
    account.attempts = _attempts(books)
    account.phases = _phases(books, account)
    account.curve = _curve(books) if books.slots else None
    return account


def with_shared_devices(ledgers: list[Path]) -> list[list[Path]]:
    """Ledgers that have a device in common, by their first headers, together; most stand alone.

    Only one group's curves are in memory at a time: 256 nodes of a long run would not fit.
    """
    groups: list[tuple[set[str], list[Path]]] = []
    for path in ledgers:
        uuids, paths = first_devices(path), [path]
        for group in [group for group in groups if group[0] & uuids]:
            groups.remove(group)
            uuids, paths = uuids | group[0], group[1] + paths
        groups.append((uuids, paths))
    return [paths for _, paths in groups]


def lost_windows(steps: list[dict[str, Any]], phases: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """Time whose steps a later attempt did again: from the last step that was kept to the end of the attempt.

    Any later one: where the newest checkpoint is damaged an older one is taken, from before the attempt in between.
    """
    attempts: dict[int, list[dict[str, Any]]] = {}
    for step in steps:
        attempts.setdefault(int(step.get("attempt") or 1), []).append(step)
    numbers = sorted(attempts)
    windows = []
    for number, following in zip(numbers, numbers[1:], strict=False):
        again = min(attempts[later][0]["step"] for later in numbers if later > number)
        kept = [step["time_unix_s"] for step in attempts[number] if step["step"] < again]
        lost = [step for step in attempts[number] if step["step"] >= again]
        if lost:
            start = max(kept) if kept else lost[0]["time_unix_s"] - (lost[0].get("seconds") or 0.0)
            ends = [span["end_unix_s"] for span in phases if span.get("attempt") == number]
            next_began = attempts[following][0]["time_unix_s"] - (attempts[following][0].get("seconds") or 0.0)
            windows.append((start, min(max([*ends, lost[-1]["time_unix_s"]]), next_began)))
    return windows


def _collect(
    account: Account, books: _Books, path: Path, sessions: list[Session], found: dict[str, list[Stretch]]
) -> None:
    """Put the curves of a ledger beside those of the same devices in other ledgers."""
    ends = [event for session in sessions for event in session.events if event.get("overhead")]
    account.cut_off += len(sessions) - len(ends)
    if ends:
        told, sofar = [event["overhead"] for event in ends], account.overhead
        counts = {each.get("cpu_counts", "one thread of the meter") for each in told} | {sofar.get("cpu_counts")}
        sofar["cpu_counts"] = "; ".join(sorted(filter(None, counts)))
        sofar["cpu_s"] = sofar.get("cpu_s", 0.0) + math.fsum(each["cpu_s"] for each in told)
        sofar["cores"] = sofar.get("cores", 0) + max(each["cores"] for each in told)
        sofar["peak_memory_mb"] = max([sofar.get("peak_memory_mb", 0.0), *(each["peak_memory_mb"] for each in told)])
    for session in sessions:
        if session.later_s:
            account.warnings.append(f"{path.name}: its clock had been set back: {session.later_s:.1f} s are added")
        books.windows += _windows(session)
        for place, about in enumerate(session.sensors):
            key = books.machines.key(about, session.header)
            if key not in found and key in books.seen:
                account.warnings.append(
                    f"{about['uuid']} came up late in {path.name}, and is in {books.seen[key]}: counted once"
                )
                continue
            found.setdefault(key, []).append((about, session, curve_of(place, session), path.name))
    books.seen |= dict.fromkeys(found, path.name)


def _add_node(account: Account, books: _Books, devices: list[list[Stretch]], used: set[str]) -> None:
    """Book the devices of one node; a sensor of the whole node adds what it has beyond them."""
    found = [(*join(stretches, account.warnings), [stretch[1] for stretch in stretches]) for stretches in devices]
    node = found[0][0]["node"]
    inside: list[tuple[DeviceEnergy, list[Line]]] = []
    others: dict[str, float] = {}
    for about, curves, gaps, sessions in found:
        if about["kind"] == "node":
            continue
        device = _device_energy(about, curves, gaps)
        inside.append((device, [*curves, *map(Straight.over, gaps)]))
        if is_others(about, sessions, used):
            others[device.uuid] = device.energy_j
            continue
        _book(books, curves, gaps, bool(used) and about["kind"] == "gpu" and about["uuid"] not in used)
        account.devices.append(device)
        account.power.append((about["uuid"], *power_of(curves)))
        books.metered.append((device, sessions))
    if others:
        account.warnings.append(
            f"{node}: {len(others)} GPUs of this shared node were held by no rank of this run: their "
            f"{math.fsum(others.values()):.0f} J are not in the total; its CPUs and memory are, whoever used them"
        )
    whole = [(about, curves) for about, curves, _, _ in found if about["kind"] == "node"]
    if whole:
        spans = [session.span() for about, _, _, sessions in found if about["kind"] == "node" for session in sessions]
        _add_rests(account, books, whole, inside, others, union_s(spans))


def _book(books: _Books, curves: list[Curve], gaps: list[Gap], idle: bool = False) -> None:
    for curve in curves:
        told = by_phase(curve.time_unix_s, curve.booked_j, books.timeline)
        if idle:
            energy_j = math.fsum(part.energy_j for part in told.values())
            told = {IDLE_DEVICES: PhaseEnergy(energy_j, 0.0)}
        for name, part in told.items():
            books.phases.setdefault(name, []).append(part)
        for attempt, energy_j in curve.by_attempt():
            books.attempts.setdefault(attempt, []).append(energy_j)
        _add_to_slots(books, curve.time_unix_s, curve.booked_j)
    for gap in gaps:
        _add_to_slots(books, np.array([gap.start_unix_s, gap.end_unix_s]), np.array([0.0, gap.energy_j]))
        books.phases.setdefault(GAP, []).append(PhaseEnergy(gap.energy_j, 0.0))
        books.attempts.setdefault(gap.attempt, []).append(gap.energy_j)
        books.gaps.append(gap)


def _add_to_slots(books: _Books, times: Array, cumulative_j: Array) -> None:
    first, last = int(times[0] // SLOT_S), int(times[-1] // SLOT_S)
    if len(times) == 1:
        books.slots.setdefault(first, []).append(float(cumulative_j[0]))
        return
    edges = np.arange(first, last + 2) * SLOT_S
    for slot, energy_j in enumerate(np.diff(np.interp(edges, times, cumulative_j)).tolist(), start=first):
        books.slots.setdefault(slot, []).append(energy_j)


def _curve(books: _Books) -> tuple[Array, Array]:
    slots = sorted(books.slots)
    numbers = range(slots[0], slots[-1] + 1)
    used = [math.fsum(books.slots.get(number, ())) for number in numbers]
    edges = np.array([number * SLOT_S for number in [*numbers, slots[-1] + 1]], dtype=float)
    return edges, np.concatenate([[0.0], np.cumsum(used)])


def _add_rests(
    account: Account,
    books: _Books,
    whole: list[tuple[dict[str, Any], list[Curve]]],
    inside: list[tuple[DeviceEnergy, list[Line]]],
    others: Collection[str],
    metered_s: float,
) -> None:
    """Book what a node has beyond its devices, as its own sensors tell it; `others`: devices in no total."""
    told = rests([curves for _, curves in whole], [curves for _, curves in inside])
    for rest in told:
        about, curves = whole[rest.sensor]
        parts = [(part.method, part.uuid in others) for part, _ in inside]
        fault = incredible(rest.reading_j, [(*part, used) for part, used in zip(parts, rest.inside_j, strict=True)])
        if fault is not None:
            account.warnings.append(f"{about['name']} ({about['uuid']}) {fault}")
            continue
        _book(books, rest.curves, [])
        device = _device_energy({**about, "name": f"rest of the node, by {about['name']}"}, curves, [])
        device.energy_j = math.fsum(curve.energy_j for curve in rest.curves)
        device.doubt_j = math.fsum(curve.doubt_j for curve in rest.curves)
        device.metered_s = rest.known_s
        if device.gap_s > 0 or (rest is told[0] and missing_s(told, metered_s)):
            # It is missing since its last answer, not since somebody noticed.
            device.gap_s = max(0.0, metered_s - rest.known_s)
        device.in_node_j = -math.fsum(rest.inside_j)
        for (part, _), inside_j in zip(inside, rest.inside_j, strict=True):
            part.in_node_j += inside_j
            if part.uuid in others:
                device.taken_out.append((part.method, -inside_j, part.doubt_j * share_of(inside_j, part.energy_j)))
        account.devices.append(device)
        account.power.append((about["uuid"], *power_of(rest.curves)))
        if device.energy_j < 0:
            account.warnings.append(
                f"{about['name']} ({about['uuid']}) shows {-device.energy_j:.0f} J less than its parts: one of them is "
                "wrong"
            )
    account.warnings += unread(
        [(f"{about['name']} ({about['uuid']})", curves) for about, curves in whole], told, metered_s
    )


def _device_energy(about: dict[str, Any], curves: list[Curve], gaps: list[Gap]) -> DeviceEnergy:
    counter_j, held_j = (math.fsum(getattr(curve, key) for curve in curves) for key in ("counter_j", "held_j"))
    method = "assumed" if about.get("share", 1.0) < 1.0 else about["method"]
    return DeviceEnergy(
        **{key: about[key] for key in ("uuid", "name", "node", "kind", "boundary")},
        method=method,
        energy_j=math.fsum([curve.energy_j for curve in curves] + [gap.energy_j for gap in gaps]),
        samples=sum(curve.samples for curve in curves),
        gap_s=math.fsum([curve.gap_s for curve in curves] + [g.end_unix_s - g.start_unix_s for g in gaps]),
        doubt_j=math.fsum(curve.doubt_j for curve in curves),
        integrated_j=math.fsum(curve.integrated_j for curve in curves),
        counter_to_power=counter_j / held_j if counter_j > 0 and held_j > 0 else None,
        metered_s=math.fsum(
            [curve.known_s for curve in curves] + [g.end_unix_s - g.start_unix_s for g in gaps if g.energy_j > 0]
        ),
    )


def _windows(session: Session) -> list[tuple[int, float, float]]:
    """(attempt, start, end in unix s) of each attempt in a stretch."""
    times, attempts = session.times(), session.ticks["attempt"]
    start, end = session.span()
    found = [(int(a), float(times[attempts == a][0]), float(times[attempts == a][-1])) for a in np.unique(attempts)]
    found[0] = (found[0][0], start, found[0][2])
    found[-1] = (found[-1][0], found[-1][1], max(found[-1][1], end))
    return [(attempt, max(begun, start), max(ended, start)) for attempt, begun, ended in found]


def _phases(books: _Books, account: Account) -> dict[str, dict[str, Any]]:
    """Energy in J by phase over all devices, rank 0's time in s in it, clipped to the metered window."""
    assert account.start_unix_s is not None and account.end_unix_s is not None
    seconds: dict[str, list[float]] = {}
    for phase, start, end in books.timeline.spans:
        inside_s = min(end, account.end_unix_s) - max(start, account.start_unix_s)
        if inside_s > 0:
            seconds.setdefault(phase, []).append(inside_s)
    if books.gaps:
        # Devices of several nodes have the same gap at slightly different times: their union stands for it.
        seconds[GAP] = [union_s([(gap.start_unix_s, gap.end_unix_s) for gap in books.gaps])]
    known_s = math.fsum(part for parts in seconds.values() for part in parts)
    seconds[UNATTRIBUTED] = [max(0.0, account.end_unix_s - account.start_unix_s - known_s)]
    names = sorted(set(books.phases) | set(seconds))
    parts = {name: books.phases.get(name, []) for name in names}
    return {
        name: {
            "energy_j": math.fsum(part.energy_j for part in parts[name]),
            "seconds": math.fsum(seconds.get(name, [])),
            "standard_error_j": math.sqrt(math.fsum(part.standard_error_j**2 for part in parts[name])),
            "method": "regression" if any(part.method == "regression" for part in parts[name]) else "direct",
        }
        for name in names
    }


def _attempts(books: _Books) -> list[dict[str, float]]:
    """Per attempt its energy in J (a gap belongs to the attempt that it ended) and its metered window."""
    attempts: list[dict[str, float]] = []
    for attempt in sorted(set(books.attempts) | {number for number, _, _ in books.windows}):
        own = [(start, end) for number, start, end in books.windows if number == attempt]
        start, end = min(s for s, _ in own), max(e for _, e in own)
        attempts.append(
            {
                "attempt": attempt,
                "energy_j": math.fsum(books.attempts.get(attempt, [])),
                "seconds": end - start,
                "start_unix_s": start,
                "end_unix_s": end,
            }
        )
    return attempts
