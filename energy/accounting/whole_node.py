"""A node with a sensor of its own (IPMI, Redfish): what it has beyond its other devices, while that sensor was read.

The sensor's reading contains every other device of the node, also those that are left out of the run. What lies beyond
them, the rest of the node, is a device of its own: reading less parts, over the spans in which the reading is known.
Outside these spans the parts alone are counted, and the rest is missing. So they are where the sensor shows less than
half of what was measured inside it (`incredible`). Of several sensors of one node the one that
was read longest counts; another one stands in where that one was not read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from energy.accounting.curves import Array, Curve, Gap
from energy.accounting.uncertainty import MEASURED, NODE_LEAST

APART_S = 2.5  # from one answer of a controller to the next: a second of waiting, and what it takes to answer

Span = tuple[float, float]  # unix s


@dataclass
class Straight:
    """Energy in J between two moments (unix s) of which nothing else is known, as a line of a part: that of a gap."""

    time_unix_s: Array
    booked_j: Array

    @classmethod
    def over(cls, gap: Gap) -> Straight:
        """The energy of a gap in J, spread evenly over it."""
        return cls(np.array([gap.start_unix_s, gap.end_unix_s]), np.array([0.0, gap.energy_j]))


Line = Curve | Straight


@dataclass
class Rest:
    """The curves of what a node has beyond its parts, one for each span in which sensor number `sensor` counts.

    inside_j: the energy in J of each part in these spans, in the order of the parts.
    """

    sensor: int
    curves: list[Curve]
    inside_j: list[float]

    @property
    def reading_j(self) -> float:
        """What the sensor itself has read in these spans."""
        return math.fsum([*(curve.energy_j for curve in self.curves), *self.inside_j])

    @property
    def known_s(self) -> float:
        return math.fsum(float(curve.time_unix_s[-1] - curve.time_unix_s[0]) for curve in self.curves)


def rests(sensors: Sequence[Sequence[Curve]], parts: Sequence[Sequence[Line]]) -> list[Rest]:
    """What each sensor of a node tells of the node beyond its parts, each moment once; without those that tell nothing.

    sensors, parts: the curves of each of the node's sensors, and of each other device that is in its reading, its gaps
    included.
    """
    known = [known_spans(curves) for curves in sensors]
    known_s = [math.fsum(end - start for start, end in spans) for spans in known]
    longest_first = sorted(range(len(sensors)), key=lambda number: -known_s[number])
    covered: list[Span] = []
    found = []
    for number in longest_first:
        spans = beyond(known[number], covered)
        covered = sorted(covered + spans)
        if spans:
            found.append(_rest(number, sensors[number], spans, parts))
    return found


def incredible(reading_j: float, parts: Iterable[tuple[str, bool, float]]) -> str | None:
    """Why what a sensor has read cannot be, in words; None where it can.

    parts: (method, whether it is in no total, energy in J in these spans) of each.
    """
    parts = list(parts)
    others_j = math.fsum(used_j for _, is_other, used_j in parts if is_other)
    own_j = math.fsum(used_j for method, is_other, used_j in parts if method in MEASURED and not is_other)
    if reading_j - others_j >= NODE_LEAST * own_j:
        return None
    return (
        f"shows {reading_j:.0f} J where {own_j + others_j:.0f} J were measured of its parts: it is left out, and the "
        "node's energy is that of its parts alone"
    )


def missing_s(told: Sequence[Rest], metered_s: float) -> float:
    """Of the time in s in which a node was metered, that in which none of its sensors was; 0 where it is no longer than
    what lies between two answers."""
    lacks_s = metered_s - math.fsum(rest.known_s for rest in told)
    return lacks_s if lacks_s > APART_S else 0.0


def unread(sensors: Sequence[tuple[str, Sequence[Curve]]], told: Sequence[Rest], metered_s: float) -> list[str]:
    """What was not plain with the sensors of a node, (name, curves) of each, in words; it was metered for so long."""
    first = told[0].sensor if told else None
    texts = []
    for number, (name, curves) in enumerate(sensors):
        if not any(curve.samples for curve in curves):
            instead = "that of its parts alone" if first is None else f"by {sensors[first][0]}"
            texts.append(f"{name} was never read: the node's energy is {instead}")
        elif first is not None and number != first:
            texts.append(
                f"{name} reads the same node as {sensors[first][0]}: it counts only where that one could not be read, "
                "so that no joule is in the total twice"
            )
        elif missing_s(told, metered_s) or (len(told) == 1 and any(curve.gap_s for curve in curves)):
            gap_s = max(0.0, metered_s - math.fsum(rest.known_s for rest in told))
            texts.append(
                f"{name} was not read for {gap_s:.1f} s: the node's energy is then that of its parts alone, and what "
                "it has beyond them is missing"
            )
    return texts


def known_spans(curves: Sequence[Curve]) -> list[Span]:
    """Where the energy of a device is known, from its rows."""
    spans: list[Span] = []
    for curve in curves:
        times = curve.time_unix_s
        for place in np.flatnonzero(curve.known[1:] & (np.diff(times) > 0)):
            start, end = float(times[place]), float(times[place + 1])
            if spans and spans[-1][1] >= start:
                spans[-1] = (spans[-1][0], end)
            else:
                spans.append((start, end))
    return spans


def beyond(spans: Sequence[Span], covered: Sequence[Span]) -> list[Span]:
    """What of `spans` is not in `covered`; both in order of time."""
    left = []
    for start, end in spans:
        for taken_start, taken_end in covered:
            if taken_end <= start or taken_start >= end:
                continue
            if taken_start > start:
                left.append((start, taken_start))
            start = taken_end
        if start < end:
            left.append((start, end))
    return left


def used_j(curves: Sequence[Line], start_unix_s: float, times: Array) -> Array:
    """What a device has used since `start_unix_s` at each of the times, in J."""
    total = np.zeros(len(times))
    for curve in curves:
        if len(curve.time_unix_s) > 1:
            sofar_j = curve.booked_j
            # Of several rows at its first moment (a clock was set back) np.interp would give the last.
            is_later = start_unix_s > curve.time_unix_s[0]
            before_j = np.interp(start_unix_s, curve.time_unix_s, sofar_j) if is_later else sofar_j[0]
            total += np.interp(times, curve.time_unix_s, sofar_j) - before_j
    return total


def _rest(number: int, curves: Sequence[Curve], spans: Sequence[Span], parts: Sequence[Sequence[Line]]) -> Rest:
    inside_j = [0.0] * len(parts)
    found: list[Curve] = []
    for start, end in spans:
        # A span may run over a restart of the meter, and each of its curves counts from its own beginning.
        for curve in curves:
            first, last = max(start, float(curve.time_unix_s[0])), min(end, float(curve.time_unix_s[-1]))
            if last <= first:
                continue
            cut = curve.between(first, last)
            used = used_j([curve], first, cut.time_unix_s)
            for place, part in enumerate(parts):
                of_part = used_j(part, first, cut.time_unix_s)
                inside_j[place] += float(of_part[-1])
                used = used - of_part
            power_w = np.full(len(used), np.nan)
            passed_s = np.diff(cut.time_unix_s)
            np.divide(np.diff(used), passed_s, out=power_w[1:], where=passed_s > 0)
            if not found:
                power_w[0] = power_w[1]  # nothing before it: of a later span the time before it is missing
            found.append(replace(cut, cumulative_j=used, power_w=power_w, power_min_w=power_w, power_max_w=power_w))
    return Rest(number, found, inside_j)
