"""Power of a run over time for charts: on one grid of cells, and cut to the width of a screen.

A cell is a second, or a minute where the seconds files are too large together to be read whole. Each cell has the mean
power of every node, and the lowest and highest power of all devices in it, so that cutting 36 hours to a thousand
points (by the lowest and highest of each) loses no spike of a second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from energy.units import JOULE_PER_KWH

Array = NDArray[np.float64]
BANDS = 7  # as many colours as can be told apart
STANDS_OUT = 0.25  # of all power, what the nodes that get a colour must have together: less are lines at the foot
SLIVER = 1e-4  # of a cell: times of this day have no more digits


@dataclass
class Power:
    """Cells of `step_s` from `start_unix_s` on. mean_w: {node: W}; low_w, high_w: of all nodes; NaN where not known.

    unread: devices of the run that could not be read in a cell. `by`: "minute" where seconds were too many: then low
    and high are sums of each device's own extremes, which need not have been at the same moment.
    """

    start_unix_s: float
    step_s: float
    mean_w: dict[str, NDArray[np.float32]]
    low_w: NDArray[np.float32]
    high_w: NDArray[np.float32]
    unread: NDArray[np.uint16]
    settled_unix_s: float  # up to here every node has spoken
    devices: int = 0
    by: str = "second"
    notes: list[str] = field(default_factory=list)
    until_unix_s: float = math.inf  # where the last cell is metered up to
    modelled_w: NDArray[np.float32] | None = None  # of the mean power of all nodes, what no sensor measured
    believed: dict[str, bool] = field(default_factory=dict)  # by ledger, whether its node's own sensor counts
    believed_s: float = math.inf  # by what was read of so many seconds
    _total_w: Array | None = field(default=None, repr=False)
    _bands: dict[int, dict[str, NDArray[np.float32]]] = field(default_factory=dict, init=False, repr=False)

    @property
    def cells(self) -> int:
        return len(self.low_w)

    @property
    def end_unix_s(self) -> float:
        return min(self.until_unix_s, self.start_unix_s + self.step_s * self.cells)

    @property
    def nbytes(self) -> int:
        return self.low_w.nbytes * (3 + len(self.mean_w)) + self.unread.nbytes

    def total_w(self) -> Array:
        """Mean power of all nodes in each cell; NaN where none is known."""
        if self._total_w is None:  # column by column: of hundreds of nodes over weeks a table would be large
            total: Array = np.full(self.cells, np.nan)
            for column in self.mean_w.values():
                total = plus(total, column)
            self._total_w = total
        return self._total_w

    def energy_kwh(self, unix_s: Array) -> Array:
        """IT energy from the first cell up to each moment; what is not known counts as nothing here, and is NaN where
        nothing is known at all."""
        if not np.isfinite(self.total_w()).any():
            return np.full(np.shape(unix_s), np.nan)
        edges = self.start_unix_s + self.step_s * np.arange(self.cells + 1)
        edges[-1] = self.end_unix_s
        sums = np.concatenate([[0.0], np.cumsum(np.nan_to_num(self.total_w()) * self.step_s)])
        return np.interp(unix_s, edges, sums) / JOULE_PER_KWH

    def bands(self, most: int) -> dict[str, NDArray[np.float32]]:
        """The nodes by their mean power, those after the first ones as one sum; all as one where none stands out."""
        if most not in self._bands:
            self._bands[most] = self._banded(most)
        return self._bands[most]

    def _banded(self, most: int) -> dict[str, NDArray[np.float32]]:
        used = {node: float(np.nan_to_num(column).sum()) for node, column in self.mean_w.items()}
        order = sorted(used, key=lambda node: (-used[node], node))
        if len(order) <= most:
            return {node: self.mean_w[node] for node in sorted(order)}
        if sum(used[node] for node in order[: most - 1]) < STANDS_OUT * sum(used.values()):
            return {f"{len(order)} nodes": self.total_w().astype(np.float32)}
        shown = {node: self.mean_w[node] for node in sorted(order[: most - 1])}
        rest = np.full(self.cells, np.nan, np.float32)
        for node in order[most - 1 :]:
            rest = plus(rest, self.mean_w[node])
        return shown | {f"{len(order) - most + 1} other nodes": rest}

    def cut(self, start_unix_s: float, end_unix_s: float, points: int, bands: int | None = BANDS) -> dict[str, Any]:
        """At most `points` stretches between two moments, as lists for JSON: None is not known.

        bands: of how many nodes each alone, the others as one; None: all.
        """
        first = int(np.clip((start_unix_s - self.start_unix_s) / self.step_s, 0, self.cells))
        last = int(np.clip(np.ceil((end_unix_s - self.start_unix_s) / self.step_s - SLIVER), first, self.cells))
        count = min(points, last - first)
        starts = first + np.unique((np.arange(count) * ((last - first) / max(1, count))).astype(np.int64))
        times = self.start_unix_s + self.step_s * np.append(starts, last)
        width = times[-1] - times[-2] if count else 1.0
        times[-1] = min(times[-1], self.end_unix_s)

        def mean_of(column: NDArray[np.float32]) -> list[float | None]:
            mean = _mean(column[first:last], starts - first)
            if count and times[-1] > times[-2]:
                mean[-1] *= width / (times[-1] - times[-2])  # the power of what is metered of it, not of the whole cell
            return listed(mean)

        nodes = {name: mean_of(column) for name, column in self.bands(bands or len(self.mean_w)).items()}
        modelled = None if self.modelled_w is None else mean_of(self.modelled_w)
        low = np.fmin.reduceat(self.low_w[:last], starts) if count else np.empty(0)
        high = np.fmax.reduceat(self.high_w[:last], starts) if count else np.empty(0)
        unread = np.maximum.reduceat(self.unread[:last], starts) if count else np.empty(0, int)
        return {
            "edges_unix_s": [round(each, 2) for each in times.tolist()] if count else [],
            "nodes": nodes,
            "modelled_w": modelled,
            "low_w": listed(low),
            "high_w": listed(high),
            "unread": unread.tolist(),
            "energy_kwh": listed(self.energy_kwh(times), 7) if count else [],
            "step_s": self.step_s,
            "by": self.by,
            "devices": self.devices,
            "notes": self.notes,
        }


def plus(before: Any, more: Any) -> Any:
    return np.where(np.isnan(before), more, before + np.nan_to_num(more))


def spread_w(edges: Array, span: tuple[float, float], energy_j: float, step_s: float) -> Array:
    """Energy that was used evenly over a span (unix s), as the mean W of cells; NaN in those outside of it."""
    inside_s = np.diff(np.clip(edges, *span))
    return np.where(inside_s > 0, energy_j / (span[1] - span[0]) * inside_s / step_s, np.nan)


def _mean(column: NDArray[np.float32], starts: NDArray[np.int64]) -> Array:
    """The mean of what is known in each stretch; NaN where nothing is."""
    if not len(starts):
        return np.empty(0)
    known = np.isfinite(column)
    count = np.add.reduceat(known.astype(np.int64), starts)
    total = np.add.reduceat(np.where(known, column, 0.0).astype(float), starts)
    return np.where(count > 0, total / np.maximum(1, count), np.nan)


def listed(values: Any, digits: int = 5) -> list[float | None]:
    return [None if each != each else float(f"{each:.{digits}g}") for each in np.asarray(values, float).tolist()]
