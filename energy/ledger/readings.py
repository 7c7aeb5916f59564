"""Reads a node's ledger back: as stretches of metering for the account, or as one pandas table for people."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from energy.accounting.uncertainty import MEASURED
from energy.ledger import frames as ledger
from energy.ledger import seconds
from energy.ledger.distances import MINUTE, RAW, SECOND, one_table
from energy.ledger.seek import Told, part, read_part
from energy.metering.track import FLAGS, MISSING, UNKNOWN

if TYPE_CHECKING:
    import pandas

Array = NDArray[np.float64]
ROW = np.dtype(
    [
        ("flags", "u1"), ("n", "<u2"), ("at_s", "<f8"), ("power_min_w", "<f4"), ("power_max_w", "<f4"),
        ("counter_mj", "<i8"), ("held_mj", "<i8"), ("energy_mj", "<i8"), ("doubt_mj", "<i8"),
    ]
)  # fmt: skip
assert ROW.itemsize == ledger.STATE.size
FIRST_BYTES, HEADER_BYTES = 1 << 13, 1 << 18
CURRENT_S = 1.0  # a device whose last update is older than this when a stretch ends does not hold back its end
COVERED_S = 5.0  # raw rows are no further apart, where none was lost
FINEST_BYTES = 2_000_000_000  # more than this in seconds files is not read for an account or a merge unless asked


def tick_dtype(devices: int) -> np.dtype:
    """A packed tick with its devices' rows (energy.ledger.writer.pack)."""
    head: list[Any] = [("session", "<u4"), ("number", "<u4"), ("unix_s", "<f8"), ("monotonic_s", "<f8")]
    return np.dtype([*head, ("attempt", "<u4"), ("devices", "<u2"), ("rows", ROW, (devices,))])


@dataclass
class Session:
    """One uninterrupted stretch of metering. `ticks`: array of tick_dtype, in order. `ended`: stopped in order.

    later_s: what is added to its times, where its clock had been set back since the stretch before.
    """

    header: dict[str, Any]
    ticks: NDArray[Any]
    events: list[dict[str, Any]] = field(default_factory=list)
    ended: bool = False
    later_s: float = 0.0

    @property
    def sensors(self) -> list[dict[str, Any]]:
        return self.header["sensors"]

    def times(self) -> Array:
        """Unix s of the ticks, made to never run backwards (a clock that was set back would): from there on they count
        the time that passed, or stand still where the clock came past that moment again before the end."""
        unix_s, clock = self.ticks["unix_s"], self.ticks["monotonic_s"]
        times = np.maximum.accumulate(unix_s)
        if len(times) and times[-1] > unix_s[-1]:  # all at one moment would be cut off with the stretch's end
            held = int(np.argmax(unix_s))
            times[held:] = times[held] + (clock[held:] - clock[held])
        return times + self.later_s

    def span(self) -> tuple[float, float]:
        """Unix s of its start and end: what was asked for (of a measured command, its own; of a node that was others'
        first, from its first rank), as far as every measured curve is known on both sides. The node's own sensor holds
        nothing back: its controller answers in seconds, and what that does not tell is missing.

        A counter speaks of its last update, up to 0.1 s before it is read. The rows of a stretch that was stopped in
        order go on to the first updates after the stop, so that its end is the stop itself. One that was killed ends
        at its last row's updates: of several devices at the earliest, so that no curve is drawn out past what is known.
        """
        times, clock, rows = self.times(), self.ticks["monotonic_s"], self.ticks["rows"]
        told = {event["event"]: event for event in self.events if event.get("event") in ("end", "only")}
        only, end_event = told.get("only", {}), told.get("end", {})
        later_s = [event["from_monotonic_s"] for event in self.events if "from_monotonic_s" in event]
        asked_s = float(max(later_s, default=self.header.get("began_monotonic_s", clock[0])))
        stopped_s = float((only or end_event).get("until_monotonic_s", clock[-1]))
        devices = [sensor["method"] in MEASURED and sensor["kind"] != "node" for sensor in self.sensors]
        measured = np.array(devices, bool)
        answered = measured & (rows["n"][[0, -1]] > 0) & (rows["flags"][[0, -1]] & MISSING == 0)
        current = clock[-1] - rows["at_s"][-1] <= CURRENT_S
        start_s = max([asked_s, *rows["at_s"][0][answered[0]]])
        end_s = min([stopped_s, *rows["at_s"][-1][answered[1] & current]])
        start = float(times[0]) + start_s - float(clock[0])
        return start, max(start, float(times[-1]) - max(0.0, float(clock[-1]) - end_s))

    def device_times(self, device: int) -> Array:
        """Unix s at which a device's cumulative columns hold: the last update of its counter before each tick."""
        age_s = self.ticks["monotonic_s"] - self.ticks["rows"][:, device]["at_s"]
        return np.maximum.accumulate(self.times() - age_s)


