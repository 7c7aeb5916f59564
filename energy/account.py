"""The account of a run: joules by device, phase and attempt, from the ledgers and the spans of rank 0 alone.

Each device has a curve of cumulative energy. Where its counter grew, the counter is the curve; where there is
none, or it went backwards (a driver reload), power is held from one reading to the next. A phase's energy is
the curve at its spans' ends less that at their starts: phases, `unattributed` and `gap` sum to the total.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from energy.curves import Curve, Gap, Segment, curve_of, gap_between, read_segments
from energy.runs import RunFolder

Array = NDArray[np.float64]
Span = tuple[str, float, float]  # phase, start and end in unix s


@dataclass
class DeviceEnergy:
    """Energy of one device over the run in J; `gap_s` is the time in s in which nothing was read from it."""

    uuid: str
    name: str
    node: str
    kind: str
    boundary: str
    method: str
    energy_j: float
    samples: int
    gap_s: float


@dataclass
class Account:
    """Joules of a run. `phases` {name: {energy_j, seconds}} and `attempts` both sum to `energy_j`."""

    devices: list[DeviceEnergy] = field(default_factory=list)
    phases: dict[str, dict[str, float]] = field(default_factory=dict)
    attempts: list[dict[str, float]] = field(default_factory=list)
    power: list[tuple[str, Array, Array]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    start_unix_s: float | None = None
    end_unix_s: float | None = None

    @property
    def energy_j(self) -> float:
        """All devices, over the whole metered time, gaps included."""
        return math.fsum(device.energy_j for device in self.devices)


def account_run(run: RunFolder) -> Account:
    """The account of a run folder. What is damaged or missing is a warning, never an exception."""
    account = Account()
    spans = _disjoint(run.phases())
    energies: dict[str, list[float]] = {}
    attempts: dict[int, list[float]] = {}
    windows: list[tuple[int, float, float]] = []
    gap_windows: dict[tuple[float, float], None] = {}
    seen: dict[str, str] = {}
    for ledger in run.ledgers():
        segments, damaged = read_segments(ledger)
        account.damaged += damaged
        for segment in segments:
            windows += segment.windows()
        for uuid, about in _devices(segments).items():
            if uuid in seen:
                account.warnings.append(f"{uuid} is in {ledger.name} and in {seen[uuid]}: counted once")
                continue
            seen[uuid] = ledger.name
            curves, gaps = _curves(uuid, about["name"], segments, account.warnings)
            for curve in curves:
                _book(curve, spans, energies)
                for attempt, energy_j in curve.by_attempt():
                    attempts.setdefault(attempt, []).append(energy_j)
            for gap in gaps:
                energies.setdefault("gap", []).append(gap.energy_j)
                attempts.setdefault(gap.attempt, []).append(gap.energy_j)
                gap_windows[(gap.start_unix_s, gap.end_unix_s)] = None
            account.devices.append(_device_energy(uuid, about, curves, gaps))
            account.power.append((uuid, *_power(curves)))
    account.warnings += account.damaged
    if not windows:
        account.warnings.append("nothing was metered: no reading in the run's ledgers")
        return account
    account.start_unix_s = min(start for _, start, _ in windows)
    account.end_unix_s = max(end for _, _, end in windows)
    account.attempts = _attempts(attempts, windows)
    account.phases = _phases(energies, spans, list(gap_windows), account)
    return account


def _devices(segments: list[Segment]) -> dict[str, dict[str, str]]:
    devices: dict[str, dict[str, str]] = {}
    for segment in segments:
        for uuid in segment.uuids():
            devices.setdefault(uuid, segment.about(uuid))
    return devices


def _curves(uuid: str, name: str, segments: list[Segment], warnings: list[str]) -> tuple[list[Curve], list[Gap]]:
    """The device's curve in each stretch of metering, and what it used between them."""
    curves: list[Curve] = []
    gaps: list[Gap] = []
    before: tuple[Segment, Curve] | None = None
    for segment in segments:
        curve = curve_of(uuid, segment)
        warnings += [f"{name} ({uuid}): {text}" for text in curve.warnings]
        if before is not None and not before[0].ended:
            gap = gap_between(*before, segment, curve)
            gaps.append(gap)
            warnings.append(f"{name} ({uuid}): {gap.text}")
        curves.append(curve)
        before = (segment, curve)
    return curves, gaps


