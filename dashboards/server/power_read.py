"""Reads the power of a run from its ledgers onto a grid of cells: all of it, or what lies between two moments."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dashboards.server.power import SLIVER, Array, Power, plus, spread_w
from dashboards.server.power_parts import Read, gap_j, is_measured, places_of
from energy.accounting.curves import held_to_end
from energy.accounting.placement import RANKS, own_stretches
from energy.accounting.uncertainty import MEASURED
from energy.ledger.frames import SECONDS
from energy.ledger.readings import Session, read_sessions
from energy.ledger.seek import Told, part_size
from energy.metering.readers import SLOW_S
from energy.metering.track import MISSING, UNKNOWN
from energy.runs import RunFolder

Pause = Callable[[], None]
SLICE_BYTES = 1_000_000  # of a seconds file that is expanded at a time
SLICE_S = 600.0  # at least
LATE_S = 3600.0  # a node that writes so much later than the others is waited for


def on_grid(
    folder: RunFolder,
    start: float,
    end: float,
    step_s: float,
    *,
    rows: bool,
    by: str,
    told: Mapping[Path, Told],
    settled: float | None = None,
    believed: Mapping[str, bool] | None = None,
    pause: Pause | None = None,
) -> Power | None:
    """The power between two moments (unix s) in cells of `step_s`; None where nothing was metered.

    rows: from the seconds and raw files too. by: what low and high are of, "second": of the mean power of each row, or
    "minute": of the lowest and highest that each row knows. told: by ledger. settled: see `Power`; None: to be found,
    and the end with it, which is then not after `end`. believed: see `Power`; what is not in it is found from what is
    read. pause: called between two ledgers.
    """
    cells, ledgers = math.ceil((end - start) / step_s - SLIVER), folder.ledgers()
    if cells <= 0 or not ledgers:
        return None
    grid = _Grid(np.minimum(start + step_s * np.arange(cells + 1, dtype=float), end), step_s)
    notes: list[str] = []
    devices: set[str] = set()
    ends: list[float] = []
    used: set[str] | None = None
    found_believed: dict[str, bool] = {}
    for path in ledgers:
        newest, seen, read = -math.inf, dict[int, tuple[float, float]](), Read()
        undecided: list[tuple[str, int, _Drawn]] = []
        if pause is not None:
            pause()
        for begin, until in _slices(path, start, end, rows):
            # Up to a row of afterwards, which says what was drawn until then: that of a model comes every SLOW_S.
            between = (begin - 2 * step_s, until + max(2 * step_s, 2 * SLOW_S))
            sessions, damaged = read_sessions(path, fine=rows, between=between, told=told.get(path))
            notes += damaged
            newest = max([newest, *(session.span()[1] for session in sessions)])
            for session in own_stretches(sessions, path.stem, []):
                if used is None and any(event.get("event") == RANKS and event["shared"] for event in session.events):
                    used = folder.devices_used()  # reads all metrics, and nobody else asks who used what
                number, times = int(session.ticks["session"][0]), session.ticks["unix_s"]
                seen[number] = (seen.get(number, times)[0], times[-1])
                first = max(0, int((begin - start) / step_s))
                last = min(cells, math.ceil((until - start) / step_s - SLIVER))
                if last <= first:
                    continue
                drawn = _node(session, used or set(), grid.edges[first : last + 1], step_s, by == "second")
                devices |= drawn.devices
                read = read.plus(drawn.read)
                node = str(session.header["node"] or path.stem)
                if drawn.by_sensor is None:
                    grid.add(node, first, drawn.by_parts)
                else:  # whether its sensor is believed is known at the end
                    undecided.append((node, first, drawn))
        is_believed = (believed or {}).get(path.stem, read.is_believed)
        if is_believed is not None:
            found_believed[path.stem] = is_believed
        for node, first, drawn in undecided:
            assert drawn.by_sensor is not None
            grid.add(node, first, drawn.by_sensor if is_believed else drawn.by_parts)
        for (_, left), (right, _) in pairwise(times for _, times in sorted(seen.items())):
            near = read_sessions(path, fine=rows, between=(left, right + SLIVER), told=told.get(path))[0]
            for old, new in pairwise(own_stretches(near, path.stem, [])):
                span = (old.span()[1], new.span()[0])
                grid.add_gap(str(new.header["node"] or path.stem), span, gap_j(old, new, used or set()))
        if newest > -math.inf:
            ends.append(newest)
    if not grid.mean_w:
        return None
    if settled is None:
        settled, end = max(min(ends), max(ends) - LATE_S), min(end, max(ends))
        cells = min(cells, max(0, math.ceil((end - start) / step_s - SLIVER)))
    nodes = {node: column[:cells] for node, column in grid.mean_w.items()}
    extremes = grid.low_w[:cells].astype(np.float32), grid.high_w[:cells].astype(np.float32)
    notes = list(dict.fromkeys(notes))
    found = Power(start, step_s, nodes, *extremes, grid.unread[:cells], settled, len(devices), by, notes, end)
    found.modelled_w = grid.modelled_w[:cells].astype(np.float32)
    found.believed, found.believed_s = found_believed, end - start
    return found


class _Columns(NamedTuple):
    """What a node drew in each cell: mean, low and high W of the run's devices, of the mean what was not measured (0 W
    where all of it was), and how many of them were not read."""

    mean_w: Array
    low_w: Array
    high_w: Array
    modelled_w: Array
    lacking: Array


class _Drawn(NamedTuple):
    """A stretch in cells. by_sensor: with the node's own sensor where it was read; None where it has none."""

    devices: set[str]
    by_parts: _Columns
    by_sensor: _Columns | None
    read: Read


