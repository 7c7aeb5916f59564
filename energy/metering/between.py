"""What the power register tells of the time between two updates of an energy counter: where in it the energy was used,
as the edge of a window needs it, and how much it was, where the counter itself does not say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise


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


UNSEEN = 0.05  # of the mean power, over one update of the register: what it may miss where it shows the same all along


def integrated(
    start_s: float, end_s: float, seen: Sequence[tuple[float, float]], update_s: float
) -> tuple[float, float]:
    """(J, half width in J) that the power register tells of the time from `start_s` to `end_s`.

    seen: (s, W) in order, at least one; update_s: how often the register is updated. Power goes in a straight line from
    one sample to the next, before the first and after the last it is theirs. One change between two samples may have
    come at any moment between them, and where power usually moves from sample to sample it may also have moved there
    and back unseen: the half width is that of the larger of the two.
    """
    usual_w = sum(abs(after - before) for (_, before), (_, after) in pairwise(seen)) / max(1, len(seen) - 1)
    ends = [(-math.inf, seen[0][1]), *seen, (math.inf, seen[-1][1])]
    used_j = doubt_j = 0.0
    for (left_s, left_w), (right_s, right_w) in pairwise(ends):
        low_s, high_s = max(left_s, start_s), min(right_s, end_s)
        if low_s >= high_s:
            continue
        slope = (right_w - left_w) / (right_s - left_s)
        middle_w = left_w if slope == 0 else left_w + slope * ((low_s + high_s) / 2 - left_s)
        used_j += middle_w * (high_s - low_s)
        doubt_j += max(abs(right_w - left_w) / 2, usual_w) * (high_s - low_s)
    mean_w = used_j / (end_s - start_s) if end_s > start_s else 0.0
    return used_j, doubt_j + UNSEEN * mean_w * min(update_s, max(0.0, end_s - start_s))


def missed_w(points: Sequence[tuple[float, float]], seen: Sequence[tuple[float, float]], span_s: float) -> float:
    """By how many W what the power register tells was off the counter, as a root mean square over the stretches of
    about `span_s` before; 0.0 where there were none.

    points: (s, mJ) of the counter's updates in order; seen: (s, W) of the power register.
    """
    squares = []
    end_s, end_mj = points[-1]
    for start_s, start_mj in reversed(points):
        if not seen or start_s < seen[0][0]:
            break
        if end_s - start_s >= span_s:
            told_j, _ = integrated(start_s, end_s, seen, 0.0)
            squares.append((((end_mj - start_mj) / 1e3 - told_j) / (end_s - start_s)) ** 2)
            end_s, end_mj = start_s, start_mj
    return math.sqrt(sum(squares) / len(squares)) if squares else 0.0