def read_sessions(
    path: str | os.PathLike[str],
    *,
    fine: bool = True,
    around: Iterable[float] | None = None,
    between: tuple[float, float] | None = None,
    told: Told | None = None,
) -> tuple[list[Session], list[str]]:
    """The stretches of metering in a ledger, and what in its files is damaged. Never raises for damage.

    fine: also read the raw and the seconds file; without them there is a row a minute.
    around: of the seconds file only the minutes that hold one of these moments (unix s).
    between: only rows from shortly before the first to shortly after the second moment (unix s).
    told: what a reader of many parts keeps of the ledger; from the second time on only what lies between is read.
    """
    path = Path(path)
    damaged: list[str] = []
    told = told or Told()
    with told.lock:
        minutes = _read_minutes(path, damaged, between, told)
        headers, events = dict(told.headers), {number: list(each) for number, each in told.events.items()}
    raws: list[NDArray[Any]] = []
    for name in (".raw.old", ".raw") if fine else ():
        data, base = _part_of(path.with_suffix(name), ledger.RAW, between)
        raws += _read_ticks(data, ledger.RAW, damaged, path.with_suffix(name).name, base)[0]
    blocks: list[NDArray[Any]] = []
    if fine and not (between is not None and _cover(raws, between[0])):
        blocks = _second_blocks(path.with_suffix(".seconds"), damaged, around, between)
    return _join({RAW: raws, MINUTE: minutes, SECOND: blocks}, headers, events, between, damaged, path.name), damaged


def _read_minutes(
    path: Path, damaged: list[str], between: tuple[float, float] | None, told: Told
) -> list[NDArray[Any]]:
    """The rows of the ledger itself; headers and events are added to `told`, which is complete from then on."""
    try:
        file = open(path, "rb", buffering=0)
    except FileNotFoundError:
        return []
    with file:
        fd = file.fileno()
        if told.holds(fd) and between is not None:
            start, end = part(fd, ledger.MINUTE, *between)
            start = min(start, told.upto) if end > told.upto else start  # what is new may be of any stretch
            data = ledger.read_bytes(fd, start, end)
        else:
            data, start = file.read(), 0
        minutes, others, length = _read_ticks(data, ledger.MINUTE, damaged, path.name, start)
        told.add((frame._replace(offset=start + frame.offset) for frame in others), start + length, fd)
    return minutes


def _cover(raws: list[NDArray[Any]], since_unix_s: float) -> bool:
    """Whether raw rows alone tell all from a moment on."""
    times = np.concatenate([table["unix_s"] for table in raws]) if raws else np.empty(0)
    return len(times) > 0 and bool(times[0] <= since_unix_s and np.diff(times).max(initial=0.0) <= COVERED_S)


def is_fine(ledgers: Iterable[Path]) -> bool:
    """Whether the seconds files beside these ledgers are small enough together to be read at once."""
    files = [path.with_suffix(".seconds") for path in ledgers]
    return sum(path.stat().st_size for path in files if path.exists()) <= FINEST_BYTES


def first_devices(path: Path) -> set[str]:
    """UUIDs of the devices in a ledger's first header, and its machine's boot; empty where that is damaged."""
    with open(path, "rb", buffering=0) as file:
        for length in (FIRST_BYTES, HEADER_BYTES):  # more only where it is long, or damaged
            file.seek(0)
            for frame in ledger.found(file.read(length)):
                if frame.kind == ledger.HEADER:
                    header = json.loads(frame.payload)
                    uuids = {sensor["uuid"] for sensor in header.get("sensors") or ()}
                    return uuids | ({header.get("boot_id") or ""} - {""})
    return set()


