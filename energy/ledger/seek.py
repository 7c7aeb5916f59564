"""Finds in a ledger's file what lies between two moments, and reads that alone: a file of weeks has 100 MB.

Frames are in the order of time and have checksums, so that one can begin anywhere: the first whole frame after a place
says when it is of, and the place of a moment is found in some six looks. What a stretch of metering is (its header) and
what happened in it (events) lie anywhere in the ledger; `Told` keeps them once they were read.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from energy.ledger import frames as ledger
from energy.ledger import seconds

NEAR = 1 << 12  # bytes that are passed through frame by frame
LOOK = 1 << 13  # bytes that are read to find the next frame, and four times as many while there is none
SEAL = 64  # bytes by which a file that was replaced is known
# A clock that is set back by more than this leaves rows of before out of a part that it went through twice.
SLACK_S = 60.0


class Told:
    """Headers and events of a ledger, as far as it was read. Shared by threads: `lock` is held by who reads on."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.headers: dict[int, dict[str, Any]] = {}
        self.events: dict[int, list[dict[str, Any]]] = {}
        self.upto, self._seal = 0, b""  # how many bytes, and the last of them

    def holds(self, fd: int) -> bool:
        """Whether it is of this file, which was only added to; else it is empty from now on."""
        if self.upto and os.pread(fd, SEAL, max(0, self.upto - SEAL))[: min(SEAL, self.upto)] == self._seal:
            return True
        self.headers, self.events, self.upto = {}, {}, 0
        return False

    def add(self, frames: Iterable[ledger.Frame], upto: int, fd: int) -> None:
        """The headers and events among frames that were read up to a byte; those that are known are passed over."""
        for frame in frames:
            if frame.offset < self.upto:
                continue
            if frame.kind == ledger.HEADER:
                document = json.loads(frame.payload)
                self.headers[document["session"]] = document
            elif frame.kind == ledger.EVENT:
                document = json.loads(frame.payload)
                self.events.setdefault(document["session"], []).append(document)
        if upto > self.upto:
            self.upto, self._seal = upto, os.pread(fd, min(SEAL, upto), max(0, upto - SEAL))


def read_part(path: Path, kind: bytes, between: tuple[float, float]) -> tuple[bytes, int]:
    """(bytes of a file that hold its frames of a kind between two moments (unix s), where in the file they begin).

    The frame before the first moment and the one after the last are among them. b"" where there is no file.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            start, end = part(file.fileno(), kind, *between)
            return ledger.read_bytes(file.fileno(), start, end), start
    except FileNotFoundError:
        return b"", 0


def part(fd: int, kind: bytes, low_unix_s: float, high_unix_s: float) -> tuple[int, int]:
    """(first byte, byte after the last) of `read_part`, of an open file."""
    size = os.fstat(fd).st_size
    start = _last_before(fd, 0, size, kind, low_unix_s - SLACK_S)
    high_unix_s += SLACK_S
    if high_unix_s == math.inf:
        return start, size
    for frame in _frames(fd, _last_before(fd, start, size, kind, high_unix_s), size, kind):
        if _time_of(frame) > high_unix_s:
            return start, frame.end
    return start, size


def part_size(path: Path, kind: bytes, between: tuple[float, float]) -> int:
    """How many bytes `read_part` reads."""
    try:
        with open(path, "rb", buffering=0) as file:
            start, end = part(file.fileno(), kind, *between)
            return end - start
    except FileNotFoundError:
        return 0


def _last_before(fd: int, low: int, size: int, kind: bytes, unix_s: float) -> int:
    """Where the last frame of a kind begins that is of before a moment; `low` where there is none."""
    first = next(_frames(fd, low, size, kind), None)
    if first is None or _time_of(first) >= unix_s:
        return low
    low, low_s, high, high_s = first.offset, _time_of(first), size, math.inf
    looks = 0
    middle = size - NEAR  # what is asked for most is the end
    while high - low > NEAR:
        frame = next(_frames(fd, max(middle, low + 1), size, kind), None)
        if frame is None or frame.offset >= high or _time_of(frame) >= unix_s:
            high, high_s = max(middle, low + 1), high_s if frame is None else _time_of(frame)
        else:
            low, low_s = frame.offset, _time_of(frame)
        # Rows mostly come at one pace: a little before and a little after where it should be, and at times half way.
        looks += 1
        middle = (low + high) // 2
        if looks % 3 and low_s < high_s < math.inf:
            guess = low + int((high - low) * min(1.0, (unix_s - low_s) / (high_s - low_s)))
            middle = min(max(guess + (NEAR // 2 if looks % 3 == 2 else -NEAR // 2), low + 1), high - 1)
    for frame in _frames(fd, low, size, kind):
        if _time_of(frame) >= unix_s:
            break
        low = frame.offset
    return low


def _frames(fd: int, offset: int, size: int, kind: bytes) -> Iterator[ledger.Frame]:
    """The whole frames of a kind from a place in a file on, each with its place there."""
    length = LOOK
    while offset < size:
        data, after = os.pread(fd, min(length, size - offset), offset), 0
        for frame in ledger.found(data):
            after = frame.end
            if frame.kind == kind:
                yield ledger.Frame(kind, frame.version, frame.payload, offset + frame.offset, offset + frame.end)
        if offset + len(data) >= size or not data:
            return
        offset, length = offset + after, min(4 * length, 1 << 20) if after else 4 * length


def _time_of(frame: ledger.Frame) -> float:
    """Unix s of a row, and of the last row of a block."""
    if frame.kind == ledger.SECONDS:
        return seconds.span(frame.payload)[2]
    return float(ledger.TICK.unpack_from(frame.payload)[2])
