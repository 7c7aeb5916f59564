"""Carbon of an energy curve under an intensity that changes hour by hour: exact for both as they were recorded.

Between two readings the power is held constant (the energy curve is a line), between two entries of the series the
intensity is. The integral is then a sum over the pieces between all their edges, with no step of its own to choose.
"""

from __future__ import annotations

import bisect
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple

from energy.factors import Basis, Factor, mixed_bases
from energy.units import JOULE_PER_KWH

NAMED_GAPS = 5


@dataclass(frozen=True)
class IntensitySeries:
    """Grid intensity in g per kWh, constant from each start up to its end (unix seconds, UTC); holes are not covered.

    source: where it is from; basis: what it counts; warnings: what its reader had to say about it
    """

    start_unix_s: tuple[float, ...]
    end_unix_s: tuple[float, ...]
    g_per_kwh: tuple[float, ...]
    source: str
    basis: Basis = field(default_factory=Basis)
    geography: str | None = None
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.start_unix_s:
            raise ValueError(f"{self.source}: the intensity series has no entries")
        if not len(self.start_unix_s) == len(self.end_unix_s) == len(self.g_per_kwh):
            raise ValueError(f"{self.source}: starts, ends and values of the series are not equally many")
        for i, (start, end, value) in enumerate(zip(self.start_unix_s, self.end_unix_s, self.g_per_kwh, strict=True)):
            if not (math.isfinite(start) and math.isfinite(end) and start < end):
                raise ValueError(f"{self.source}: entry {i + 1} ends before it starts")
            if i and start < self.end_unix_s[i - 1]:
                raise ValueError(f"{self.source}: entry {i + 1} ({utc(start)}) overlaps the one before it")
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{self.source}: entry {i + 1} ({utc(start)}) is {value!r} g/kWh")

    @property
    def sha256(self) -> str:
        """SHA-256 over times and values at full precision: what a record names the series by."""
        rows = zip(self.start_unix_s, self.end_unix_s, self.g_per_kwh, strict=True)
        text = "\n".join(f"{start!r},{end!r},{value!r}" for start, end, value in rows)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def mean_g_per_kwh(self) -> float:
        """The mean over the time that the series covers; holes do not count."""
        lengths = [end - start for start, end in zip(self.start_unix_s, self.end_unix_s, strict=True)]
        weighted = (g * length for g, length in zip(self.g_per_kwh, lengths, strict=True))
        return math.fsum(weighted) / math.fsum(lengths)

    def at(self, unix_s: float) -> float | None:
        """The intensity in g/kWh at a moment; None where the series does not cover it."""
        i = bisect.bisect_right(self.start_unix_s, unix_s) - 1
        return self.g_per_kwh[i] if i >= 0 and unix_s < self.end_unix_s[i] else None


class SeriesCarbon(NamedTuple):
    """Carbon of an energy curve under a series.

    carbon_g: grams of the whole curve; None when a part is not covered and no fallback was declared
    covered_g: of the part under the series; missing_j: the part outside it; missing: its spans in unix seconds
    notes: what must be said with the figure
    """

    carbon_g: float | None
    covered_g: float
    missing_j: float
    missing: tuple[tuple[float, float], ...]
    notes: tuple[str, ...]


def utc(unix_s: float) -> str:
    """A moment as 2024-03-31T02:00:00Z."""
    moment = datetime.fromtimestamp(unix_s, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _pieces(
    times: Sequence[float], energy: Sequence[float], series: IntensitySeries
) -> list[tuple[float, float, float, float | None]]:
    """(start, end, J, g/kWh or None) between all edges of curve and series, in order."""
    found: list[tuple[float, float, float, float | None]] = []
    edges = sorted({*series.start_unix_s, *series.end_unix_s})
    at = bisect.bisect_right(edges, times[0])
    for i in range(1, len(times)):
        start, end, used = times[i - 1], times[i], energy[i] - energy[i - 1]
        if end < start:
            raise ValueError(f"the energy curve goes back in time at row {i + 1}: {end!r} after {start!r}")
        # It may fall: of a node's sensor counts what it has beyond its parts, and for five minutes that may be less.
        if not math.isfinite(used):
            raise ValueError(
                f"the energy curve is not finite at row {i + 1}: {energy[i]!r} J after {energy[i - 1]!r} J"
            )
        if start == end:  # energy booked at one moment, such as a counter's growth over a restart
            found.append((start, end, used, series.at(start)))
            continue
        left, before_j = start, 0.0
        while left < end:
            while at < len(edges) and edges[at] <= left:
                at += 1
            right = min(end, edges[at]) if at < len(edges) else end
            # The last piece takes what is left, so that the pieces of an interval add up to it exactly.
            upto_j = used if right == end else used * (right - start) / (end - start)
            found.append((left, right, upto_j - before_j, series.at(left)))
            left, before_j = right, upto_j
    return found


def carbon(
    times_unix_s: Sequence[float],
    cumulative_j: Sequence[float],
    series: IntensitySeries,
    fallback: Factor | None = None,
) -> SeriesCarbon:
    """Grams of CO2eq of an energy curve (J, cumulative, at unix seconds) under a series (g/kWh).

    The energy is that to which the intensity applies: multiply the curve by PUE first for a facility. What the series
    does not cover is missing and named, and takes `fallback` (g/kWh) only when that was declared. Sums by math.fsum.
    ValueError for a curve that goes back in time or holds NaN.
    """
    times, energy = [float(t) for t in times_unix_s], [float(e) for e in cumulative_j]
    assert len(times) == len(energy) >= 2, (len(times), len(energy))
    if not all(map(math.isfinite, times)):
        raise ValueError("the energy curve has a time that is not a number")
    pieces = _pieces(times, energy, series)
    known = [(joules, g) for _, _, joules, g in pieces if g is not None]
    unknown = [(start, end, joules) for start, end, joules, g in pieces if g is None]
    covered_g = math.fsum(joules * g for joules, g in known) / JOULE_PER_KWH
    missing_j = math.fsum(joules for *_, joules in unknown)
    spans = _joined([(start, end) for start, end, joules in unknown if joules])
    notes: list[str] = []
    fallback_g: float | None = None
    if spans:
        hours = math.fsum(end - start for start, end, _ in unknown) / 3600
        named = ", ".join(f"{utc(a)} to {utc(b)}" for a, b in spans[:NAMED_GAPS])
        more = f" and {len(spans) - NAMED_GAPS} more" if len(spans) > NAMED_GAPS else ""
        text = f"{series.source} does not cover {hours:.6g} h ({named}{more}), {missing_j / JOULE_PER_KWH:.6g} kWh"
        if fallback is not None and fallback.value is not None:
            fallback_g = missing_j / JOULE_PER_KWH * fallback.value
            notes.append(f"{text}: there the declared {fallback} was taken")
            own = Factor("intensity_g_per_kwh", None, fallback.unit, series.source, basis=series.basis)
            notes += mixed_bases([own, fallback])
        else:
            notes.append(f"{text}: its carbon is missing, not zero; declare a constant to fall back on")
    complete = not spans or fallback_g is not None
    return SeriesCarbon(
        carbon_g=math.fsum((covered_g, fallback_g or 0.0)) if complete else None,
        covered_g=covered_g,
        missing_j=missing_j,
        missing=tuple(spans),
        notes=tuple(notes),
    )


def _joined(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    joined: list[tuple[float, float]] = []
    for start, end in spans:
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined
