"""Where between two updates of an energy counter the energy was used: what the edge of a window needs."""

from __future__ import annotations

from collections.abc import Sequence


def used_mj(start_s: float, end_s: float, total_mj: float, at_s: float, seen: Sequence[tuple[float, float]]) -> float:
    """mJ used from `start_s` to `at_s`, of the `total_mj` that were used up to `end_s`.

    seen: (s, W) of the power register in order. Where it only rose or only fell from its last value before the interval
    to its first one after it, power is taken to have changed once, at the one moment that gives the total: a load that
    is switched is then cut exactly, of another gradual change no more is missed than by a straight line (a quarter of
    change times interval). Where no moment gives it, or power went up and down, it is a straight line.
    """
    span_s = end_s - start_s
    if span_s <= 0:
        return 0.0
    even_mj = total_mj * (at_s - start_s) / span_s
    before = max((place for place, (s, _) in enumerate(seen) if s <= start_s), default=None)
    after = next((place for place, (s, _) in enumerate(seen) if s >= end_s), None)
    if before is None or after is None:
        return even_mj
    watts = [w for _, w in seen[before : after + 1]]
    first_w, last_w, mean_w = watts[0], watts[-1], total_mj / 1e3 / span_s
    one_way = watts == sorted(watts) or watts == sorted(watts, reverse=True)
    if first_w == last_w or not one_way or not min(first_w, last_w) <= mean_w <= max(first_w, last_w):
        return even_mj
    change_s = start_s + span_s * (mean_w - last_w) / (first_w - last_w)
    return 1e3 * (first_w * (min(at_s, change_s) - start_s) + last_w * max(0.0, at_s - change_s))
