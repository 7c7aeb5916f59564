"""The ledger: an append-only, checksummed file of readings, one per node.

A line is the CRC-32 of the JSON in eight hex digits, a space, the compact JSON, and a newline. Every append
reaches the operating system before it returns, so that killing the meter loses nothing; fsync, at most once
in `fsync_s`, bounds what a power cut takes. Lines that fail their checksum are named, and skipped.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCHEMA = "hoofprint/ledger/1"


class LedgerWriter:
    """Appends entries to a ledger. An existing file is kept; its torn last line is closed by a newline."""

    def __init__(self, path: str | os.PathLike[str], fsync_s: float = 1.0) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._fsync_s = fsync_s
        self._synced_s = time.monotonic()
        self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        size = os.fstat(self._fd).st_size
        self._torn = size > 0 and os.pread(self._fd, 1, size - 1) != b"\n"

    def append(self, entry: dict[str, Any]) -> None:
        """Write one entry. OSError (a full disk) leaves at most a torn line, isolated by the next append."""
        line = encode(entry)
        if self._torn:
            line = b"\n" + line
        self._torn = True
        while line:
            line = line[os.write(self._fd, line) :]
        self._torn = False
        if time.monotonic() - self._synced_s >= self._fsync_s:
            self.sync()

    def sync(self) -> None:
        os.fsync(self._fd)
        self._synced_s = time.monotonic()

    def close(self) -> None:
        """Sync and close; closing twice is allowed."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


@dataclass
class LedgerContents:
    """The whole entries of a ledger in order, and a sentence about each line that is not whole."""

    entries: list[dict[str, Any]] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


def encode(entry: dict[str, Any]) -> bytes:
    """An entry as its line, newline included. ValueError for NaN and infinities, which JSON does not know."""
    body = json.dumps(entry, separators=(",", ":"), allow_nan=False).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def read_ledger(path: str | os.PathLike[str]) -> LedgerContents:
    """Every whole entry of the file. Damage is named in `damaged`, with line and byte, and never raises."""
    contents = LedgerContents()
    data = Path(path).read_bytes()
    offset = 0
    for number, line in enumerate(data.split(b"\n"), start=1):
        is_tail = offset + len(line) == len(data)
        if line:
            entry = _decode(line)
            if entry is not None:
                contents.entries.append(entry)
            else:
                what = "torn at the end of the file" if is_tail else "checksum does not match"
                contents.damaged.append(f"{Path(path).name}: line {number} (byte {offset}): {what}")
        offset += len(line) + 1
    return contents


def _decode(line: bytes) -> dict[str, Any] | None:
    checksum, separator, body = line[:8], line[8:9], line[9:]
    if separator != b" " or checksum != b"%08x" % zlib.crc32(body):
        return None
    try:
        entry = json.loads(body)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
