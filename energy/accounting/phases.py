"""Energy by phase: the curve at the phases' edges, and regression where phases are shorter than the curve can show.

A phase is a named span of the trainer's time. An interval between two readings that lies in one phase is that phase's.
One that several phases share is split by their seconds in it and their powers: a line between two readings would give
the weaker one too much at every edge. The power of a phase with intervals of its own is the mean of those. Of shorter
ones it is found over many of them: each interval has so many seconds of each phase, and least squares gives each its
mean power, with a standard error. Whatever the method, phases and what is left over sum exactly to the total.
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

OWN = 3.0  # a phase that has less than so many intervals to itself is told by regression
UNATTRIBUTED = "unattributed"
NOTHING_S = 1e-9  # less than this of a phase in an interval is a rounding error
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
    """Disjoint spans as arrays, made once for the curves of all devices: edges (n, 2) in unix s, names, owners (n).

    What no span covers counts as one more phase, after the named ones.
    """

    def __init__(self, spans: list[Span]) -> None:
        self.spans = spans
        self.names = sorted({phase for phase, _, _ in spans})
        number = {name: k for k, name in enumerate(self.names)}
        self.edges = np.array([(start, end) for _, start, end in spans]).reshape(-1, 2)
        self.owner = np.array([number[phase] for phase, _, _ in spans], np.int64)
        self._passed = [self._passed_of(k) for k in range(len(self.names))]
        # Each moment at which one phase follows another, once, with the numbers of the two.
        bare, apart = len(self.names), self.edges[1:, 0] != self.edges[:-1, 1]
        before = np.concatenate([[bare], np.where(apart, bare, self.owner[:-1])])[: len(spans)]
        ends = np.concatenate([apart, [True]])[: len(spans)]
        self._turns = np.concatenate([self.edges[:, 0], self.edges[ends, 1]])
        self._pairs = np.concatenate([before * (bare + 1) + self.owner, self.owner[ends] * (bare + 1) + bare])

    def _passed_of(self, phase: int) -> tuple[Array, Array]:
        own = self.edges[self.owner == phase]
        return own.ravel(), np.cumsum(np.column_stack([np.zeros(len(own)), own[:, 1] - own[:, 0]]).ravel())

    def seconds_between(self, phase: int, times: Array) -> Array:
        """Time in s of a phase in each interval between `times`."""
        return np.diff(np.interp(times, *self._passed[phase]))

    def turns(self, start_unix_s: float, end_unix_s: float) -> list[list[int]]:
        """How often two phases meet between two moments."""
        count = len(self.names) + 1
        inside = (self._turns > start_unix_s) & (self._turns < end_unix_s)
        often = np.bincount(self._pairs[inside], minlength=count * count).reshape(count, count)
        return (often + often.T).tolist()


def by_phase(times: Array, cumulative_j: Array, timeline: Timeline) -> dict[str, PhaseEnergy]:
    """Energy of a curve by phase, what no span covers included; the energies sum to the curve's."""
    total_j = float(cumulative_j[-1] - (cumulative_j[0] if len(times) > 1 else 0.0)) if len(times) else 0.0
    if len(times) < 2 or not timeline.spans:
        return {UNATTRIBUTED: PhaseEnergy(total_j, float(times[-1] - times[0]) if len(times) else 0.0)}
    names = [*timeline.names, UNATTRIBUTED]
    apart = np.concatenate([[True], np.diff(times) > 0])  # a device that has nothing new has the same row again
    times, cumulative_j = times[apart], cumulative_j[apart]
    if len(times) < 2:
        return {UNATTRIBUTED: PhaseEnergy(total_j, 0.0)}
    spans_s, used_j = np.diff(times), np.diff(cumulative_j)
    columns = [timeline.seconds_between(k, times) for k in range(len(names) - 1)]
    columns.append(np.maximum(0.0, spans_s - np.sum(columns, axis=0)))
    design = np.column_stack(columns)
    design[design < NOTHING_S] = 0.0
    shared = np.count_nonzero(design, axis=1) > 1
    mixed, mixed_j, alone = design[shared], used_j[shared], ~shared
    owner = design[alone].argmax(axis=1)
    own_j, own_s = (np.bincount(owner, column[alone], len(names)) for column in (used_j, spans_s))
    seconds = own_s + _sums(mixed)
    spacing_s = float(np.median(spans_s))
    is_short = (own_s < OWN * spacing_s) & (seconds > 0)
    power_w = np.divide(own_j, own_s, out=np.zeros(len(names)), where=own_s > 0)
    errors_j, told = np.zeros(len(names)), np.zeros(len(names), bool)
    if is_short.any():
        # By the line between readings, where regression fails.
        read_j = own_j + _sums(mixed * (mixed_j / spans_s[shared])[:, None])
        np.divide(read_j, seconds, out=power_w, where=is_short)
        told = _regress(design, used_j, seconds, power_w, errors_j, is_short)
    weights = mixed * power_w
    dead = np.cumsum(weights, axis=1)[:, -1] <= 0
    weights[dead] = mixed[dead]
    split = weights / np.cumsum(weights, axis=1)[:, -1:] * mixed_j[:, None]
    energy_j = (own_j + _sums(split)).tolist()
    # What rounding leaves of the sum goes where it is least.
    energy_j[energy_j.index(max(energy_j))] += total_j - math.fsum(energy_j)
    often = timeline.turns(times[0], times[-1])
    edge_errors_j = _edge_errors(often, energy_j, seconds.tolist(), spacing_s)
    # Where nothing tells, it may be none or twice as much (uniform).
    unknown_j = np.where((own_s <= 0) & ~told, energy_j, 0.0) / math.sqrt(3)
    found = {}
    for k, name in enumerate(names):
        # What a phase by regression was given too much, those around it lack.
        passed_on = [float(errors_j[j]) * row[k] / (sum(row) or 1) for j, row in enumerate(often) if told[j]]
        variance = math.fsum(error * error for error in (edge_errors_j[k], float(unknown_j[k]), *passed_on))
        error_j, method = (float(errors_j[k]), "regression") if told[k] else (math.sqrt(variance), "direct")
        found[name] = PhaseEnergy(energy_j[k], float(seconds[k]), error_j, method)
    return found


