"""Energy by phase: the curve at the phases' edges, and regression where phases are shorter than the curve can show.

A phase is a named span of the trainer's time. Of a span much longer than the distance of the readings the curve tells
the energy. Of shorter ones it cannot, but over many of them it can: each interval between readings has so many seconds
of each phase, and least squares gives each phase its mean power, with a standard error. Whatever the method, phases
and what is left over sum exactly to the total.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Span = tuple[str, float, float]  # phase, start and end in unix s

SHORT = 3.0  # a phase whose median span is shorter than so many readings is told by regression
UNATTRIBUTED = "unattributed"
SINGULAR = 1e-10  # of a phase's own sum of squares: what the other phases leave unexplained must be more


@dataclass
class PhaseEnergy:
    """Energy in J of a phase, its standard error in J, the trainer's time in it in s, and how it was found."""

    energy_j: float
    seconds: float
    standard_error_j: float = 0.0
    method: str = "direct"


def disjoint(phases: list[dict[str, Any]]) -> list[Span]:
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
        if not active:
            continue
        if spans and spans[-1][0] == active[0][2] and spans[-1][2] == left:
            spans[-1] = (spans[-1][0], spans[-1][1], right)  # one stretch, however often it was marked
        else:
            spans.append((active[0][2], left, right))
    return spans


def overlay(spans: list[Span], name: str, windows: list[tuple[float, float]]) -> list[Span]:
    """The spans with what lies inside `windows` renamed."""
    for start, end in windows:
        cut: list[Span] = []
        for phase, left, right in spans:
            low, high = max(left, start), min(right, end)
            if low >= high:
                cut.append((phase, left, right))
                continue
            cut += [(phase, left, low)] if left < low else []
            cut.append((name, low, high))
            cut += [(phase, high, right)] if high < right else []
        spans = cut
    return spans


class Timeline:
    """Disjoint spans as arrays, made once for the curves of all devices: edges (n, 2) in unix s, names, owners (n)."""

    def __init__(self, spans: list[Span]) -> None:
        self.spans = spans
        self.names = sorted({phase for phase, _, _ in spans})
        number = {name: k for k, name in enumerate(self.names)}
        self.edges = np.array([(start, end) for _, start, end in spans]).reshape(-1, 2)
        self.owner = np.array([number[phase] for phase, _, _ in spans], np.int64)
        self._passed = [self._passed_of(k) for k in range(len(self.names))]

    def _passed_of(self, phase: int) -> tuple[Array, Array]:
        own = self.edges[self.owner == phase]
        return own.ravel(), np.cumsum(np.column_stack([np.zeros(len(own)), own[:, 1] - own[:, 0]]).ravel())

    def seconds_between(self, phase: int, times: Array) -> Array:
        """Time in s of a phase in each interval between `times`."""
        return np.diff(np.interp(times, *self._passed[phase]))


def by_phase(times: Array, cumulative_j: Array, timeline: Timeline) -> dict[str, PhaseEnergy]:
    """Energy of a curve by phase, what no span covers included; the energies sum to the curve's."""
    total_j = float(cumulative_j[-1] - (cumulative_j[0] if len(times) > 1 else 0.0)) if len(times) else 0.0
    if len(times) < 2 or not timeline.spans:
        return {UNATTRIBUTED: PhaseEnergy(total_j, float(times[-1] - times[0]) if len(times) else 0.0)}
    edges, owner, names = timeline.edges, timeline.owner, list(timeline.names)
    used = np.diff(np.interp(edges, times, cumulative_j), axis=1)[:, 0]
    clipped = np.diff(np.clip(edges, times[0], times[-1]), axis=1)[:, 0]
    energy_j = [math.fsum(used[owner == k]) for k in range(len(names))]
    seconds = [math.fsum(clipped[owner == k]) for k in range(len(names))]
    energy_j.append(total_j - math.fsum(energy_j))
    seconds.append(max(0.0, float(times[-1] - times[0]) - math.fsum(seconds)))
    names.append(UNATTRIBUTED)
    passed_s = np.diff(times)
    spacing_s = float(np.median(passed_s[passed_s > 0])) if (passed_s > 0).any() else 0.0
    errors_j = _edge_errors(owner, len(names), energy_j, seconds, spacing_s)
    found = {name: PhaseEnergy(energy_j[k], seconds[k], errors_j[k]) for k, name in enumerate(names)}
    short = [k for k in range(len(names) - 1) if seconds[k] > 0 and np.median(clipped[owner == k]) < SHORT * spacing_s]
    if short:
        _regress(found, names, short, times, cumulative_j, timeline)
    return found


