"""The 95 % interval of a sum of energies, by an exact rule rather than by drawing numbers.

What may be wrong, as half widths of uniform errors:
- a board's sensor gain: +-5 % of what that board measured, each board for itself (Yang et al. 2023, "Part-time Power
  Measurements", found gains within about 5 % on 70 GPUs); of RAPL zones and of a node's own sensor, for which no such
  study is known here, the same is assumed;
- the edges of a window, and what sampling may have missed: in J, each device for itself;
- what a model gave, and what was only assumed: the truth within +-50 % of that figure, all of it moving together;
- PUE and grid intensity: the range that their source gives, where it gives one.

Of a node with a sensor of its own, that sensor alone is in the total where it was read (what lies beyond the parts is
its reading less theirs), so its errors alone count. Other people's GPUs on such a node are taken out of its reading:
the sensor's gain counts on all that it read, and the errors of what is taken out count too, each board for itself. A
product's relative errors add up, to first order.

The sum of independent uniform errors has a known characteristic function, prod sin(a_k t) / (a_k t). The half width is
the x with P(|sum| <= x) = 95 %, from P = (2/pi) * integral of sin(x t) / t * prod(...) dt (Gil-Pelaez 1951). With more
than forty errors none of which dominates the normal law replaces it (they differ by less than a thousandth there).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import Any, Protocol

MEASURED_GAIN = 0.05
MODELLED_ERROR = 0.50
CONFIDENCE = 0.95
RULE = (
    f"95 % interval: ±{MEASURED_GAIN:.0%} gain of each measured device (found on GPU boards, assumed of other sensors)"
    ", independent of each other (of a node with a sensor of its own, of that sensor on all that it read, and of each "
    "device that is taken out of it); edges and what sampling may have missed, per device; "
    f"±{MODELLED_ERROR:.0%} on all that is modelled or assumed, moving together; all uniform, combined exactly."
)
MANY = 40
DIGITS = 6
ROUNDING = 1e-9  # a device whose energy is all but this share in a node sensor's reading has none beside it
MEASURED = ("counter", "integrated")
# Of what was measured inside it a sensor of a whole node must show so much: no gain explains less. A controller without
# a sensor says 0 W.
NODE_LEAST = 0.5


Part = tuple[str, float, float]  # method, energy in J, further half width in J


class Booked(Protocol):
    """A device as the account has it."""

    kind: str
    method: str
    energy_j: float
    doubt_j: float
    in_node_j: float
    taken_out: list[Part]


def parts_of(devices: Iterable[Booked]) -> list[Part]:
    """What a total is made of: each device, and of a node with a sensor of its own that sensor's reading in place of
    what it read of other devices. What is taken out of the reading is a part that is less than nothing."""
    parts: list[Part] = []
    for device in devices:
        energy_j = device.energy_j - device.in_node_j
        if device.kind == "node":
            parts += [(device.method, energy_j, device.doubt_j), *device.taken_out]
        elif abs(energy_j) > ROUNDING * abs(device.energy_j):
            parts.append((device.method, energy_j, device.doubt_j * share_of(energy_j, device.energy_j)))
    return parts


def share_of(part: float, whole: float) -> float:
    """What share a part is, 0 to 1; none of nothing."""
    return min(1.0, max(0.0, part / whole)) if whole else 0.0


def half_widths(parts: Sequence[Part]) -> list[float]:
    """The half widths in J of the independent uniform errors of a sum of energies."""
    errors = [MEASURED_GAIN * energy_j for method, energy_j, _ in parts if method in MEASURED]
    errors += [extra_j for _, _, extra_j in parts]
    errors.append(MODELLED_ERROR * math.fsum(energy_j for method, energy_j, _ in parts if method not in MEASURED))
    return [abs(error) for error in errors if error]


def half_width(parts: Sequence[Part]) -> float:
    """Half width in J of the 95 % interval of a sum of energies."""
    return quantile(half_widths(parts))


def relative_range(factor: Mapping[str, Any]) -> tuple[float, float] | None:
    """(middle, half width) of a factor's range over its value, the middle counted from the value; None without one.

    A bound that the source leaves out is the value itself.
    """
    value, low, high = (factor.get(key) for key in ("value", "low", "high"))
    if not value or (low is None and high is None):
        return None
    least, most = (float(value if bound is None else bound) / value - 1 for bound in (low, high))
    return (most + least) / 2, abs(most - least) / 2


@lru_cache(maxsize=64)
def relative_quantile(errors: tuple[float, ...], confidence: float = CONFIDENCE) -> float:
    """`quantile` of relative errors, to DIGITS significant digits.

    It comes through the machine's sine, exponential and logarithm, whose last bits differ between libraries: rounded,
    a record has the same bytes wherever it is computed.
    """
    return float(f"{quantile(errors, confidence):.{DIGITS}g}")


def interval(
    value: float | None, errors: Sequence[float], ranges: Sequence[tuple[float, float]] = ()
) -> dict[str, float] | None:
    """The 95 % interval of a product and its 5th, 50th and 95th percentile, none below zero.

    errors: relative half widths of its energy; ranges: those of its factors, each (middle, half width).
    """
    if value is None:
        return None
    middle = 1 + math.fsum(shift for shift, _ in ranges)
    widths = (*errors, *(half for _, half in ranges if half))
    error, error_90 = relative_quantile(widths), relative_quantile(widths, 0.90)
    return {
        "low": value * max(0.0, middle - error),
        "high": value * (middle + error),
        "p5": value * max(0.0, middle - error_90),
        "p50": value * middle,
        "p95": value * (middle + error_90),
    }


def quantile(half_widths: Sequence[float], confidence: float = CONFIDENCE) -> float:
    """The x with P(|sum of independent uniform(-a, a)| <= x) = confidence."""
    if not half_widths:
        return 0.0
    largest, total = max(half_widths), math.fsum(half_widths)
    sigma = math.sqrt(math.fsum(a * a for a in half_widths) / 3)
    if len(half_widths) == 1:
        return confidence * largest
    if len(half_widths) > MANY and largest < 0.5 * sigma * math.sqrt(3):
        return min(NormalDist().inv_cdf(0.5 + confidence / 2) * sigma, total)
    # In units of sigma; errors too small to matter (together below 1e-4 of the variance) are left out.
    scaled = sorted((a / sigma for a in half_widths), reverse=True)
    kept, rest = [], 3.0
    for a in scaled:
        if rest < 3e-4:
            break
        kept.append(a)
        rest -= a * a
    if len(kept) == 1:
        return confidence * largest
    weights = _characteristic(kept)
    low, high = 0.0, min(total / sigma, 4.0)
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if _probability(middle, weights) < confidence else (low, middle)
    return (low + high) / 2 * sigma


STEP, TERMS = 0.1, 600  # up to t = 60 in units of 1/sigma


def _characteristic(half_widths: Sequence[float]) -> list[float]:
    """prod sinc(a t) / t at the middles of the steps; a taper ends the tail, which falls slowly with few errors."""
    values = []
    for i in range(TERMS):
        t = (i + 0.5) * STEP
        product = math.exp(-((t / (0.6 * STEP * TERMS)) ** 4))
        for a in half_widths:
            product *= math.sin(a * t) / (a * t)
        values.append(product / t)
    return values


def _probability(x: float, weights: Sequence[float]) -> float:
    return 2 / math.pi * STEP * math.fsum(w * math.sin(x * (i + 0.5) * STEP) for i, w in enumerate(weights))
