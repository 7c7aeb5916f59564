"""The power of a large run from a few rows of each ledger: what is shown while the whole is read.

Weeks of hundreds of nodes are gigabytes, and reading them takes most of a minute. A row's columns are cumulative, so
that leaving rows out loses shape and no joules; and a ledger is a row of frames with checksums, in which one can begin
anywhere. So a few hundred places of each file give the mean power of the whole run. What they cannot give are the
lowest and the highest, which every row knows of its own minute.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dashboards.server.power import Power
from energy.accounting.placement import RANKS, is_others, own_stretches
from energy.ledger import frames as ledger
from energy.ledger.readings import Session, tick_dtype
from energy.ledger.seek import Told
from energy.metering.track import MISSING
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
    stretches = {path: own_stretches(sample(path, points, told), path.stem, []) for path in ledgers}
    spans = [session.span() for sessions in stretches.values() for session in sessions]
    if not spans:
        return None
    start, end = min(first for first, _ in spans), max(last for _, last in spans)
    if end <= start:
        return None
    step_s = (end - start) / points
    edges: Array = np.linspace(start, end, points + 1)
    nodes: dict[str, NDArray[np.float32]] = {}
    unread = np.zeros(points, np.uint16)
    devices: set[str] = set()
    used: set[str] | None = None
    for path, sessions in stretches.items():
        for session in sessions:
            if used is None and any(event.get("event") == RANKS and event["shared"] for event in session.events):
                used = folder.devices_used()  # reads all metrics, and nobody else asks who used what
            mine = [k for k, about in enumerate(session.sensors) if not is_others(about, [session], used or set())]
            devices |= {session.sensors[k]["uuid"] for k in mine if session.sensors[k]["kind"] != "node"}
            mean_w, lacking = _stretch(session, mine, edges)
            node = str(session.header["node"] or path.stem)
            before = nodes.setdefault(node, np.full(points, np.nan, np.float32))
            nodes[node] = np.where(np.isnan(mean_w), before, np.nan_to_num(before) + mean_w).astype(np.float32)
            unread += lacking
    nothing = np.full(points, np.nan, np.float32)
    notes = [NOTE.format(points=points)]
    return Power(start, step_s, nodes, nothing, nothing, unread, end, len(devices), BY, notes, end)


def _stretch(session: Session, mine: list[int], edges: Array) -> tuple[Array, NDArray[np.uint16]]:
    """(mean W of the node in each cell, how many of its devices were not read); NaN outside of the stretch."""
    rows, times = session.ticks["rows"], session.times()
    missing = (rows["flags"] & MISSING) > 0
    whole = [k for k in mine if session.sensors[k]["kind"] == "node" and not missing[:, k].all()]
    parts = whole[:1] or [k for k in mine if session.sensors[k]["kind"] != "node"]
    share = np.array([float(session.sensors[k].get("share", 1.0)) for k in parts])
    used_j = (rows["energy_mj"][:, parts] * share).sum(axis=1) / 1e3
    begin, until = session.span()
    inside = np.minimum(edges[1:], until) > np.maximum(edges[:-1], begin)
    cell_s = edges[1] - edges[0]
    mean_w = np.where(inside, np.diff(np.interp(np.clip(edges, begin, until), times, used_j)) / cell_s, np.nan)
    lacking = np.zeros(len(edges) - 1, np.uint16)
    place = np.clip(((times - edges[0]) / cell_s).astype(np.int64), 0, len(lacking) - 1)
    np.maximum.at(lacking, place, missing[:, parts].sum(axis=1).astype(np.uint16))
    return mean_w, lacking


def sample(path: Path, count: int, told: dict[Path, Told] | None = None) -> list[Session]:
    """The stretches of a ledger with about `count` rows at equal distances in the file, and where each begins and ends.

    What is damaged is passed over; of a stretch whose header is lost nothing is given.
    """
    with open(path, "rb") as file:
        found = _Sample(file.fileno())
        before, at = found.take_edge(at_end=False), 0
        for offset in np.linspace(WINDOW, max(WINDOW, found.size - WINDOW), count).astype(np.int64).tolist():
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
        return ledger.frames(os.pread(self._fd, length, offset), [])

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
