"""Writes a node's ledger: every reading to the raw file, thinned to seconds and minutes as time goes by.

Thinning keeps whole rows and merges only what speaks of the time since the row before (extremes, counts, flags). A
row at which a device's state changes is kept at every distance, with the one before it, so that a gap or a reset has
its true edges in the minute file too.
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from energy.ledger import frames as ledger
from energy.ledger import seconds
from energy.ledger.frames import MINUTE, RAW, SECONDS, Appender, encode_json
from energy.metering.track import MISSING, RESET, UNKNOWN, Row

EARLY_S = 0.25
RAW_BYTES = 8_000_000  # two raw files of this size: about four hours of ten devices at two readings a second
CHANGES = MISSING | RESET | UNKNOWN  # a row at which one of these comes or goes is kept at every distance
# A device that comes and goes all the time must not fill the files: so many changes an hour have their true edges. The
# rows that are kept anyway have the energy and the flags of the rest.
MOST_CHANGES, MOST_FINE_CHANGES, MOST_NEWS = 60, 600, 120
# The same words for every node, so that a record of many has them once.
NO_LOCKS = (
    "the file system of the ledgers has no locks (flock): a meter on another machine that writes one of them too would "
    "not be refused, and each might take back what the other wrote; no two machines may have one name there"
)
BACKLOG = 512  # frames that wait in memory while the disk takes none; beyond it every second minute is dropped


class Tick(NamedTuple):
    """One reading of all devices: when, and their states in the order of the header's sensors."""

    session: int
    number: int
    unix_s: float
    monotonic_s: float
    attempt: int
    rows: tuple[Row, ...]


def pack(tick: Tick) -> bytes:
    head = ledger.TICK.pack(*tick[:5], len(tick.rows))
    state = ledger.STATE.pack
    return head + b"".join([state(row[0], min(row[1], 65535), *row[2:]) for row in tick.rows])