def _edge_errors(
    owner: NDArray[np.int64], count: int, energy_j: list[float], seconds: list[float], spacing_s: float
) -> list[float]:
    """Standard error of a phase's energy from its edges: each lies anywhere between two readings (uniform), where the
    curve is a line though power changes there by the difference of the phase's power to the mean of all."""
    mean_w = math.fsum(energy_j) / max(math.fsum(seconds), 1e-9)
    errors = []
    for k in range(count):
        edges = 2 * int((owner == k).sum())
        power_w = energy_j[k] / seconds[k] if seconds[k] > 0 else mean_w
        errors.append(math.sqrt(edges) * abs(power_w - mean_w) * spacing_s / math.sqrt(12))
    return errors


def _sums(columns: Array) -> Array:
    """The sum of each column, term by term in order: a library's fast sums differ in their last digits by processor,
    and the record of a run must come out the same everywhere."""
    return np.cumsum(columns, axis=0)[-1]


def _products(design: Array) -> list[list[float]]:
    """X'X of the normal equations."""
    return [_sums(design * design[:, [k]]).tolist() for k in range(design.shape[1])]


def _inverse(matrix: list[list[float]]) -> Array | None:
    """The inverse of a small symmetric positive matrix by Gauss and Jordan; None where it has none worth the name."""
    count = len(matrix)
    rows = [[*matrix[k], *(float(k == j) for j in range(count))] for k in range(count)]
    for k in range(count):
        if rows[k][k] <= SINGULAR * matrix[k][k]:
            return None
        rows[k] = [value / rows[k][k] for value in rows[k]]
        for j in range(count):
            if j != k:
                rows[j] = [value - rows[j][k] * own for value, own in zip(rows[j], rows[k], strict=True)]
    return np.array([row[count:] for row in rows])


def _regress(
    found: dict[str, PhaseEnergy],
    names: list[str],
    short: list[int],
    times: Array,
    cumulative_j: Array,
    timeline: Timeline,
) -> None:
    """Give the short phases the energy that least squares over all intervals finds, keeping the sum."""
    spans_s, used_j = np.diff(times), np.diff(cumulative_j)
    columns = [timeline.seconds_between(k, times) for k in range(len(names) - 1)]
    columns.append(spans_s - np.sum(columns, axis=0))
    design = np.column_stack(columns)
    present = [k for k in range(len(names)) if design[:, k].sum() > 1e-9]
    design = design[:, present]
    inverse = _inverse(_products(design)) if len(used_j) >= 3 * len(present) else None
    if inverse is None:
        return  # too few intervals, or phases that always come in the same proportion: the edges must do
    power_w = np.array([math.fsum(row) for row in inverse * _sums(design * used_j[:, None])])
    residual = used_j - np.sum([design[:, k] * power_w[k] for k in range(len(present))], axis=0)
    variance = float(_sums((residual * residual)[:, None])[0]) / (len(used_j) - len(present))
    mine = [present.index(k) for k in short if k in present]
    if not mine:
        return
    seconds = np.array([found[names[present[j]]].seconds for j in mine])
    covariance = variance * inverse[np.ix_(mine, mine)] * np.outer(seconds, seconds)
    energy_j = power_w[mine] * seconds
    rest_j = math.fsum(found[names[present[j]]].energy_j for j in mine)  # what they have together, from their edges
    if len(mine) < len(present):
        # The other phases, told by their edges, lose or gain what the short ones gain or lose.
        others = [found[name] for name in names if found[name].seconds > 0 and names.index(name) not in short]
        largest = max(others, key=lambda phase: phase.energy_j)
        shift_j = math.fsum(energy_j) - rest_j
        if min(energy_j) < 0 or largest.energy_j - shift_j < 0:
            return
        largest.energy_j -= shift_j
    else:
        spread = math.fsum(covariance.flat)
        if spread > 0:
            weights = np.array([math.fsum(row) for row in covariance])
            energy_j = energy_j + weights * (rest_j - math.fsum(energy_j)) / spread
        if min(energy_j) < 0:
            return
    for j, value, error in zip(mine, energy_j.tolist(), np.sqrt(np.diag(covariance)).tolist(), strict=True):
        phase = found[names[present[j]]]
        phase.energy_j, phase.standard_error_j, phase.method = value, error, "regression"
