"""Power of a run over time for charts: read from its ledgers, on one grid of cells, and cut to the width of a screen.

A cell is a second, or a minute where the seconds files are too large together to be read whole. Each cell has the mean
power of every node, and the lowest and highest power of all devices in it, so that cutting 36 hours to a thousand
points (by the lowest and highest of each) loses no spike of a second. A closer look reads the ledgers between two
moments only, at the finest distance that they hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from energy.accounting.curves import Curve, curve_of
from energy.accounting.placement import RANKS, is_others, own_stretches
from energy.ledger.readings import Session, read_sessions
from energy.runs import RunFolder
from energy.units import JOULE_PER_KWH

Array = NDArray[np.float64]
Found = tuple[list[Session], list[str]]  # stretches of a ledger, and what in it is damaged
SLICE_BYTES = 4_000_000  # of a seconds file that is expanded at a time
BANDS = 7  # as many colours as can be told apart
STANDS_OUT = 0.25  # of all power, what the nodes that get a colour must have together: less are lines at the foot
SLICE_S = 600.0  # at least
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
    _total_w: Array | None = field(default=None, init=False, repr=False)

    @property
    def cells(self) -> int:
        return len(self.low_w)

    @property
    def end_unix_s(self) -> float:
        return min(self.until_unix_s, self.start_unix_s + self.step_s * self.cells)

    @property
    def nbytes(self) -> int:
        return self.low_w.nbytes * (2 + len(self.mean_w)) + self.unread.nbytes

    def total_w(self) -> Array:
        """Mean power of all nodes in each cell; NaN where none is known."""
        if self._total_w is None:  # column by column: of hundreds of nodes over weeks a table would be large
            total: Array = np.full(self.cells, np.nan)
            for column in self.mean_w.values():
                total = _plus(total, column)
            self._total_w = total
        return self._total_w

    def energy_kwh(self, unix_s: Array) -> Array:
        """IT energy from the first cell up to each moment; what is not known counts as nothing here."""
        edges = self.start_unix_s + self.step_s * np.arange(self.cells + 1)
        edges[-1] = self.end_unix_s
        sums = np.concatenate([[0.0], np.cumsum(np.nan_to_num(self.total_w()) * self.step_s)])
        return np.interp(unix_s, edges, sums) / JOULE_PER_KWH

    def bands(self, most: int) -> dict[str, NDArray[np.float32]]:
        """The nodes by their mean power, those after the first ones as one sum; all as one where none stands out."""
        used = {node: float(np.nan_to_num(column).sum()) for node, column in self.mean_w.items()}
        order = sorted(used, key=lambda node: (-used[node], node))
        if len(order) <= most:
            return {node: self.mean_w[node] for node in sorted(order)}
        if sum(used[node] for node in order[: most - 1]) < STANDS_OUT * sum(used.values()):
            return {f"{len(order)} nodes": self.total_w().astype(np.float32)}
        shown = {node: self.mean_w[node] for node in sorted(order[: most - 1])}
        rest = np.full(self.cells, np.nan, np.float32)
        for node in order[most - 1 :]:
            rest = _plus(rest, self.mean_w[node])
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
        nodes = {}
        width = times[-1] - times[-2] if count else 1.0
        times[-1] = min(times[-1], self.end_unix_s)
        for name, column in self.bands(bands or len(self.mean_w)).items():
            mean = _mean(column[first:last], starts - first)
            if count and times[-1] > times[-2]:
                mean[-1] *= width / (times[-1] - times[-2])  # the power of what is metered of it, not of the whole cell
            nodes[name] = _listed(mean)
        low = np.fmin.reduceat(self.low_w[:last], starts) if count else np.empty(0)
        high = np.fmax.reduceat(self.high_w[:last], starts) if count else np.empty(0)
        unread = np.maximum.reduceat(self.unread[:last], starts) if count else np.empty(0, int)
        return {
            "edges_unix_s": [round(each, 2) for each in times.tolist()] if count else [],
            "nodes": nodes,
            "low_w": _listed(low),
            "high_w": _listed(high),
            "unread": unread.tolist(),
            "energy_kwh": [float(f"{each:.7g}") for each in self.energy_kwh(times).tolist()] if count else [],
            "step_s": self.step_s,
            "by": self.by,
            "devices": self.devices,
            "notes": self.notes,
        }


def on_grid(
    folder: RunFolder,
    start: float,
    end: float,
    step_s: float,
    fine: bool,
    settled: float = 0.0,
    known: Mapping[Path, Found] | None = None,
) -> Power | None:
    """The power between two moments (unix s) in cells of `step_s`; None where nothing was metered.

    fine: by the seconds and raw files too. settled: see `Power`. known: what of this time was read from each ledger
    already.
    """
    cells = math.ceil((end - start) / step_s - SLIVER)
    ledgers = folder.ledgers()
    if cells <= 0 or not ledgers:
        return None
    low, high, unread = np.full(cells, np.nan), np.full(cells, np.nan), np.zeros(cells, np.uint16)
    nodes: dict[str, NDArray[np.float32]] = {}
    notes: list[str] = []
    devices: set[str] = set()
    used: set[str] | None = None
    for path in ledgers:
        for begin, until in _slices(path, start, end, fine) if known is None else [(start, end)]:
            between = (begin - 2 * step_s, until + 2 * step_s)
            sessions, damaged = known[path] if known else read_sessions(path, fine=fine, between=between)
            notes += damaged
            for session in own_stretches(sessions, path.stem, []):
                if used is None and any(event.get("event") == RANKS and event["shared"] for event in session.events):
                    used = folder.devices_used()  # reads all metrics, and nobody else asks who used what
                mine = [k for k, about in enumerate(session.sensors) if not is_others(about, [session], used or set())]
                whole = [k for k in mine if session.sensors[k]["kind"] == "node"]
                parts = [k for k in mine if session.sensors[k]["kind"] != "node"]
                first = max(0, int((begin - start) / step_s))
                last = min(cells, math.ceil((until - start) / step_s - SLIVER))
                if last <= first:
                    continue
                edges: Array = np.minimum(start + step_s * np.arange(first, last + 1, dtype=float), end)
                devices |= {session.sensors[k]["uuid"] for k in parts or whole}
                found = [_device(curve_of(k, session), session, edges, step_s, fine) for k in parts]
                if whole:  # the node's own sensor counts where it was read
                    own = _device(curve_of(whole[0], session), session, edges, step_s, fine)
                    told = [np.where(np.isnan(own[0]), _sum_known(_stack(found, i, own)), own[i]) for i in range(3)]
                    lacking = np.where(np.isnan(own[0]), sum((f[3] for f in found), np.zeros(last - first)), own[3])
                else:
                    told = [_sum_known(_stack(found, i, None)) for i in range(3)]
                    lacking = sum((f[3] for f in found), np.zeros(last - first))
                node = str(session.header["node"] or path.stem)
                column = nodes.setdefault(node, np.full(cells, np.nan, np.float32))
                here = slice(first, last)
                column[here] = _plus(column[here], told[0])
                low[here], high[here] = _plus(low[here], told[1]), _plus(high[here], told[2])
                unread[here] += lacking.astype(np.uint16)
    if not nodes:
        return None
    extremes = low.astype(np.float32), high.astype(np.float32)
    by, notes = "second" if fine else "minute", list(dict.fromkeys(notes))
    return Power(start, step_s, nodes, *extremes, unread, settled, len(devices), by, notes, end)


def _device(
    curve: Curve, session: Session, edges: Array, step_s: float, fine: bool
) -> tuple[Array, Array, Array, Array]:
    """(mean, low, high W, 1 where it was not read) of a device in the cells between `edges`; NaN where not known."""
    cells = len(edges) - 1
    curve = curve.between(*session.span())
    times, power = curve.time_unix_s, curve.power_w
    nothing = np.full(cells, np.nan)
    if len(times) < 2:
        return nothing, nothing, nothing, np.zeros(cells)
    sums = np.interp(edges, times, curve.cumulative_j)
    inside = np.clip(edges, times[0], times[-1])
    passed = np.diff(inside)
    mean = np.where(passed > 0, np.diff(sums) / np.where(passed > 0, passed, 1.0), np.nan)
    share = passed / step_s  # of a cell at the edge of a stretch, what of it was metered
    missing = np.isnan(power[1:])
    gone = np.interp(edges, times, np.concatenate([[0.0], np.cumsum(np.diff(times) * missing)]))
    absent = (np.diff(gone) > 0.5 * np.where(passed > 0, passed, np.inf)).astype(float)
    low, high = mean.copy(), mean.copy()
    mean = np.where(absent > 0, np.nan, mean * share)
    begun = np.floor((times[:-1] - edges[0]) / step_s + 1e-6).astype(np.int64)
    ended = np.ceil((times[1:] - edges[0]) / step_s - 1e-6).astype(np.int64) - 1
    least, most = (power[1:], power[1:]) if fine else (curve.power_min_w[1:], curve.power_max_w[1:])
    # A row no longer than a cell touches two at most; a longer one is the mean of the cells inside it already.
    for place in (begun, ended):
        valid = (place >= 0) & (place < cells) & np.isfinite(least) & (np.diff(times) <= 2 * step_s)
        np.fmin.at(low, place[valid], least[valid])
        np.fmax.at(high, place[valid], most[valid])
    low[absent > 0], high[absent > 0] = np.nan, np.nan
    return mean, low, high, absent


def _stack(found: list[Any], column: int, like: Any) -> Array:
    if not found:
        return np.full((1, len(like[0]) if like is not None else 0), np.nan)
    return np.array([each[column] for each in found])


def _sum_known(rows: Array) -> Array:
    """Sums over devices; NaN where not one is known."""
    return np.where(np.isnan(rows).all(axis=0), np.nan, np.nansum(rows, axis=0))


def _plus(before: Any, more: Any) -> Any:
    return np.where(np.isnan(before), more, before + np.nan_to_num(more))


def _mean(column: NDArray[np.float32], starts: NDArray[np.int64]) -> Array:
    """The mean of what is known in each stretch; NaN where nothing is."""
    if not len(starts):
        return np.empty(0)
    known = np.isfinite(column)
    count = np.add.reduceat(known.astype(np.int64), starts)
    total = np.add.reduceat(np.where(known, column, 0.0).astype(float), starts)
    return np.where(count > 0, total / np.maximum(1, count), np.nan)


def _listed(values: Any) -> list[float | None]:
    return [None if each != each else float(f"{each:.5g}") for each in np.asarray(values, float).tolist()]


def _slices(path: Path, start: float, end: float, fine: bool) -> Iterator[tuple[float, float]]:
    """Such parts of a long time that the rows of each fit the memory; a short one is not cut."""
    seconds = path.with_suffix(".seconds")
    size = seconds.stat().st_size if fine and seconds.exists() else 0
    count = 1 + min(size // SLICE_BYTES, int((end - start) / SLICE_S))
    edges = np.round(np.linspace(start, end, count + 1) - start) + start
    edges[-1] = end
    yield from zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