def _edge_errors(often: list[list[int]], energy_j: list[float], seconds: list[float], spacing_s: float) -> list[float]:
    """Standard error of a phase's energy from its edges: power may change anywhere between two readings (uniform), and
    what one phase is given too much the other lacks."""
    power_w = [used_j / passed_s if passed_s > 0 else 0.0 for used_j, passed_s in zip(energy_j, seconds, strict=True)]
    errors = []
    for own_w, row in zip(power_w, often, strict=True):
        squares = [count * (own_w - other_w) ** 2 for count, other_w in zip(row, power_w, strict=True)]
        errors.append(math.sqrt(math.fsum(squares) / 12) * spacing_s)
    return errors


def _sums(columns: Array) -> Array:
    """The sum of each column, term by term in order: a library's fast sums differ in their last digits by processor,
    and the record of a run must come out the same everywhere."""
    return np.cumsum(columns, axis=0)[-1] if len(columns) else np.zeros(columns.shape[1])


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
    design: Array, used_j: Array, seconds: Array, power_w: Array, errors_j: Array, wanted: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Which of the wanted phases least squares over all intervals could tell: their mean power, and the standard error
    of their energy, are put in their places."""
    told = np.zeros(len(power_w), bool)
    present = np.flatnonzero(seconds > 0)
    design = design[:, present]
    inverse = _inverse(_products(design)) if len(used_j) >= 3 * len(present) else None
    if inverse is None:
        return told  # too few intervals, or phases that always come in the same proportion
    found_w = np.array([math.fsum(row) for row in inverse * _sums(design * used_j[:, None])])
    residual = used_j - np.sum([design[:, k] * found_w[k] for k in range(len(present))], axis=0)
    variance = float(_sums((residual * residual)[:, None])[0]) / (len(used_j) - len(present))
    for place, k in enumerate(present.tolist()):
        error_w = math.sqrt(max(0.0, variance * float(inverse[place, place])))
        if wanted[k] and found_w[place] > -2 * error_w:
            power_w[k], errors_j[k], told[k] = max(0.0, float(found_w[place])), error_w * seconds[k], True
    return told


def union_s(windows: list[tuple[float, float]]) -> float:
    """Length in s of what spans of time cover together."""
    total_s, reached = 0.0, -math.inf
    for start, end in sorted(windows):
        total_s += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total_s