class _Grid:
    """Sums over stretches, in cells."""

    def __init__(self, edges: Array, step_s: float) -> None:
        cells = len(edges) - 1
        self.edges, self.step_s = edges, step_s
        self.low_w, self.high_w, self.modelled_w = (np.full(cells, np.nan) for _ in range(3))
        self.unread = np.zeros(cells, np.uint16)
        self.mean_w: dict[str, NDArray[np.float32]] = {}

    def add(self, node: str, first: int, drawn: _Columns) -> None:
        here = slice(first, first + len(drawn.mean_w))
        column = self.mean_w.setdefault(node, np.full(len(self.edges) - 1, np.nan, np.float32))
        column[here] = plus(column[here], drawn.mean_w)
        self.low_w[here] = plus(self.low_w[here], drawn.low_w)
        self.high_w[here] = plus(self.high_w[here], drawn.high_w)
        self.modelled_w[here] = plus(self.modelled_w[here], drawn.modelled_w)
        self.unread[here] += drawn.lacking.astype(np.uint16)

    def add_gap(self, node: str, span: tuple[float, float], energy_j: float) -> None:
        """Energy of which nothing is known but the span (unix s) in which it was used."""
        if energy_j > 0:
            mean_w = spread_w(self.edges, span, energy_j, self.step_s)
            unknown = np.full(len(mean_w), np.nan)
            # At its edges the rows beside it tell the lowest and highest power.
            extremes_w = np.where(np.isnan(self.mean_w.get(node, unknown)), mean_w, np.nan)
            self.add(node, 0, _Columns(mean_w, extremes_w, extremes_w, 0.0 * mean_w, np.zeros(len(mean_w))))


def _node(session: Session, used: set[str], edges: Array, step_s: float, second: bool) -> _Drawn:
    own, others, whole = places_of(session, used)
    places = [*own, *others, *whole]
    mean, low, high, absent = _devices(session, places if whole else own, edges, step_s, second)
    count = len(own)
    mean_w, low_w, high_w = (_sum_known(each[:, :count]) for each in (mean, low, high))
    models = [place for place, k in enumerate(own) if session.sensors[k]["method"] not in MEASURED]
    lacking = absent[:, :count].sum(axis=1)
    parts = _Columns(mean_w, low_w, high_w, np.nan_to_num(mean[:, models]).sum(axis=1) + 0.0 * mean_w, lacking)
    devices = {session.sensors[k]["uuid"] for k in own or whole}
    if not whole:
        return _Drawn(devices, parts, None, Read())
    # Of several sensors of the node the one that was read longest.
    at = max(range(count + len(others), len(places)), key=lambda place: int(np.isfinite(mean[:, place]).sum()))
    lost = np.isnan(mean[:, at])
    others_w = np.nan_to_num(mean[:, count : count + len(others)]).sum(axis=1)  # they are in its reading
    measured = [place for place, k in enumerate(own) if is_measured(session, k)]
    own_w = np.nan_to_num(mean[:, measured]).sum(axis=1)
    read = Read(*(float(each[~lost].sum()) * step_s for each in (~lost, mean[:, at], others_w, own_w)))
    modelled_w = mean[:, at] * (session.sensors[places[at]]["method"] not in MEASURED)
    by_sensor = [
        np.where(lost, by_parts, by_node)
        for by_parts, by_node in zip(
            parts,
            (*(each[:, at] - others_w for each in (mean, low, high)), modelled_w, absent[:, at]),
            strict=True,
        )
    ]
    return _Drawn(devices, parts, _Columns(*by_sensor), read)