class Allowance:
    """So many of something in an hour."""

    def __init__(self, per_hour: int) -> None:
        self._per_hour, self._hour, self._taken = per_hour, -1, 0

    def take(self, now_s: float) -> bool:
        hour = int(now_s // 3600)
        if hour != self._hour:
            self._hour, self._taken = hour, 0
        self._taken += 1
        return self._taken <= self._per_hour


class Thinner:
    """Passes on the ticks that are kept at a distance of at least `every_s`, and all changes of state.

    A row that is kept covers the time since the one kept before: extremes, counts and flags of those left out are
    gathered in it.
    """

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._kept_s: float | None = None
        self._waiting: Tick | None = None  # the newest tick, not kept so far
        self._gathered: list[list[Any]] = []  # of each device since the last kept row: flags, n, lowest and highest W

    def push(self, tick: Tick, changed: bool) -> list[Tick]:
        kept = self.flush() if changed else []
        if self._waiting is not None:
            self._gather(self._waiting, tick)
        self._waiting = tick
        # Readings come a little early or late: a second must not last two because of it.
        if changed or self._kept_s is None or tick.monotonic_s - self._kept_s >= self._every_s - EARLY_S:
            kept += self.flush()
        return kept

    def _gather(self, left_out: Tick, tick: Tick) -> None:
        """Add what a tick says of its time to what was gathered since the last kept row."""
        if not self._gathered:
            self._gathered = [[row.flags, row.n, row.power_min_w, row.power_max_w] for row in left_out.rows]
        for sofar, row in zip(self._gathered, tick.rows, strict=True):
            sofar[0] = sofar[0] & ~MISSING | row.flags
            sofar[1] += row.n
            # NaN (no power was read) loses every comparison, so that it must not be the one compared with.
            if row.power_min_w < sofar[2] or sofar[2] != sofar[2]:
                sofar[2] = row.power_min_w
            if row.power_max_w > sofar[3] or sofar[3] != sofar[3]:
                sofar[3] = row.power_max_w

    def flush(self) -> list[Tick]:
        """What is still waiting: the newest tick."""
        tick, self._waiting = self._waiting, None
        if tick is None:
            return []
        gathered, self._gathered = self._gathered, []
        self._kept_s = tick.monotonic_s
        if not gathered:
            return [tick]
        rows = tuple(
            Row(flags, n, row.at_s, low, high, *row[5:])
            for (flags, n, low, high), row in zip(gathered, tick.rows, strict=True)
        )
        return [tick._replace(rows=rows)]


class LedgerWriter:
    """The three files of one node. What the disk refuses is kept thinned in memory; `faults` says so.

    A ledger that exists is continued: `session` counts its metering stretches, and the last reading of a killed one
    is taken over from its raw file. Raises OSError when the folder cannot be written at all.
    """

    def __init__(self, path: str | os.PathLike[str], fsync_s: float = 10.0) -> None:
        self.path = Path(path)
        self.faults: list[str] = []
        self._pending: list[tuple[bytes, bytes]] = []
        self._raw_path = self.path.with_suffix(".raw")
        self._block: list[Tick] = []
        self._by_second, self._by_minute = Thinner(1.0), Thinner(60.0)
        self._flags: tuple[int, ...] = ()
        self._second_flags: tuple[int, ...] = ()
        self._second_changes, self._minute_changes = Allowance(MOST_FINE_CHANGES), Allowance(MOST_CHANGES)
        self._news = Allowance(MOST_NEWS)
        with ExitStack() as opened:  # what is open already is let go when one of them cannot be had, or not be read
            self._main = Appender(self.path, fsync_s)
            opened.callback(self._main.close)
            self._raw: Appender | None = Appender(self._raw_path, fsync_s)
            opened.callback(self._raw.close)
            self._seconds = Appender(self.path.with_suffix(".seconds"), 60.0)
            opened.callback(self._seconds.close)
            self.session = self._take_over() + 1
            opened.pop_all()
        if not self._main.locked:
            self.faults.append(NO_LOCKS)

    def header(self, document: dict[str, Any]) -> None:
        """Begin a stretch of metering: node, boot, sensors (their order is the rows')."""
        self._queue(ledger.HEADER, encode_json({"schema": ledger.SCHEMA, "session": self.session, **document}))
        for appender in (self._main, self._raw, self._seconds):
            if appender is not None and appender.cut_bytes:
                self.event({"event": "repaired", "file": appender.path.name, "bytes": appender.cut_bytes})

    def event(self, document: dict[str, Any]) -> None:
        """Note what happened in between readings: a lost device, a window, the orderly end."""
        self._queue(ledger.EVENT, encode_json({"session": self.session, **document}))

    def news(self, now_s: float, document: dict[str, Any]) -> None:
        """Note that a device was lost or found, as often as there is room: a flaky one does so without end."""
        if self._news.take(now_s):
            self.event(document)

    def tick(self, tick: Tick, keep: bool = False) -> None:
        """Append one reading of all devices. keep: at every distance, as the edges of a stretch are."""
        self._append_raw(pack(tick))
        flags = tuple(row.flags & CHANGES for row in tick.rows)
        changed, self._flags = flags != self._flags, flags
        changed = changed and self._second_changes.take(tick.monotonic_s)
        for second in self._by_second.push(tick, changed or keep):
            self._add_second(second, keep and second.number == tick.number)
        if len(self._block) >= 60:
            self._write_block()

    def _add_second(self, tick: Tick, keep: bool = False) -> None:
        """Rows of the minute file are thinned from those of the seconds file."""
        self._block.append(tick)
        flags = tuple(row.flags & CHANGES for row in tick.rows)
        changed, self._second_flags = flags != self._second_flags, flags
        changed = changed and self._minute_changes.take(tick.monotonic_s)
        for minute in self._by_minute.push(tick, changed or keep):
            self._queue(MINUTE, pack(minute))

    def close(self) -> None:
        """Write what was thinned away since the last minute and close the files."""
        for second in self._by_second.flush():
            self._add_second(second)
        for minute in self._by_minute.flush():
            self._queue(MINUTE, pack(minute))
        if self._pending:
            self._make_room()
        self._write_block()
        for appender in (self._main, self._raw, self._seconds):
            if appender is not None:
                try:
                    appender.close()
                except OSError as error:
                    self._fault(error)

    def _queue(self, kind: bytes, payload: bytes) -> None:
        self._pending.append((kind, payload))
        try:
            while self._pending:
                self._main.append(*self._pending[0])
                del self._pending[0]
        except OSError as error:
            self._fault(error)
            if len(self._pending) > BACKLOG:
                newest = len(self._pending) - 1
                self._pending = [
                    frame
                    for index, frame in enumerate(self._pending)
                    if frame[0] != MINUTE or index % 2 or index == newest
                ]

    def _make_room(self) -> None:
        """On a disk that is still full at the end: the raw rows give way to the ones that have the energy in them."""
        try:
            self._raw_path.with_suffix(".raw.old").unlink(missing_ok=True)
            if self._raw is not None:
                self._raw.clear()
            while self._pending:
                self._main.append(*self._pending[0])
                del self._pending[0]
        except OSError as error:
            self.faults.append(
                f"{self.path.name}: its last {len(self._pending)} rows were never written ({error.strerror}): what is "
                "on disk ends before them, and so will the energy of the record"
            )

    def _append_raw(self, payload: bytes) -> None:
        try:
            if self._raw is not None and self._raw.size > RAW_BYTES:
                self._raw.close()
                self._raw = None
                os.replace(self._raw_path, self._raw_path.with_suffix(".raw.old"))
            if self._raw is None:
                self._raw = Appender(self._raw_path)
            self._raw.append(RAW, payload)
        except OSError as error:
            self._fault(error)

    def _write_block(self) -> None:
        if not self._block:
            return
        block, self._block = self._block, []
        try:
            self._seconds.append(SECONDS, seconds.compress(block))
        except OSError as error:
            self._fault(error)

    def _fault(self, error: OSError) -> None:
        text = f"{self.path.name}: not written ({error.strerror}): fewer readings are kept, their energy is not lost"
        if text not in self.faults:
            self.faults.append(text)

    def _take_over(self) -> int:
        """The last session in the files; its last reading is moved from the raw file to the ledger."""
        assert self._raw is not None
        known: tuple[int, int] = (0, 0)
        session = 0
        for frame in self._main.last(MINUTE):  # stretches follow each other: no frame before these is of a later one
            if frame.kind == MINUTE:
                known = max(known, ledger.TICK.unpack_from(frame.payload)[:2])
            elif frame.kind == ledger.HEADER:
                session = max(session, _session_of(frame.payload))
        newest: bytes | None = None
        for frame in self._raw.last(RAW):
            if frame.kind == RAW and ledger.TICK.unpack_from(frame.payload)[:2] > known:
                newest, known = frame.payload, ledger.TICK.unpack_from(frame.payload)[:2]
        if newest is not None:
            self._queue(MINUTE, newest)
        return max(session, known[0])


def _session_of(header: bytes) -> int:
    return int(json.loads(header).get("session", 0))