def _device_energy(uuid: str, about: dict[str, str], curves: list[Curve], gaps: list[Gap]) -> DeviceEnergy:
    return DeviceEnergy(
        uuid=uuid,
        **{key: about[key] for key in ("name", "node", "kind", "boundary", "method")},
        energy_j=math.fsum([curve.energy_j for curve in curves] + [gap.energy_j for gap in gaps]),
        samples=sum(len(curve.time_unix_s) for curve in curves),
        gap_s=math.fsum([curve.gap_s for curve in curves] + [g.end_unix_s - g.start_unix_s for g in gaps]),
    )


def _disjoint(phases: list[dict[str, Any]]) -> list[Span]:
    """Spans that do not overlap, in order: of two, the one that started last has the time."""
    events: list[tuple[float, float, str]] = []
    for span in phases:
        start, end, phase = span.get("start_unix_s"), span.get("end_unix_s"), span.get("phase")
        if isinstance(start, int | float) and isinstance(end, int | float) and isinstance(phase, str) and end > start:
            events.append((float(start), float(end), phase))
    events.sort()
    edges = sorted({edge for start, end, _ in events for edge in (start, end)})
    spans: list[Span] = []
    active: list[tuple[float, float, str]] = []
    index = 0
    for left, right in zip(edges, edges[1:], strict=False):
        while index < len(events) and events[index][0] <= left:
            heapq.heappush(active, (-events[index][0], events[index][1], events[index][2]))
            index += 1
        while active and active[0][1] <= left:
            heapq.heappop(active)
        if active:
            spans.append((active[0][2], left, right))
    return spans


def _book(curve: Curve, spans: list[Span], energies: dict[str, list[float]]) -> None:
    """Add the curve's energy to the phases; what no span covers is `unattributed`."""
    booked: list[float] = []
    if spans and len(curve.time_unix_s):
        edges = np.array([(start, end) for _, start, end in spans])
        used = np.interp(edges, curve.time_unix_s, curve.cumulative_j)
        booked = (used[:, 1] - used[:, 0]).tolist()
        for (phase, _, _), energy_j in zip(spans, booked, strict=True):
            energies.setdefault(phase, []).append(energy_j)
    rest_j = curve.energy_j - math.fsum(booked)
    # Of a fully attributed curve rounding remains, of either sign: it counts too, so that the sum is exact.
    energies.setdefault("unattributed", []).append(rest_j)


def _phases(
    energies: dict[str, list[float]],
    spans: list[Span],
    gaps: list[tuple[float, float]],
    account: Account,
) -> dict[str, dict[str, float]]:
    """Energy in J and rank 0's time in s by phase, clipped to the metered window."""
    assert account.start_unix_s is not None and account.end_unix_s is not None
    seconds: dict[str, list[float]] = {}
    for phase, start, end in spans:
        inside_s = min(end, account.end_unix_s) - max(start, account.start_unix_s)
        if inside_s > 0:
            seconds.setdefault(phase, []).append(inside_s)
    if gaps:
        # Devices of several nodes have the same gap at slightly different times: the longest stands for it.
        seconds["gap"] = [_union_s(gaps)]
    known_s = math.fsum(part for parts in seconds.values() for part in parts)
    seconds["unattributed"] = [max(0.0, account.end_unix_s - account.start_unix_s - known_s)]
    return {
        phase: {"energy_j": math.fsum(energies.get(phase, [])), "seconds": math.fsum(seconds.get(phase, []))}
        for phase in sorted(set(energies) | set(seconds))
    }


def _union_s(windows: list[tuple[float, float]]) -> float:
    total_s, reached = 0.0, -math.inf
    for start, end in sorted(windows):
        total_s += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total_s


def _attempts(energies: dict[int, list[float]], windows: list[tuple[int, float, float]]) -> list[dict[str, float]]:
    """Per attempt its energy in J (a gap belongs to the attempt that it ended) and its metered window."""
    attempts: list[dict[str, float]] = []
    for attempt in sorted(set(energies) | {number for number, _, _ in windows}):
        own = [(start, end) for number, start, end in windows if number == attempt]
        start, end = min(s for s, _ in own), max(e for _, e in own)
        energy_j = math.fsum(energies.get(attempt, []))
        attempts.append(
            {
                "attempt": attempt,
                "energy_j": energy_j,
                "seconds": end - start,
                "start_unix_s": start,
                "end_unix_s": end,
            }
        )
    return attempts


def _power(curves: list[Curve]) -> tuple[Array, Array]:
    """Time and power of every reading; NaN where the device was missing."""
    if not curves:
        return np.empty(0), np.empty(0)
    return np.concatenate([c.power_time_unix_s for c in curves]), np.concatenate([c.power_w for c in curves])
