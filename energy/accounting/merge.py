"""Several runs together: each joule of a device once, however many meters saw it.

Two `measure` commands side by side on a node each meter the whole of its devices, and each is right about its own
time. Their sum is not: where their times overlap, the joules are the same joules. Two MIG instances of one GPU are
parts of it beside each other: there the shares add up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from energy.accounting.account import with_shared_devices
from energy.accounting.curves import Curve, curve_of
from energy.accounting.placement import is_others, own_stretches
from energy.accounting.stretches import Machines, Stretch, join, unite
from energy.accounting.union import WHOLE, Owner, Piece, pieces_of, union_j
from energy.accounting.whole_node import incredible, rests
from energy.ledger.readings import is_fine, read_sessions
from energy.runs import RunFolder


@dataclass
class MergedDevice:
    """A device's energy in J over the union of the times in which it was metered, and what overlapped in J; of a sensor
    of a whole node what it has beyond the node's other devices."""

    uuid: str
    name: str
    node: str
    kind: str
    method: str
    energy_j: float
    overlap_j: float
    runs: list[str]


@dataclass
class _Machine:
    """What was metered on one machine, by whichever runs: the pieces of each device, those that belonged to nobody in a
    run included, and what sensors of the whole of it read: (key, description, curves, run)."""

    parts: dict[str, list[Piece]] = field(default_factory=dict)
    whole: list[tuple[str, dict[str, Any], list[Curve], str]] = field(default_factory=list)

    def of(self, run: str) -> _Machine:
        """What one run has seen of it."""
        parts = {key: [piece for piece in pieces if piece.owner.run == run] for key, pieces in self.parts.items()}
        return _Machine(parts, [whole for whole in self.whole if whole[3] == run])

    def rests_j(self) -> dict[str, float]:
        """What the machine has beyond its parts in J, by the sensor that told it: each moment once, and of every part
        the energy that is in the sensor's reading, whichever run metered it."""
        found: dict[str, float] = {}
        for rest in rests([curves for _, _, curves, _ in self.whole], []):
            spans = [(float(curve.time_unix_s[0]), float(curve.time_unix_s[-1])) for curve in rest.curves]
            parts = [
                (pieces[0].owner.method, not any(piece.owner.is_own for piece in pieces), union_j(pieces, spans))
                for pieces in self.parts.values()
                if pieces
            ]
            if incredible(rest.reading_j, parts) is None:
                key = self.whole[rest.sensor][0]
                inside_j = math.fsum(used_j for _, _, used_j in parts)
                found[key] = found.get(key, 0.0) + rest.reading_j - inside_j
        return found


@dataclass
class Merged:
    """The devices of several runs. `energy_j` is the union's; `overlap_j` is what a plain sum would count again. What
    was found wrong is in `warnings`."""

    devices: list[MergedDevice] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def energy_j(self) -> float:
        return math.fsum(device.energy_j for device in self.devices)

    @property
    def overlap_j(self) -> float:
        return math.fsum(device.overlap_j for device in self.devices)


def merge(runs: Iterable[RunFolder], *, until_unix_s: Mapping[Path, float] | None = None) -> Merged:
    """The devices of several runs, each joule once, by their seconds where these are not too large together.

    until_unix_s: of a run by its folder, the moment after which nothing of it counts.

    Runs on several MIG instances of one GPU each stand for their share of it: together they have the sum of the shares
    of the instances that were metered at a time, at most the whole GPU.
    """
    merged, machines, runs = Merged(), Machines(), list(runs)
    if not (fine := is_fine(path for run in runs for path in run.ledgers())):
        merged.warnings.append("runs are told apart by rows a minute apart: the finer files are too large together")
    pieces: dict[str, list[Piece]] = {}
    about: dict[str, dict] = {}
    metered_by: dict[str, list[str]] = {}
    nodes: dict[str, _Machine] = {}
    for run in runs:
        end_unix_s = (until_unix_s or {}).get(run.path, math.inf)
        for group in with_shared_devices(run.ledgers()):
            stretches: dict[str, list[Stretch]] = {}
            for path in group:
                sessions, damaged = read_sessions(path, fine=fine)
                merged.warnings += [f"{run.path.name}/{text}" for text in damaged]
                for session in own_stretches(sessions, path.stem, []):
                    if session.span()[0] >= end_unix_s:
                        continue
                    for place, sensor in enumerate(session.sensors):
                        curve = curve_of(place, session).between(-math.inf, end_unix_s)
                        stretch = (sensor, session, curve, path.name)
                        stretches.setdefault(machines.key(sensor, session.header), []).append(stretch)
            for key, sensor, own, is_own in _devices(run, stretches, machines, nodes):
                if is_own:
                    about.setdefault(key, sensor)
                    pieces.setdefault(key, []).extend(own)
                    metered_by.setdefault(key, []).append(run.path.name)
    for key, own_pieces in pieces.items():
        energy_j, seen_j = union_j(own_pieces), _seen_j(own_pieces)
        merged.devices.append(_merged(about[key], energy_j, max(0.0, seen_j - energy_j), metered_by[key]))
    for machine in nodes.values():
        by_run = [machine.of(run).rests_j() for run in dict.fromkeys(whole[3] for whole in machine.whole)]
        told = machine.rests_j()
        for key, sensor, _, _ in {whole[0]: whole for whole in reversed(machine.whole)}.values():
            energy_j, seen_j = told.get(key, 0.0), math.fsum(rests_j.get(key, 0.0) for rests_j in by_run)
            runs_of = [run for found, _, _, run in machine.whole if found == key]
            merged.devices.append(_merged(sensor, energy_j, max(0.0, seen_j - energy_j), runs_of))
    return merged


def _seen_j(pieces: list[Piece]) -> float:
    """What each run that has pieces of a device counts of it, all together in J."""
    runs = dict.fromkeys(piece.owner.run for piece in pieces)
    return math.fsum(union_j([piece for piece in pieces if piece.owner.run == run]) for run in runs)


def _merged(sensor: dict[str, Any], energy_j: float, overlap_j: float, runs: list[str]) -> MergedDevice:
    named = {each: sensor[each] for each in ("uuid", "name", "node", "kind", "method")}
    return MergedDevice(**named, energy_j=energy_j, overlap_j=overlap_j, runs=list(dict.fromkeys(runs)))


def _devices(
    run: RunFolder, stretches: dict[str, list[Stretch]], machines: Machines, nodes: dict[str, _Machine]
) -> Iterator[tuple[str, dict[str, Any], list[Piece], bool]]:
    """(what tells it from others in all runs, description, pieces, whether it was the run's own) of a run's devices;
    they and the sensors of whole nodes are put beside those of the same machine in `nodes`."""
    used, name = run.devices_used(), run.path.name
    for own in unite(stretches):
        header = own[0][1].header
        sensor, curves, gaps = join(own, [])
        key = sensor["uuid"] if sensor["kind"] == "gpu" else machines.key(sensor, header)
        machine = nodes.setdefault(machines.node(header), _Machine())
        if sensor["kind"] == "node":
            machine.whole.append((key, sensor, curves, name))
            continue
        parts = dict(sensor.get("instances") or {WHOLE: float(sensor.get("share", 1.0))})
        is_own = not is_others(sensor, [stretch[1] for stretch in own], used)
        pieces = pieces_of(curves, gaps, Owner(name, parts, sensor["method"], is_own))
        machine.parts.setdefault(key, []).extend(pieces)
        yield key, sensor, pieces, is_own
