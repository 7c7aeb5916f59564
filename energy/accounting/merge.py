"""Several runs together: each joule of a device once, however many meters saw it.

Two `measure` commands side by side on a node each meter the whole of its devices, and each is right about its own
time. Their sum is not: where their times overlap, the joules are the same joules. Two MIG instances of one GPU are
parts of it beside each other: there the shares add up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from energy.accounting.curves import Array, Curve, Gap, curve_of
from energy.accounting.placement import is_others, own_stretches
from energy.accounting.stretches import Machines, Stretch, join, unite
from energy.accounting.whole_node import rests
from energy.ledger.readings import Session, read_sessions
from energy.runs import RunFolder

WHOLE = "whole"  # of a device that is not parted into MIG instances


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
class Merged:
    """The devices of several runs. `energy_j` is the union's; `overlap_j` is what a plain sum would count again."""

    devices: list[MergedDevice] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)

    @property
    def energy_j(self) -> float:
        return math.fsum(device.energy_j for device in self.devices)

    @property
    def overlap_j(self) -> float:
        return math.fsum(device.overlap_j for device in self.devices)


@dataclass
class _Piece:
    """A stretch of one GPU or other device in one run: unix s, cumulative J of the whole of it, and what parts of it
    the run stands for: {MIG instance: its share}, or {WHOLE: 1}."""

    times: Array
    energy_j: Array
    parts: dict[str, float]
    run: str

    def energy_between_j(self, start: float, end: float) -> float:
        return float(np.interp(end, self.times, self.energy_j) - np.interp(start, self.times, self.energy_j))


def merge(runs: Iterable[RunFolder], *, fine: bool = True) -> Merged:
    """The devices of several runs, each joule once. What is damaged in a ledger is named.

    Runs on several MIG instances of one GPU each stand for their share of it: together they have the sum of the shares
    of the instances that were metered at a time, at most the whole GPU.
    """
    merged, machines = Merged(), Machines()
    pieces: dict[str, list[_Piece]] = {}
    about: dict[str, dict] = {}
    for run in runs:
        for path in run.ledgers():
            sessions, damaged = read_sessions(path, fine=fine)
            merged.damaged += [f"{run.path.name}/{text}" for text in damaged]
            for key, sensor, curves, gaps in _own_devices(run, path, sessions, machines):
                about.setdefault(key, sensor)
                parts = dict(sensor.get("instances") or {WHOLE: float(sensor.get("share", 1.0))})
                share = min(1.0, math.fsum(parts.values()))
                found = pieces.setdefault(key, [])
                for gap in gaps:
                    ends = np.array([gap.start_unix_s, gap.end_unix_s])
                    found.append(_Piece(ends, np.array([0.0, gap.energy_j]) / share, parts, run.path.name))
                for curve in curves:
                    found.append(_Piece(curve.time_unix_s, curve.booked_j / share, parts, run.path.name))
    for key, own_pieces in pieces.items():
        energy_j, overlap_j = _union(own_pieces)
        sensor = about[key]
        runs_of = list(dict.fromkeys(piece.run for piece in own_pieces))
        named = {each: sensor[each] for each in ("uuid", "name", "node", "kind", "method")}
        merged.devices.append(MergedDevice(**named, energy_j=energy_j, overlap_j=overlap_j, runs=runs_of))
    return merged


def _own_devices(
    run: RunFolder, path: Path, sessions: list[Session], machines: Machines
) -> Iterator[tuple[str, dict[str, Any], list[Curve], list[Gap]]]:
    """(what tells it from others in all runs, description, curves, gaps) of the devices of a ledger that were the run's
    own; of a sensor of the whole node what it has beyond the others, as in the account."""
    stretches: dict[str, list[Stretch]] = {}
    for session in own_stretches(sessions, path.stem, []):
        for place, sensor in enumerate(session.sensors):
            stretch = (sensor, session, curve_of(place, session), path.name)
            stretches.setdefault(machines.key(sensor, session.header), []).append(stretch)
    used = run.devices_used()
    whole: list[tuple[str, dict[str, Any], list[Curve]]] = []
    inside: list[list[Curve]] = []
    for own in unite(stretches):
        sensor, curves, gaps = join(own, [])
        key = sensor["uuid"] if sensor["kind"] == "gpu" else machines.key(sensor, own[0][1].header)
        if sensor["kind"] == "node":
            whole.append((key, sensor, curves))
            continue
        inside.append(curves)
        if not is_others(sensor, [stretch[1] for stretch in own], used):
            yield key, sensor, curves, gaps
    for rest in rests([curves for _, _, curves in whole], inside):
        yield *whole[rest.sensor][:2], rest.curves, []


def _union(pieces: list[_Piece]) -> tuple[float, float]:
    """(energy of the union of times and parts, energy that another run has seen too) in J."""
    pieces = sorted(pieces, key=lambda piece: (piece.times[0], -piece.times[-1]))
    edges = sorted({float(edge) for piece in pieces for edge in (piece.times[0], piece.times[-1])})
    counted, seen = [], []
    open_pieces: list[_Piece] = []
    waiting = iter([*pieces, None])
    following = next(waiting)
    for start, end in zip(edges, edges[1:], strict=False):
        open_pieces = [piece for piece in open_pieces if piece.times[-1] > start]
        while following is not None and following.times[0] <= start:
            if following.times[-1] > start:
                open_pieces.append(following)
            following = next(waiting)
        if not open_pieces:
            continue
        by_run: dict[str, list[_Piece]] = {}
        for piece in open_pieces:
            by_run.setdefault(piece.run, []).append(piece)
        seen += [_together_j(own, start, end) for own in by_run.values()]
        counted.append(_together_j(open_pieces, start, end))
    for piece in pieces:
        if len(piece.times) == 1:  # nothing but a reading: what a model said of the time before it
            single_j = float(piece.energy_j[0]) * min(1.0, math.fsum(piece.parts.values()))
            counted.append(single_j)
            seen.append(single_j)
    return math.fsum(counted), max(0.0, math.fsum(seen) - math.fsum(counted))


def _together_j(pieces: list[_Piece], start: float, end: float) -> float:
    """Energy in J of a device between two moments, as far as these pieces stand for it; the one that began first tells
    what it used."""
    parts: dict[str, float] = {}
    for piece in pieces:
        parts |= piece.parts
    return pieces[0].energy_between_j(start, end) * min(1.0, math.fsum(parts.values()))