def _join(
    files: Mapping[int, list[NDArray[Any]]],  # by distance
    headers: dict[int, dict[str, Any]],
    events: dict[int, list[dict[str, Any]]],
    between: tuple[float, float] | None,
    damaged: list[str],
    name: str,
) -> list[Session]:
    by_session: dict[int, list[tuple[int, NDArray[Any]]]] = {}
    for distance, table in ((distance, table) for distance, tables in files.items() for table in tables):
        numbers = np.unique(table["session"]).tolist()
        for number in numbers:
            part = table if len(numbers) == 1 else table[table["session"] == number]
            by_session.setdefault(number, []).append((distance, part))
    sessions = []
    for number in sorted(by_session):
        parts = by_session[number]
        width = max((table for _, table in parts), key=len)["rows"].shape[1]
        ticks = one_table(part for part in parts if part[1]["rows"].shape[1] == width)
        if between is not None:
            low, high = np.searchsorted(ticks["unix_s"], between)
            ticks = ticks[max(0, int(low) - 1) : int(high) + 1]
        header = headers.get(number)
        if header is None or len(header["sensors"]) != width:
            damaged.append(
                f"{name}: the header of stretch {number} is lost: what its devices are is not known, nor whether they "
                "were measured or modelled"
            )
            header = {"node": "", "boot_id": None, "sensors": [_unknown(i, name) for i in range(width)]}
        own = events.get(number, [])
        renewed = {event["uuid"]: event for event in own if event.get("event") == "sensor"}
        sensors = [{**about, **renewed.get(about["uuid"], {})} for about in header["sensors"]]
        for event in own:
            if event.get("event") == "repaired":
                damaged.append(f"{event['file']}: {event['bytes']} torn bytes at its end were removed at a restart")
        ended = any(event.get("event") == "end" for event in own)
        if len(ticks):
            sessions.append(Session({**header, "sensors": sensors}, ticks, own, ended))
    for earlier, session in pairwise(sessions) if between is None else ():
        _follow(earlier, session)
    return sessions


def _follow(earlier: Session, session: Session) -> None:
    """Two stretches of one ledger never are at the same time: of a clock that was set back between them the later one
    counts from the end of the earlier one, and from the time that passed where both are of the same boot."""
    back_s = float(earlier.times()[-1] - session.times()[0])
    if back_s > 0:
        boot = earlier.header.get("boot_id")
        passed_s = float(session.ticks["monotonic_s"][0] - earlier.ticks["monotonic_s"][-1])
        session.later_s = back_s + (max(0.0, passed_s) if boot and boot == session.header.get("boot_id") else 0.0)


def _unknown(place: int, name: str) -> dict[str, Any]:
    """A device whose description is lost. Its energy counts; as measured it does not, for it may be a model's."""
    return {
        "uuid": f"{name}#{place}",
        "name": f"device {place} of {name}",
        "node": "",
        "kind": "unknown",
        "method": "unknown",
        "boundary": "node",
    }


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _part_of(path: Path, kind: bytes, between: tuple[float, float] | None) -> tuple[bytes, int]:
    return (_bytes(path), 0) if between is None else read_part(path, kind, between)


def _read_ticks(
    data: bytes, kind: bytes, damaged: list[str], name: str, base: int = 0
) -> tuple[list[NDArray[Any]], list[ledger.Frame], int]:
    """The ticks of a file as tables, its frames of other kinds, and where in the data the last whole frame ends."""
    tables: list[NDArray[Any]] = []
    others: list[ledger.Frame] = []
    offset = 0
    while offset < len(data):
        for frame in ledger.frames(data, damaged, name, offset, base):
            offset = frame.end
            if frame.kind == kind:
                table, offset = _run_of(data, frame)
                tables.append(table)
                break
            others.append(frame)
        else:
            break
    return tables, others, offset


