"""Reads the power of a run from its ledgers onto a grid of cells: all of it, or what lies between two moments."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dashboards.server.power import SLIVER, Array, Power, plus
from energy.accounting.curves import held_to_end
from energy.accounting.placement import RANKS, is_others, own_stretches
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
    pause: Pause | None = None,
) -> Power | None:
    """The power between two moments (unix s) in cells of `step_s`; None where nothing was metered.

    rows: from the seconds and raw files too. by: what low and high are of, "second": of the mean power of each row, or
    "minute": of the lowest and highest that each row knows. told: by ledger. settled: see `Power`; None: to be found,
    and the end with it, which is then not after `end`. pause: called between two ledgers.
    """
    cells, ledgers = math.ceil((end - start) / step_s - SLIVER), folder.ledgers()
    if cells <= 0 or not ledgers:
        return None
    low, high, unread = np.full(cells, np.nan), np.full(cells, np.nan), np.zeros(cells, np.uint16)
    modelled = np.full(cells, np.nan)
    nodes: dict[str, NDArray[np.float32]] = {}
    notes: list[str] = []
    devices: set[str] = set()
    ends: list[float] = []
    used: set[str] | None = None
    for path in ledgers:
        newest = -math.inf
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
                first = max(0, int((begin - start) / step_s))
                last = min(cells, math.ceil((until - start) / step_s - SLIVER))
                if last <= first:
                    continue
                edges: Array = np.minimum(start + step_s * np.arange(first, last + 1, dtype=float), end)
                drawn = _node(session, used or set(), edges, step_s, by == "second")
                devices |= drawn.devices
                node = str(session.header["node"] or path.stem)
                column = nodes.setdefault(node, np.full(cells, np.nan, np.float32))
                here = slice(first, last)
                column[here] = plus(column[here], drawn.mean_w)
                low[here], high[here] = plus(low[here], drawn.low_w), plus(high[here], drawn.high_w)
                modelled[here] = plus(modelled[here], drawn.modelled_w)
                unread[here] += drawn.lacking.astype(np.uint16)
        if newest > -math.inf:
            ends.append(newest)
    if not nodes:
        return None
    if settled is None:
        settled, end = max(min(ends), max(ends) - LATE_S), min(end, max(ends))
        cells = min(cells, max(0, math.ceil((end - start) / step_s - SLIVER)))
        nodes = {node: column[:cells] for node, column in nodes.items()}
    extremes = low[:cells].astype(np.float32), high[:cells].astype(np.float32)
    notes = list(dict.fromkeys(notes))
    found = Power(start, step_s, nodes, *extremes, unread[:cells], settled, len(devices), by, notes, end)
    found.modelled_w = modelled[:cells].astype(np.float32)
    return found


class _Drawn(NamedTuple):
    """What a node drew in each cell: mean, low and high W of the run's devices, of the mean what was not measured, and
    how many of them were not read."""

    devices: set[str]
    mean_w: Array
    low_w: Array
    high_w: Array
    modelled_w: Array
    lacking: Array


def _node(session: Session, used: set[str], edges: Array, step_s: float, second: bool) -> _Drawn:
    mine = [k for k, about in enumerate(session.sensors) if not is_others(about, [session], used)]
    whole = [k for k in mine if session.sensors[k]["kind"] == "node"][:1]
    parts = [k for k in mine if session.sensors[k]["kind"] != "node"]
    mean, low, high, absent = _devices(session, [*parts, *whole], edges, step_s, second)
    mean_w, low_w, high_w = (_sum_known(each[:, : len(parts)]) for each in (mean, low, high))
    lacking = absent[:, : len(parts)].sum(axis=1)
    models = [place for place, k in enumerate([*parts, *whole]) if session.sensors[k]["method"] not in MEASURED]
    modelled = _sum_known(mean[:, [place for place in models if place < len(parts)]])
    if whole:  # the node's own sensor counts where it was read
        own = np.isnan(mean[:, -1])
        mean_w, low_w, high_w = (
            np.where(own, sums, each[:, -1]) for sums, each in ((mean_w, mean), (low_w, low), (high_w, high))
        )
        lacking = np.where(own, lacking, absent[:, -1])
        modelled = np.where(own, modelled, mean[:, -1] if len(parts) in models else np.nan)
    return _Drawn({session.sensors[k]["uuid"] for k in parts or whole}, mean_w, low_w, high_w, modelled, lacking)


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
