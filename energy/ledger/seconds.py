"""Compressed blocks of ticks: the once-a-second rows of a long run in about five bytes for a device and second.

A block holds columns of differences, as variable-length integers, deflated. What a block keeps is exact for energy,
counters and flags; times and ages are kept to a millisecond and extremes of power to a watt. The integral of power is
left to the minute rows, where it is compared with the counter.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from energy.metering.track import Row

TOGETHER = 8  # blocks that are expanded at a time: more do not fit the cache
NO_POWER_W = -1  # stands for NaN
TICK_COLUMNS, DEVICE_COLUMNS = 5, 9
SPAN = struct.Struct("<Idd")  # session, first and last unix s: uncompressed, so that a reader can pass a block by


def compress(ticks: Sequence[tuple[int, int, float, float, int, tuple[Row, ...]]]) -> bytes:
    """A block of ticks (energy.ledger.writer.Tick) with the same number of rows."""
    width = len(ticks[0][5])
    assert all(len(tick[5]) == width for tick in ticks), "the ticks of a session have one width"
    columns: list[list[int]] = [
        [tick[0] for tick in ticks],
        [tick[1] for tick in ticks],
        [round(tick[2] * 1e3) for tick in ticks],
        [round(tick[3] * 1e3) for tick in ticks],
        [tick[4] for tick in ticks],
    ]
    for device in range(width):
        rows = [tick[5][device] for tick in ticks]
        columns += [
            [row.flags for row in rows],
            [row.n for row in rows],
            [round((tick[3] - row.at_s) * 1e3) for tick, row in zip(ticks, rows, strict=True)],
            [_watts(row.power_min_w) for row in rows],
            [_watts(row.power_max_w) for row in rows],
            [row.energy_mj for row in rows],
            [row.counter_mj - row.energy_mj if row.counter_mj >= 0 else -1 for row in rows],
            [int(row.counter_mj >= 0) for row in rows],
            [row.doubt_mj for row in rows],
        ]
    body = b"".join(map(_column, columns))
    head = SPAN.pack(ticks[0][0], ticks[0][2], ticks[-1][2])
    return head + zlib.compress(_varints([len(ticks), width]) + body, 9)


def span(payload: bytes) -> tuple[int, float, float]:
    """(session, first and last unix s) of a block, without unpacking it."""
    return SPAN.unpack_from(payload)


def expand_all(payloads: Sequence[bytes]) -> list[Any]:
    """The ticks of several blocks in few arrays of energy.ledger.readings.tick_dtype, of blocks alike that follow each
    other in one. `held_mj` is -1: not kept."""
    import numpy as np

    found: list[Any] = []
    for start in range(0, len(payloads), TOGETHER):
        packed = b"".join(zlib.decompress(payload[SPAN.size :]) for payload in payloads[start : start + TOGETHER])
        numbers, place = _numbers(np.frombuffer(packed, np.uint8)), 0
        while place < len(numbers):
            count, width = numbers[place : place + 2].tolist()
            size = 2 + (TICK_COLUMNS + DEVICE_COLUMNS * width) * count
            most = (len(numbers) - place) // size
            heads = numbers[place : place + most * size].reshape(most, size)[:, :2]
            other = np.flatnonzero((heads != heads[0]).any(axis=1))
            alike = int(other[0]) if len(other) else most
            blocks = numbers[place : place + alike * size].reshape(alike, size)[:, 2:]
            found.append(_ticks(blocks.reshape(alike, -1, count).cumsum(axis=2).transpose(1, 0, 2), width))
            place += alike * size
    return found


def _ticks(columns: Any, width: int) -> Any:
    """Columns (column, block, row) as ticks of so many devices."""
    import numpy as np

    from energy.ledger.readings import tick_dtype

    columns = columns.reshape(len(columns), -1)
    ticks = np.zeros(columns.shape[1], tick_dtype(width))
    for name, column in zip(("session", "number", "unix_s", "monotonic_s", "attempt"), columns, strict=False):
        ticks[name] = column / 1e3 if name.endswith("_s") else column
    ticks["devices"] = width
    rows = ticks["rows"]
    device = columns[TICK_COLUMNS:].reshape(width, DEVICE_COLUMNS, -1).transpose(1, 2, 0)
    flags, n, age, low, high, energy, offset, known, doubt = device
    rows["flags"], rows["n"], rows["at_s"] = flags, n, ticks["monotonic_s"][:, None] - age / 1e3
    rows["power_min_w"] = np.where(low == NO_POWER_W, np.nan, low)
    rows["power_max_w"] = np.where(high == NO_POWER_W, np.nan, high)
    rows["energy_mj"], rows["doubt_mj"], rows["held_mj"] = energy, doubt, -1
    rows["counter_mj"] = np.where(known == 1, offset + energy, -1)
    return ticks


def _watts(power_w: float) -> int:
    return NO_POWER_W if power_w != power_w else round(power_w)


def _column(values: list[int]) -> bytes:
    """A column's differences; most columns hold one value all the time, and are not worth a loop."""
    first = values[0]
    if values.count(first) == len(values):
        return _varints([first]) + bytes(len(values) - 1)
    return _varints(_differences(values))


def _differences(values: Iterable[int]) -> Iterator[int]:
    before = 0
    for value in values:
        yield value - before
        before = value


def _varints(values: Iterable[int]) -> bytes:
    """Zigzag (small negatives stay small), then seven bits to a byte, the eighth for 'more follows'."""
    out = bytearray()
    for value in values:
        value = value << 1 if value >= 0 else ~(value << 1)
        while value > 127:
            out.append(value & 127 | 128)
            value >>= 7
        out.append(value)
    return bytes(out)


def _numbers(data: Any) -> Any:
    """All numbers of a block: int64. Seven bits of each byte, summed at their place within the number."""
    import numpy as np

    last = np.flatnonzero(data < 128)
    first = np.concatenate([[0], last[:-1] + 1])
    place = np.arange(len(data)) - np.repeat(first, last - first + 1)
    bits = (data & 127).astype(np.int64) << (7 * place)
    zigzag = np.add.reduceat(bits, first)
    return (zigzag >> 1) ^ -(zigzag & 1)
