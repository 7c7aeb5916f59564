"""The power of a large run from a few rows of each ledger: what is shown while the whole is read.

Weeks of hundreds of nodes are gigabytes, and reading them takes most of a minute. A row's columns are cumulative, so
that leaving rows out loses shape and no joules; and a ledger is a row of frames with checksums, in which one can begin
anywhere. So a few hundred places of each file give the mean power of the whole run. What they cannot give are the
lowest and the highest, which every row knows of its own minute.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from functools import reduce
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dashboards.server.power import Power, plus, spread_w
from dashboards.server.power_parts import Places, Read, gap_j, is_measured, places_of
from energy.accounting.placement import RANKS, own_stretches
from energy.accounting.uncertainty import MEASURED
from energy.ledger import frames as ledger
from energy.ledger.readings import Session, tick_dtype
from energy.ledger.seek import Told
from energy.metering.track import MISSING, UNKNOWN
from energy.runs import RunFolder

Array = NDArray[np.float64]
POINTS = 200
FEWEST, LOOKS = 60, 20_000  # points at the least, and places in all ledgers together: a fifth of a second
WINDOW = 1 << 13  # of a ledger, what is read whole at its start, at its end, and where another stretch begins
NOTE = "drawn from {points} rows of each ledger while all are read; then the lowest and highest power will be known too"
EDGE = 1 << 11  # of its end, at first
BY = "sketch"
NONE = -1  # no stretch


def sketch(folder: RunFolder, points: int = POINTS, told: dict[Path, Told] | None = None) -> Power | None:
    """The mean power of each node over the whole run in at most `points` cells; None where no row is found.

    low_w and high_w are not known (NaN). Devices that were not read are counted where a row that was looked at says so.
    told: takes what was seen of each ledger's headers and events, which need not be all events.
    """
    ledgers = folder.ledgers()
    points = min(points, max(FEWEST, LOOKS // max(1, len(ledgers))))
    stretches = [
        (path, session, session.span())
        for path in ledgers
        for session in own_stretches(sample(path, points, told), path.stem, [])
    ]
    if not stretches:
        return None
    start, end = min(span[0] for *_, span in stretches), max(span[1] for *_, span in stretches)
    if end <= start:
        return None
    step_s = (end - start) / points
    edges: Array = np.linspace(start, end, points + 1)
    nodes: dict[str, NDArray[np.float32]] = {}
    unread, modelled = np.zeros(points, np.uint16), np.full(points, np.nan, np.float32)
    devices: set[str] = set()
    used: set[str] | None = None
    believed: dict[str, bool] = {}
    before: tuple[Path, Session, tuple[float, float]] | None = None
    for path, session, span in stretches:
        if any(event.get("event") == RANKS and event["shared"] for event in session.events):
            used = folder.devices_used() if used is None else used  # reads all metrics; nobody else asks who used what
        if path.stem not in believed:
            read = [_read(other, places_of(other, used or set())) for place, other, _ in stretches if place == path]
            believed[path.stem] = reduce(Read.plus, read).is_believed is not False
        places = places_of(session, used or set())
        devices |= {session.sensors[k]["uuid"] for k in places.own}
        node = str(session.header["node"] or path.stem)
        column = nodes.setdefault(node, np.full(points, np.nan, np.float32))
        if before is not None and before[0] == path and (booked_j := gap_j(before[1], session, used or set())) > 0:
            column[:] = plus(column, spread_w(edges, (before[2][1], span[0]), booked_j, step_s))
        _add(session, span, places if believed[path.stem] else places._replace(whole=[]), edges, column, modelled,
             unread)  # fmt: skip
        before = (path, session, span)
    nothing = np.full(points, np.nan, np.float32)
    notes = [NOTE.format(points=points)]
    return Power(start, step_s, nodes, nothing, nothing, unread, end, len(devices), BY, notes, end, modelled, believed)


def _by_sensor(session: Session, whole: list[int]) -> tuple[int, NDArray[np.bool_]]:
    """The sensor of a node that was read in most rows, and in which of the intervals between rows."""
    unknown = (session.ticks["rows"]["flags"][:, whole] & (MISSING | UNKNOWN)) > 0
    at = int(np.argmin(unknown.sum(axis=0)))
    return whole[at], ~(unknown[1:, at] | unknown[:-1, at])


def _used_j(session: Session, places: list[int]) -> Array:
    """J of each of the devices (rows, devices) so far."""
    share = np.array([min(1.0, float(session.sensors[k].get("share", 1.0))) for k in places])
    return session.ticks["rows"]["energy_mj"][:, places] * (share / 1e3)


def _read(session: Session, places: Places) -> Read:
    """What was read of a node while its own sensor was; nothing where it has none."""
    if not places.whole:
        return Read()
    at, known = _by_sensor(session, places.whole)
    measured = [k for k in places.own if is_measured(session, k)]
    used_j = (_used_j(session, each) for each in ([at], places.others, measured))
    return Read(float(known.sum()), *(float(np.diff(each, axis=0)[known].sum()) for each in used_j))


def _add(
    session: Session, span: tuple[float, float], places: Places, edges: Array, column: Any, modelled: Any,
    unread: NDArray[np.uint16],
) -> None:  # fmt: skip
    """Adds a stretch to the mean W of its node in each cell (NaN: outside of all of them), to what of all nodes was not
    measured, and to how many devices were not read."""
    rows, times = session.ticks["rows"], session.times()
    missing = (rows["flags"] & MISSING) > 0
    models = [session.sensors[k]["method"] not in MEASURED for k in places.own]
    parts_j = _used_j(session, places.own)
    used_j, model_j = parts_j.sum(axis=1), parts_j[:, models].sum(axis=1)
    absent = missing[:, places.own].sum(axis=1)
    if places.whole:  # its reading, without what is others', where it was read
        at, known = _by_sensor(session, places.whole)
        node_j = _used_j(session, [at])[:, 0] - _used_j(session, places.others).sum(axis=1)
        steps_j = np.where(known, np.diff(node_j), np.diff(used_j))
        modelled_j = np.diff(node_j) if session.sensors[at]["method"] not in MEASURED else 0.0
        used_j = np.concatenate([[0.0], np.cumsum(steps_j)])
        model_j = np.concatenate([[0.0], np.cumsum(np.where(known, modelled_j, np.diff(model_j)))])
        absent = np.where(missing[:, at], absent, 0)
    cell_s = edges[1] - edges[0]
    first = max(0, int((span[0] - edges[0]) / cell_s))
    last = min(len(column), math.ceil((span[1] - edges[0]) / cell_s))
    if last <= first:
        return
    inside, here = np.clip(edges[first : last + 1], *span), slice(first, last)
    if not missing[:, [*places.own, *places.whole]].all():  # else nothing is known, which is not 0 W
        column[here] = plus(column[here], np.diff(np.interp(inside, times, used_j)) / cell_s)
    if model_j[-1] > model_j[0]:
        modelled[here] = plus(modelled[here], np.diff(np.interp(inside, times, model_j)) / cell_s)
    if missing.any():
        place = np.clip(((times - edges[0]) / cell_s).astype(np.int64), 0, len(unread) - 1)
        lacking = np.zeros_like(unread)
        np.maximum.at(lacking, place, absent.astype(np.uint16))
        unread += lacking


def sample(path: Path, count: int, told: dict[Path, Told] | None = None) -> list[Session]:
    """The stretches of a ledger with about `count` rows at equal distances in the file, and where each begins and ends.

    What is damaged is passed over; of a stretch whose header is lost nothing is given.
    """
    with open(path, "rb") as file:
        found = _Sample(file.fileno())
        before, at = found.take_edge(at_end=False), 0
        apart = max(0, found.size - 2 * WINDOW) / max(1, count - 1)
        for offset in (WINDOW + int(place * apart) for place in range(count)):
            if offset >= found.size:
                break
            after = found.take_one(offset)
            while after not in (NONE, before):  # stretches began between the two places: find each beginning
                before, at = found.take_next_stretch(before, at, offset)
                if before == NONE:
                    before = after  # damaged there
            at = offset
        found.take_edge(at_end=True)
        if told is not None:
            told[path] = found.told()
    return found.sessions()


class _Sample:
    """What was read of an open ledger so far, by stretch. Each reading returns the stretch of its last minute row."""

    def __init__(self, fd: int) -> None:
        self._fd, self.size = fd, os.fstat(fd).st_size
        self._headers: dict[int, dict[str, Any]] = {}
        self._events: dict[int, list[dict[str, Any]]] = {}
        self._ticks: dict[int, dict[int, bytes]] = {}
        self._reach = 4096  # bytes that have a whole frame in them wherever they begin

    def _frames(self, offset: int, length: int) -> Iterator[ledger.Frame]:
        return ledger.found(os.pread(self._fd, length, offset), ends_of=ledger.MINUTE)

    def _take(self, frames: Iterable[ledger.Frame]) -> int:
        last = NONE
        for frame in frames:
            self._reach = max(self._reach, 2 * (frame.end - frame.offset))
            if frame.kind == ledger.MINUTE:
                last, number = ledger.TICK.unpack_from(frame.payload)[:2]
                self._ticks.setdefault(last, {})[number] = frame.payload
            elif frame.kind in (ledger.HEADER, ledger.EVENT):
                document = json.loads(frame.payload)
                if frame.kind == ledger.HEADER:
                    self._headers[document["session"]] = document
                else:
                    self._events.setdefault(document["session"], []).append(document)
        return last

    def take_one(self, offset: int) -> int:
        """The first minute row from there on."""
        rows = (frame for frame in self._frames(offset, self._reach) if frame.kind == ledger.MINUTE)
        return self._take(islice(rows, 1))

    def take_edge(self, at_end: bool) -> int:
        """What is at one end of the file, from so far that a minute row is among it: headers and ends are long."""
        length = min(EDGE, WINDOW) if at_end else WINDOW
        while True:
            last = self._take(self._frames(max(0, self.size - length) if at_end else 0, length))
            if last != NONE or length >= self.size:
                return last
            length *= 4

    def take_next_stretch(self, before: int, low: int, high: int) -> tuple[int, int]:
        """(the stretch, where it is reached) that begins first after `before`, between two places in the file."""
        while high - low > WINDOW:
            middle = (low + high) // 2
            low, high = (middle, high) if self.take_one(middle) == before else (low, middle)
        found = self._take(self._frames(low, high - low + self._reach))
        return (NONE if found == before else found), high

    def told(self) -> Told:
        told = Told()
        told.headers, told.events = self._headers, self._events
        told.add((), self.size, self._fd)
        return told

    def sessions(self) -> list[Session]:
        numbers = sorted(self._ticks.keys() & self._headers.keys())
        found = (self._session(self._headers[number], number) for number in numbers)
        return [session for session in found if len(session.ticks)]

    def _session(self, header: dict[str, Any], number: int) -> Session:
        dtype, events = tick_dtype(len(header["sensors"])), self._events.get(number, [])
        whole = [payload for _, payload in sorted(self._ticks[number].items()) if len(payload) == dtype.itemsize]
        ended = any(event.get("event") == "end" for event in events)
        return Session(header, np.frombuffer(b"".join(whole), dtype), events, ended)


def is_sketch(power: Power | None) -> bool:
    return power is not None and power.by == BY