def _run_of(data: bytes, first: ledger.Frame) -> tuple[NDArray[Any], int]:
    """`first` and the whole frames like it that follow without a break, as one table, and where they end.

    A ledger is nearly all such runs. Reading them as a matrix of bytes takes a fifth of the time of reading frames.
    """
    size = first.end - first.offset
    count = (len(data) - first.offset) // size
    matrix = np.frombuffer(data, np.uint8, count * size, first.offset).reshape(count, size)
    head = ledger.HEAD.size
    alike = head - 4  # all of a frame's head but its checksum
    other = np.flatnonzero((matrix[:, :alike] != matrix[0, :alike]).any(axis=1))
    count = int(other[0]) if len(other) else count
    payloads = np.ascontiguousarray(matrix[:count, head:])
    sums = np.ascontiguousarray(matrix[:count, alike:head]).view("<u4")[:, 0].tolist()
    whole, width = payloads.data.cast("B"), size - head
    seed = ledger.seed(first.kind, first.version)
    for number, checksum in enumerate(sums):
        if zlib.crc32(whole[number * width : (number + 1) * width], seed) != checksum:
            count = number
            break
    table = payloads[:count].reshape(-1).view(tick_dtype((width - ledger.TICK.size) // ROW.itemsize))
    return table, first.offset + count * size


def _second_blocks(
    path: Path, damaged: list[str], around: Iterable[float] | None, between: tuple[float, float] | None
) -> list[NDArray[Any]]:
    moments = None if around is None else np.unique(np.fromiter(around, float))
    found = []
    data, base = _part_of(path, ledger.SECONDS, between)
    for frame in ledger.frames(data, damaged, path.name, base=base):
        if frame.kind != ledger.SECONDS:
            continue
        _, start_s, end_s = seconds.span(frame.payload)
        if between is not None and (end_s < between[0] - 60 or start_s > between[1] + 60):
            continue
        if moments is not None:
            low, high = np.searchsorted(moments, (start_s - 2.0, end_s + 2.0))
            if low == high:
                continue
        found.append(frame.payload)
    return seconds.expand_all(found)


def read_ledger(path: str | os.PathLike[str], *, fine: bool = True) -> pandas.DataFrame:
    """A node's readings as a table: a row for each device and reading, oldest first.

    Columns: time (UTC), monotonic_s, session, attempt, uuid, name, node, kind, method, boundary, energy_j (cumulative
    within the session), power_w (mean since the reading before), power_min_w, power_max_w, counter_j, integrated_j
    (NaN where not known), and a truth value for each flag (missing, reset, unknown, integrated, silent, no_power).
    `fine=False` reads one row a minute. Damage in the file is in `.attrs["damaged"]`. ValueError for what is no ledger.
    """
    import pandas as pd

    if Path(path).suffix != ".ledger" or not Path(path).is_file():
        there = sorted(str(found) for found in (*Path(path).glob("*.ledger"), *Path(path).glob("energy/*.ledger")))
        hint = f"; here are {', '.join(there)}" if there else ": RUN/energy/NODE.ledger"
        raise ValueError(f"{path}: expected the ledger of a node{hint}")
    sessions, damaged = read_sessions(path, fine=fine)
    tables = []
    for session in sessions:
        for place, about in enumerate(session.sensors):
            rows, times = session.ticks["rows"][:, place], session.device_times(place)
            energy_j = rows["energy_mj"] / 1e3
            passed_s = np.diff(times, prepend=np.nan)
            with np.errstate(invalid="ignore", divide="ignore"):
                power_w = np.where(passed_s > 0, np.diff(energy_j, prepend=np.nan) / passed_s, np.nan)
            power_w[(rows["flags"] & (MISSING | UNKNOWN)) > 0] = np.nan
            columns: dict[str, Any] = {
                "time": pd.to_datetime(times, unit="s", utc=True),
                "monotonic_s": session.ticks["monotonic_s"],
                "session": session.ticks["session"],
                "attempt": session.ticks["attempt"],
                **{key: about[key] for key in ("uuid", "name", "node", "kind", "method", "boundary")},
                "energy_j": energy_j,
                "power_w": power_w,
                "power_min_w": rows["power_min_w"],
                "power_max_w": rows["power_max_w"],
                "counter_j": _known(rows["counter_mj"]),
                "integrated_j": _known(rows["held_mj"]),
            }
            columns |= {name: (rows["flags"] & bit) > 0 for bit, name in FLAGS.items()}
            tables.append(pd.DataFrame(columns))
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["time", "uuid", "energy_j"])
    table = table.sort_values(["time", "uuid"], kind="stable", ignore_index=True)
    table.attrs["damaged"] = damaged
    return table


def _known(millijoule: NDArray[Any]) -> Array:
    return np.where(millijoule < 0, np.nan, millijoule / 1e3)
