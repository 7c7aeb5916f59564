"""The ledger of a node: append-only files of checksummed frames that a crash cannot take back.

    <node>.ledger    headers, events, and each device's state once a minute: small, and enough for every total
    <node>.seconds   each device's state once a second, sixty rows to a compressed frame: the shape of the run
    <node>.raw       every reading of the last hours; a full file becomes <node>.raw.old

All three hold the same rows at different distances. A row's columns are cumulative (energy.metering.track.Row), so a
coarser file has exactly the energy of a finer one, and a damaged frame loses shape and no joules.

A frame is: "HP", kind (1 byte), version (1 byte), length and CRC-32 of the payload (4 bytes each, little-endian), then
the payload: JSON for headers (H) and events (E), packed rows for M, R and (compressed) S. Each reading reaches the
operating system before `append` returns, so that kill -9 loses nothing; fsync bounds what a power cut takes.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from energy import locks

SCHEMA = "hoofprint/ledger/2"
VERSION = 2
MAGIC = b"HP"
HEAD = struct.Struct("<2scBII")
TICK = struct.Struct("<IIddIH")  # session, number, unix s, monotonic s, attempt, devices
STATE = struct.Struct("<BHdffqqqq")  # the columns of energy.metering.track.Row
HEADER, EVENT, MINUTE, RAW, SECONDS = b"H", b"E", b"M", b"R", b"S"
KINDS = (HEADER, EVENT, MINUTE, RAW, SECONDS)
LONGEST = 1 << 26  # a length beyond this is damage, not a frame
TAIL = 1 << 18  # of the end of a file, what is read first: many frames, seen that they hold 60 rows at most


class Frame(NamedTuple):
    kind: bytes
    version: int
    payload: bytes
    offset: int
    end: int


class Appender:
    """Appends frames to one file. A frame that a full disk cut short is taken back, so that the file stays whole.

    Two writers of one file would take back each other's frames: OSError (EBUSY) where it has one already. `locked` is
    false where the file system has no locks. Another writer on this machine is refused there too, and another
    machine's is not.
    """

    def __init__(self, path: str | os.PathLike[str], fsync_s: float = 10.0) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._fsync_s, self._synced_s = fsync_s, time.monotonic()
        self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        self._claim: socket.socket | None = None
        try:
            self.locked = self._lock()
            length = os.fstat(self._fd).st_size
            self._size = whole_size(self._fd, length)
            self.cut_bytes = length - self._size  # of a frame that a crash tore
            os.ftruncate(self._fd, self._size)
        except BaseException:
            self._let_go()
            raise

    def _lock(self) -> bool:
        try:
            if locks.lock(self._fd):
                return True
            self._claim = locks.claim(self._fd, self.path)
        except BlockingIOError:
            raise OSError(errno.EBUSY, "another meter is writing it", str(self.path)) from None
        return False

    def _let_go(self) -> None:
        fd, self._fd = self._fd, -1
        try:
            os.close(fd)
        finally:
            if self._claim is not None:
                self._claim.close()

    @property
    def size(self) -> int:
        return self._size

    def last(self, kind: bytes) -> list[Frame]:
        """The frames at the end of the file, from before the last one of a kind on: what a newer version wrote is not
        among them."""
        return [frame for frame in tail(self._fd, self._size, kind) if frame.version <= VERSION]

    def append(self, kind: bytes, payload: bytes) -> None:
        """Write one frame. OSError (a full disk) leaves the file as it was before."""
        frame = encode(kind, payload)
        written = 0
        try:
            while written < len(frame):
                written += os.write(self._fd, frame[written:])
        except OSError:
            if written:
                os.ftruncate(self._fd, self._size)
            raise
        self._size += len(frame)
        if time.monotonic() - self._synced_s >= self._fsync_s:
            self.sync()

    def clear(self) -> None:
        """Take all frames back."""
        os.ftruncate(self._fd, 0)
        self._size = 0

    def sync(self) -> None:
        os.fsync(self._fd)
        self._synced_s = time.monotonic()

    def close(self) -> None:
        """Sync and close; closing twice is allowed."""
        if self._fd < 0:
            return
        try:
            os.fsync(self._fd)
        finally:
            self._let_go()


def encode(kind: bytes, payload: bytes) -> bytes:
    return HEAD.pack(MAGIC, kind, VERSION, len(payload), zlib.crc32(payload, seed(kind, VERSION))) + payload


@lru_cache(maxsize=64)
def seed(kind: bytes, version: int) -> int:
    """Puts kind and version under the payload's checksum."""
    return zlib.crc32(bytes((kind[0], version)))


