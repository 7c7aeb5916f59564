"""Reads a node's ledger back: as stretches of metering for the account, or as one pandas table for people."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from energy import ledger, seconds
from energy.track import FLAGS, MISSING, UNKNOWN

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
FINEST_BYTES = 2_000_000_000  # more than this in seconds files is not read for an account unless asked


def tick_dtype(devices: int) -> np.dtype:
    """A packed tick with its devices' rows (energy.writer.pack)."""
    head: list[Any] = [("session", "<u4"), ("number", "<u4"), ("unix_s", "<f8"), ("monotonic_s", "<f8")]
    return np.dtype([*head, ("attempt", "<u4"), ("devices", "<u2"), ("rows", ROW, (devices,))])


@dataclass
class Session:
    """One uninterrupted stretch of metering. `ticks`: array of tick_dtype, in order. `ended`: stopped in order."""

    header: dict[str, Any]
    ticks: NDArray[Any]
    events: list[dict[str, Any]] = field(default_factory=list)
    ended: bool = False

    @property
    def sensors(self) -> list[dict[str, Any]]:
        return self.header["sensors"]

    def times(self) -> Array:
        """Unix s of the ticks, made to never run backwards (a clock that was set back would)."""
        return np.maximum.accumulate(self.ticks["unix_s"])

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
) -> tuple[list[Session], list[str]]:
    """The stretches of metering in a ledger, and what in its files is damaged. Never raises for damage.

    fine: also read the raw and the seconds file; without them there is a row a minute.
    around: of the seconds file only the minutes that hold one of these moments (unix s).
    between: only rows from shortly before the first to shortly after the second moment (unix s).
    """
    path = Path(path)
    damaged: list[str] = []
    headers: dict[int, dict[str, Any]] = {}
    events: dict[int, list[dict[str, Any]]] = {}
    packed: dict[tuple[int, int], list[bytes]] = {}
    blocks: list[NDArray[Any]] = []
    for frame in ledger.frames(_bytes(path), damaged, path.name):
        if frame.kind == ledger.MINUTE:
            packed.setdefault(_shape(frame.payload), []).append(frame.payload)
            continue
        document = json.loads(frame.payload)
        if frame.kind == ledger.HEADER:
            headers[document["session"]] = document
        elif frame.kind == ledger.EVENT:
            events.setdefault(document["session"], []).append(document)
    if fine:
        blocks += _second_blocks(path.with_suffix(".seconds"), damaged, around, between)
    minutes = _tables(packed)
    raw: dict[tuple[int, int], list[bytes]] = {}
    for name in (".raw.old", ".raw") if fine else ():
        file = path.with_suffix(name)
        for frame in ledger.frames(_bytes(file), damaged, file.name):
            if frame.kind == ledger.RAW:
                raw.setdefault(_shape(frame.payload), []).append(frame.payload)
    return _join([*blocks, *minutes, *_tables(raw)], headers, events, between, damaged, path.name), damaged


def _join(
    tables: list[NDArray[Any]],  # the later ones win where both have a tick
    headers: dict[int, dict[str, Any]],
    events: dict[int, list[dict[str, Any]]],
    between: tuple[float, float] | None,
    damaged: list[str],
    name: str,
) -> list[Session]:
    by_session: dict[int, list[NDArray[Any]]] = {}
    for table in tables:
        for number in np.unique(table["session"]).tolist():
            by_session.setdefault(number, []).append(table[table["session"] == number])
    sessions = []
    for number in sorted(by_session):
        parts = by_session[number]
        width = max(parts, key=len)["rows"].shape[1]
        ticks = np.concatenate([part for part in parts if part["rows"].shape[1] == width][::-1])
        _, first = np.unique(ticks["number"], return_index=True)
        ticks = ticks[first]
        if between is not None:
            low, high = np.searchsorted(ticks["unix_s"], between)
            ticks = ticks[max(0, int(low) - 1) : int(high) + 1]
        header = headers.get(number)
        if header is None or len(header["sensors"]) != width:
            damaged.append(f"{name}: the header of stretch {number} is lost: its devices are known by place only")
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
    return sessions


def _unknown(place: int, name: str) -> dict[str, Any]:
    return {
        "uuid": f"{name}#{place}",
        "name": f"device {place} of {name}",
        "node": "",
        "kind": "gpu",
        "method": "counter",
        "boundary": "gpu",
    }


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _shape(payload: bytes) -> tuple[int, int]:
    """(session, devices): ticks of one shape can be read as one table."""
    return ledger.TICK.unpack_from(payload)[0], len(payload)


def _tables(packed: dict[tuple[int, int], list[bytes]]) -> list[NDArray[Any]]:
    return [
        np.frombuffer(b"".join(ticks), tick_dtype((size - ledger.TICK.size) // ROW.itemsize))
        for (_, size), ticks in packed.items()
    ]


def _second_blocks(
    path: Path, damaged: list[str], around: Iterable[float] | None, between: tuple[float, float] | None
) -> list[NDArray[Any]]:
    moments = None if around is None else np.unique(np.fromiter(around, float))
    found = []
    for frame in ledger.frames(_bytes(path), damaged, path.name):
        if frame.kind != ledger.SECONDS:
            continue
        _, start_s, end_s = seconds.span(frame.payload)
        if between is not None and (end_s < between[0] - 60 or start_s > between[1] + 60):
            continue
        if moments is not None:
            low, high = np.searchsorted(moments, (start_s - 2.0, end_s + 2.0))
            if low == high:
                continue
        found.append(seconds.expand(frame.payload))
    return found


def read_ledger(path: str | os.PathLike[str], *, fine: bool = True) -> pandas.DataFrame:
    """A node's readings as a table: a row for each device and reading, oldest first.

    Columns: time (UTC), monotonic_s, session, attempt, uuid, name, node, kind, method, boundary, energy_j (cumulative
    within the session), power_w (mean since the reading before), power_min_w, power_max_w, counter_j, integrated_j
    (NaN where not known), and a truth value for each flag (missing, reset, unknown, integrated, silent, no_power).
    `fine=False` reads one row a minute. Damage in the file is in `.attrs["damaged"]`.
    """
    import pandas as pd

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