def _devices(
    session: Session, places: list[int], edges: Array, step_s: float, second: bool
) -> tuple[Array, Array, Array, Array]:
    """(mean, low, high W, 1 where it was not read) of devices, (cells, devices); NaN where not known.

    As `energy.accounting.curves.curve_of` has it of each, for all at once: of hundreds of nodes the calls add up.
    """
    cells, rows = len(edges) - 1, session.ticks["rows"][:, places]
    mean = np.full((cells, len(places)), np.nan)
    if len(rows) < 2 or not places:
        return mean, mean.copy(), mean.copy(), np.zeros_like(mean)
    age_s = session.ticks["monotonic_s"][:, None] - rows["at_s"]
    times = np.maximum.accumulate(session.times()[:, None] - age_s, axis=0)
    share = np.array([min(1.0, float(session.sensors[k].get("share", 1.0))) for k in places])
    used_j = rows["energy_mj"] * (share / 1e3)
    asked = (rows["n"] > 0) | (rows["flags"] != 0)
    waits = (np.arange(len(rows))[:, None] < asked.argmax(axis=0)) & asked.any(axis=0)  # a model was looked up
    times, used_j = np.where(waits, times[0], times), np.where(waits, used_j[0], used_j)
    spans_s = np.diff(times, axis=0)
    power_w = np.full(spans_s.shape, np.nan)
    np.divide(np.diff(used_j, axis=0), spans_s, out=power_w, where=spans_s > 0)
    power_w[(rows["flags"][1:] & (MISSING | UNKNOWN)) > 0] = np.nan
    least, most = (power_w, power_w) if second else (rows["power_min_w"][1:], rows["power_max_w"][1:])
    held = _held(session, places, times, power_w)
    if held is not None:  # as another row, in which the other devices have nothing new
        ends, held_w = held
        spans_s = np.concatenate([spans_s, [ends - times[-1]]])
        used_j = np.concatenate([used_j, [used_j[-1] + np.nan_to_num(held_w) * spans_s[-1]]])
        times, power_w = np.concatenate([times, [ends]]), np.concatenate([power_w, [held_w]])
        least, most = np.concatenate([least, [held_w]]), np.concatenate([most, [held_w]])
    begin, until = session.span()
    since, upto = np.clip(begin, times[0], times[-1]), np.clip(max(begin, until), times[0], times[-1])
    inside = np.clip(edges[:, None], since, upto)
    passed_s = np.diff(inside, axis=0)
    sums = np.stack([np.interp(inside[:, k], times[:, k], used_j[:, k]) for k in range(len(places))], axis=1)
    np.divide(np.diff(sums, axis=0), passed_s, out=mean, where=passed_s > 0)
    low, high = mean.copy(), mean.copy()
    left, right = np.clip(times[:-1], since, upto), np.clip(times[1:], since, upto)
    absent = np.zeros(mean.shape, bool)
    unknown = np.isnan(power_w) & (spans_s > 0)
    for k in np.flatnonzero(unknown.any(axis=0)):
        gone_s = np.concatenate([[0.0], np.cumsum(spans_s[:, k] * unknown[:, k])])
        gone = np.diff(np.interp(inside[:, k], times[:, k], gone_s))
        absent[:, k] = gone > 0.5 * np.where(passed_s[:, k] > 0, passed_s[:, k], np.inf)
    mean *= passed_s / step_s  # of a cell at an edge, what of it was metered
    mean[absent & ~(mean > 0)] = np.nan  # what is booked is drawn: where a device was lost, up to the loss
    # A row no longer than a cell touches two at most; a longer one is the mean of the cells inside it already.
    fits = np.isfinite(least) & (right - left <= 2 * step_s)
    fits &= (right > left) | ((spans_s == 0) & (left > since) & (left < upto))
    device = np.broadcast_to(np.arange(len(places)), fits.shape)
    for cell in (
        np.floor((left - edges[0]) / step_s + 1e-6).astype(np.int64),
        np.ceil((right - edges[0]) / step_s - 1e-6).astype(np.int64) - 1,
    ):
        valid = fits & (cell >= 0) & (cell < cells)
        where = (cell[valid], device[valid])
        np.fmin.at(low, where, least[valid])
        np.fmax.at(high, where, most[valid])
    nothing = absent & np.isnan(mean)
    low[nothing], high[nothing] = np.nan, np.nan
    return mean, low, high, absent.astype(float)


def _held(session: Session, places: list[int], times: Array, power_w: Array) -> tuple[Array, Array] | None:
    """(unix s, W) of each device: until when it is held at what it said last (`held_to_end`), and NaN for those that
    are not; None where none is."""
    ends, held_w = times[-1].copy(), np.full(len(places), np.nan)
    models = [k for k, place in enumerate(places) if session.sensors[place]["method"] not in MEASURED]
    for k in models if not session.ended else ():
        first = session.ticks["rows"][0, places[k]]
        read_w = math.nan if first["flags"] & MISSING else (first["power_min_w"] + first["power_max_w"]) / 2.0
        held = held_to_end(places[k], session, times[:, k], np.append(read_w, power_w[:, k]))
        if held is not None:
            ends[k], held_w[k] = held
    return None if np.isnan(held_w).all() else (ends, held_w)


def _sum_known(columns: Array) -> Array:
    """Sums over devices; NaN where not one is known."""
    known = ~np.isnan(columns)
    return np.where(known.any(axis=1), np.where(known, columns, 0.0).sum(axis=1), np.nan)


def _slices(path: Path, start: float, end: float, rows: bool) -> Iterator[tuple[float, float]]:
    """Such parts of a long time that the rows of each fit the memory; a short one is not cut."""
    most = int((end - start) / SLICE_S)
    size = part_size(path.with_suffix(".seconds"), SECONDS, (start, end)) if rows and most else 0
    count = 1 + min(size // SLICE_BYTES, most)
    edges = np.round(np.linspace(start, end, count + 1) - start) + start
    edges[-1] = end
    yield from zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