def encode_json(document: dict[str, Any]) -> bytes:
    """ValueError for NaN and infinities, which JSON does not know."""
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode()


def frames(data: bytes, damaged: list[str], name: str = "", start: int = 0, base: int = 0) -> Iterator[Frame]:
    """Every whole frame of a file's bytes. What is not whole is named in `damaged` and skipped to the next frame.

    base: where in the file the bytes begin; places of frames are counted in `data` all the same.
    """
    for frame in _whole(data, damaged, name, start, base):
        if frame.version > VERSION or frame.kind not in KINDS:
            damaged.append(
                f"{name}: byte {base + frame.offset}: written by a newer version, not understood and left out"
            )
        else:
            yield frame


def found(data: bytes, start: int = 0, ends_of: bytes = b"") -> Iterator[Frame]:
    """As `frames`, and not a word of what is not whole: for who begins anywhere in a file, where that is usual.

    ends_of: where frames of this kind follow each other, all alike, only the first and the last of them are given.
    """
    while (start := data.find(MAGIC, start)) >= 0:
        frame = _frame_at(data, start)
        if frame is None:
            start += 1
            continue
        if frame.version <= VERSION and frame.kind in KINDS:
            yield frame
        start = frame.end
        if frame.kind == ends_of:
            alike, size = data[frame.offset : frame.offset + HEAD.size - 4], frame.end - frame.offset
            while data.startswith(alike, start + size) and start + 2 * size <= len(data):
                start += size


def _whole(data: bytes, damaged: list[str], name: str, offset: int = 0, base: int = 0) -> Iterator[Frame]:
    size = len(data)
    while offset < size:
        frame = _frame_at(data, offset)
        if frame is not None:
            yield frame
            offset = frame.end
            continue
        after = _next_frame(data, offset + 1)
        what = "torn at the end of the file" if after == size else f"damaged: {after - offset} bytes are left out"
        damaged.append(f"{name}: byte {base + offset}: {what}")
        offset = after


def first_schema(path: Path) -> str | None:
    """The schema of a ledger as its first frame tells it, known here or not; None where that frame is damaged."""
    with open(path, "rb") as file:
        head = file.read(HEAD.size)
        length = HEAD.unpack(head)[3] if len(head) == HEAD.size else 0
        frame = _frame_at(head + file.read(min(length, LONGEST)), 0)
    if frame is None or frame.kind != HEADER:
        return None
    if frame.version > VERSION:  # its payload may be anything
        return f"{SCHEMA.rpartition('/')[0]}/{frame.version}"
    return str(json.loads(frame.payload).get("schema"))


def _frame_at(data: bytes, offset: int) -> Frame | None:
    start = offset + HEAD.size
    if start > len(data):
        return None
    magic, kind, version, length, checksum = HEAD.unpack_from(data, offset)
    end = start + length
    if magic != MAGIC or length > LONGEST or end > len(data):
        return None
    payload = data[start:end]
    if zlib.crc32(payload, seed(kind, version)) != checksum:
        return None
    return Frame(kind, version, payload, offset, end)


def _next_frame(data: bytes, start: int) -> int:
    """Where the next whole frame begins, or the end of the data."""
    while (start := data.find(MAGIC, start)) >= 0:
        if _frame_at(data, start) is not None:
            return start
        start += 1
    return len(data)


def whole_size(fd: int, length: int) -> int:
    """Bytes up to the end of the last whole frame: what a writer keeps when it goes on with a file of this length."""
    frames = tail(fd, length)
    return frames[-1].end if frames else 0


def tail(fd: int, length: int, kind: bytes | None = None) -> list[Frame]:
    """The whole frames at the end of a file of this length, from before the last one of a kind (of any kind) on.

    Only the end is read, and more of it, four times as much each time, until there is such a frame: a file of weeks is
    100 MB. Where there is none this comes to all of the file.
    """
    window = TAIL
    while True:
        start = max(0, length - window)
        data = read_bytes(fd, start, length)
        found = list(_whole(data, [], "", _next_frame(data, 0)))
        if start == 0 or any(kind is None or (frame.kind == kind and frame.version <= VERSION) for frame in found):
            return [frame._replace(offset=start + frame.offset, end=start + frame.end) for frame in found]
        window *= 4


def read_bytes(fd: int, start: int, end: int) -> bytes:
    """The bytes of a file between two places, which one call may not give all of."""
    parts = []
    while start < end and (part := os.pread(fd, end - start, start)):
        parts.append(part)
        start += len(part)
    return b"".join(parts)
