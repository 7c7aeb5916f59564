"""One table of a stretch's ticks from the files that hold them at three distances.

A row's cumulative columns are the same in all files. Its flags, its number of readings and its extremes of power are of
the time since the row before in its own file: where finer rows lie between two rows of the minute file, they are told
there already, and of the minute's row only what is left.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from energy.metering.track import INTEGRATED, MISSING, NO_POWER, SILENT

RAW, MINUTE, SECOND = 0, 1, 2  # the first that has a tick has its numbers whole: seconds are rounded, without `held_mj`
SINCE = ("flags", "n", "power_min_w", "power_max_w")  # columns that speak of the time since the row before
ONCE = INTEGRATED | NO_POWER | SILENT  # told once is enough; where a counter cannot be compared every row says
MOST_READINGS = np.iinfo(np.uint16).max


def one_table(parts: Iterable[tuple[int, NDArray[Any]]]) -> NDArray[Any]:
    """The ticks of one stretch in order, from (distance, tables of energy.ledger.readings.tick_dtype of one width)."""
    parts = sorted([*parts][::-1], key=lambda part: part[0])  # of two of one file the later wins
    tables = [table for _, table in parts]
    everything = np.concatenate(tables) if len(tables) > 1 else tables[0]
    numbers, found = everything["number"].astype(np.int64), {distance for distance, _ in parts}
    if len(found) == 1 and (np.diff(numbers) > 0).all():
        return everything
    distances = np.repeat(np.array([distance for distance, _ in parts], np.uint8), [len(table) for table in tables])
    order = np.argsort(numbers, kind="stable")
    is_first = np.diff(numbers[order], prepend=-1) != 0
    ticks = everything[order[is_first]]
    if len(found) > 1 and MINUTE in found:
        _once(ticks, everything, distances, order, is_first)
    return ticks


def _once(ticks: Any, everything: Any, distances: Any, order: Any, is_first: Any) -> None:
    """Let `ticks` say once what the minute file's rows say again of the finer ones between them.

    order: of `everything`, by tick and in each by distance; is_first: where there the row is that has become the tick.
    """
    at = np.flatnonzero(distances[order] == MINUTE)
    place = np.cumsum(is_first)[at] - 1
    is_new = np.diff(place, prepend=-1) > 0
    at, place = at[is_new], place[is_new]
    told, rows = everything["rows"][order[at]], ticks["rows"]
    after = np.minimum(at + 1, len(order) - 1)
    in_seconds = ~is_first[after] & (distances[order[after]] == SECOND)
    finer, alone = is_first[at] & in_seconds, is_first[at] & ~in_seconds
    for name in SINCE:
        rows[name][place[finer]] = everything["rows"][name][order[after[finer]]]
    rows["n"][place[alone]] = 0
    rows["flags"][place[alone]] &= MISSING
    # What no row since the minute before has said lies where rows are not read: before the first of them, or, where the
    # minute's own tick is not among them, before that.
    starts, until = np.concatenate([[0], place[:-1] + 1]), int(place[-1]) + 1
    lacks = told["n"] - np.add.reduceat(rows["n"][:until], starts, axis=0, dtype=np.int64)
    seen = np.bitwise_or.reduceat(rows["flags"][:until], starts, axis=0)
    owing = np.where(alone, place, starts)
    is_left = (lacks > 0) | alone[:, None]
    rows["n"][owing] = np.minimum(rows["n"][owing] + np.maximum(lacks, 0), MOST_READINGS)
    left = told["flags"] & ~np.uint8(MISSING) & ~(seen & np.uint8(ONCE))
    rows["flags"][owing] |= np.where(is_left, left, np.uint8(0))
    for name, further in (("power_min_w", np.fmin), ("power_max_w", np.fmax)):
        own = rows[name][owing]
        rows[name][owing] = np.where(is_left, further(own, told[name]), own)
