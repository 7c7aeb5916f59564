"""Several runs together: each joule of a device once, however many meters saw it.

Two `measure` commands side by side on a node each meter the whole of its devices, and each is right about its own
time. Their sum is not: where their times overlap, the joules are the same joules.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from energy.curves import Array, Curve, curve_of, gap_between
from energy.readings import Session, read_sessions
from energy.runs import RunFolder


@dataclass
class MergedDevice:
    """A device's energy in J over the union of the times in which it was metered, and what overlapped in J."""

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
        """All devices; of a node with a sensor of its own, that sensor and not its parts too."""
        whole = {device.node for device in self.devices if device.kind == "node"}
        return math.fsum(d.energy_j for d in self.devices if d.kind == "node" or d.node not in whole)

    @property
    def overlap_j(self) -> float:
        return math.fsum(device.overlap_j for device in self.devices)


@dataclass
class _Piece:
    """A stretch of one device in one run: unix s, cumulative J."""

    times: Array
    energy_j: Array
    run: str


def merge(runs: Iterable[RunFolder], *, fine: bool = True) -> Merged:
    """The devices of several runs, each joule once. What is damaged in a ledger is named."""
    merged = Merged()
    pieces: dict[str, list[_Piece]] = {}
    about: dict[str, dict] = {}
    for run in runs:
        for path in run.ledgers():
            sessions, damaged = read_sessions(path, fine=fine)
            merged.damaged += [f"{run.path.name}/{text}" for text in damaged]
            before: dict[str, tuple[Session, Curve]] = {}
            for session in sessions:
                for place, sensor in enumerate(session.sensors):
                    uuid = sensor["uuid"]
                    about.setdefault(uuid, sensor)
                    curve = curve_of(place, session)
                    own = pieces.setdefault(uuid, [])
                    if uuid in before and not before[uuid][0].ended:
                        gap = gap_between(before[uuid][0], before[uuid][1], session, curve, sensor)
                        ends = np.array([gap.start_unix_s, gap.end_unix_s])
                        own.append(_Piece(ends, np.array([0.0, gap.energy_j]), run.path.name))
                    own.append(_Piece(curve.time_unix_s, curve.cumulative_j, run.path.name))
                    before[uuid] = (session, curve)
    for uuid, own in pieces.items():
        energy_j, overlap_j = _union(own)
        sensor = about[uuid]
        runs_of = list(dict.fromkeys(piece.run for piece in own))
        merged.devices.append(
            MergedDevice(
                uuid, sensor["name"], sensor["node"], sensor["kind"], sensor["method"], energy_j, overlap_j, runs_of
            )
        )
    return merged


def _union(pieces: list[_Piece]) -> tuple[float, float]:
    """(energy of the union of times, energy that was seen again) in J."""
    counted, again, reached = [], [], -math.inf
    for piece in sorted(pieces, key=lambda piece: (piece.times[0], -piece.times[-1])):
        start, end = float(piece.times[0]), float(piece.times[-1])
        first_j = 0.0 if start > reached else float(np.interp(min(reached, end), piece.times, piece.energy_j))
        counted.append(float(piece.energy_j[-1]) - first_j)
        again.append(first_j)
        reached = max(reached, end)
    return math.fsum(counted), math.fsum(again)
