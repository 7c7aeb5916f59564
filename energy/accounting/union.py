"""One device in several runs: pieces of its curve put together, each moment once, told by whoever knew it.

Where a run knows no more than a sum (a gap between a crash and the restart, an interval in which a device was lost),
what others counted within that time is taken off it first, and only what is left is spread over the rest of the time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from energy.accounting.curves import Array, Curve, Gap
from energy.accounting.whole_node import Span, Straight

WHOLE = "whole"  # of a device that is not parted into MIG instances


@dataclass
class Owner:
    """Whose a piece is: the run, and what parts of the device it stands for: {MIG instance: its share}, or {WHOLE: 1}.

    is_own: the device was the run's, and not that of others on a shared node.
    """

    run: str
    parts: dict[str, float]
    method: str
    is_own: bool


@dataclass
class Piece:
    """A span of one device in one run: unix s, cumulative J of the whole of it. is_sum: of the time in between nothing
    is known but the energy of all of it."""

    times: Array
    energy_j: Array
    owner: Owner
    is_sum: bool = False

    @property
    def length_s(self) -> float:
        return float(self.times[-1] - self.times[0])

    @property
    def used_j(self) -> float:
        return float(self.energy_j[-1] - self.energy_j[0])

    def energy_between_j(self, start: float, end: float) -> float:
        # Of several rows at its first moment (a clock was set back) np.interp would give the last.
        before_j = np.interp(start, self.times, self.energy_j) if start > self.times[0] else self.energy_j[0]
        return float(np.interp(end, self.times, self.energy_j) - before_j)


def pieces_of(curves: Iterable[Curve], gaps: Iterable[Gap], owner: Owner) -> list[Piece]:
    """What a run knows of a device. Where it knows nothing there is no piece, and another run's readings may tell."""
    share, found = _share(owner.parts), []
    for curve in curves:
        times, sofar_j = curve.time_unix_s, curve.booked_j / share
        if len(times) == 1:  # nothing but a reading: what a model said of the time before it
            found.append(Piece(np.repeat(times, 2), np.append(0.0, sofar_j), owner))
            continue
        is_told = curve.known[1:] | (np.diff(times) <= 0)
        changes = np.flatnonzero(is_told[1:] != is_told[:-1]) + 1
        for first, last in pairwise([0, *changes.tolist(), len(is_told)]):
            whole = bool(is_told[first])
            grown = [first] if whole else (first + np.flatnonzero(np.diff(sofar_j[first : last + 1]) > 0)).tolist()
            for start in grown:
                end = (last if whole else start + 1) + 1
                found.append(Piece(times[start:end], sofar_j[start:end], owner, is_sum=not whole))
    for gap in gaps:
        line = Straight.over(gap)
        if gap.energy_j > 0:
            found.append(Piece(line.time_unix_s, line.booked_j / share, owner, is_sum=True))
    return [piece for piece in found if piece.length_s > 0 or piece.used_j > 0]


def _share(parts: dict[str, float]) -> float:
    """Of a device: all its parts are at most the whole of it."""
    return min(1.0, math.fsum(parts.values()))


def union_j(pieces: Sequence[Piece], spans: Sequence[Span] | None = None) -> float:
    """Energy in J of a device over the union of times and parts that these pieces stand for; all of it, or in spans.

    Of several that know a moment, the one that began first tells it.
    """
    long = sorted(
        (piece for piece in pieces if piece.length_s > 0), key=lambda piece: (piece.times[0], -piece.times[-1])
    )
    edges = sorted({float(edge) for piece in long for edge in (piece.times[0], piece.times[-1])}.union(*spans or ()))
    told_j = np.full(max(0, len(edges) - 1), np.nan)  # of the whole device, from each edge to the next
    shares = np.zeros(len(told_j))
    open_pieces: list[Piece] = []
    waiting = iter(long)
    following = next(waiting, None)
    for place, (start, end) in enumerate(pairwise(edges)):
        open_pieces = [piece for piece in open_pieces if piece.times[-1] > start]
        while following is not None and following.times[0] <= start:
            open_pieces.append(following)
            following = next(waiting, None)
        parts: dict[str, float] = {}
        for piece in open_pieces:
            parts |= piece.owner.parts
        shares[place] = _share(parts)
        teller = next((piece for piece in open_pieces if not piece.is_sum), None)
        if teller is not None:
            told_j[place] = teller.energy_between_j(start, end)
    _spread((piece for piece in long if piece.is_sum), np.array(edges), told_j)
    used_j = (np.nan_to_num(told_j) * shares).tolist()
    if spans is not None:
        places = np.searchsorted(edges, np.array(spans).reshape(-1, 2))
        return math.fsum(math.fsum(used_j[first:last]) for first, last in places.tolist())
    return math.fsum([*used_j, *(p.used_j * _share(p.owner.parts) for p in pieces if p.length_s <= 0)])


def _spread(sums: Iterable[Piece], edges: Array, told_j: Array) -> None:
    """Fill what nobody read (NaN in `told_j`) with what is left of each sum, the shortest first: it says most."""
    for piece in sorted(sums, key=lambda piece: piece.length_s):
        first, last = np.searchsorted(edges, (piece.times[0], piece.times[-1])).tolist()
        inside_j, lengths_s = told_j[first:last], np.diff(edges[first : last + 1])
        unread = np.isnan(inside_j)
        if unread.any():
            left_j = max(0.0, piece.used_j - float(inside_j[~unread].sum()))
            inside_j[unread] = left_j * lengths_s[unread] / lengths_s[unread].sum()
