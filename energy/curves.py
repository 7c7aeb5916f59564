"""From readings to a curve of cumulative energy per device: counters, held power, resets and gaps."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from energy.ledger import read_ledger

Array = NDArray[np.float64]
DISAGREEMENT = 0.05  # counter and integrated power may differ by this share before the account says so
STALL_INTERVALS = 10  # a silence of more than this many intervals (and 5 s) counts as a gap


@dataclass
class Segment:
    """One uninterrupted stretch of metering: a header and its readings. `ended`: stopped in order."""

    header: dict[str, Any] = field(default_factory=dict)
    readings: list[dict[str, Any]] = field(default_factory=list)
    ended: bool = False

    def uuids(self) -> list[str]:
        listed = [sensor["uuid"] for sensor in self.header.get("sensors", [])]
        return list(dict.fromkeys(listed + [uuid for reading in self.readings for uuid in reading["values"]]))

    def about(self, uuid: str) -> dict[str, str]:
        """The sensor's description; where its header is lost, only what the readings show."""
        for sensor in self.header.get("sensors", []):
            if sensor["uuid"] == uuid:
                return {"node": self.header.get("node", ""), **sensor}
        has_counter = any(r["values"].get(uuid, {}).get("energy_j") is not None for r in self.readings)
        kind = "cpu" if uuid.startswith("cpu") else "dram" if uuid.startswith("dram") else "gpu"
        method = "counter" if has_counter else "assumed"
        boundary = "gpu" if kind == "gpu" else "node"
        node = uuid.partition("@")[2]
        return {
            "uuid": uuid,
            "name": uuid,
            "node": node,
            "kind": kind,
            "method": method,
            "boundary": boundary,
        }

    def times(self) -> Array:
        """Unix s of the readings, made to never run backwards (a clock that was set back would)."""
        return np.maximum.accumulate(np.array([r["time_unix_s"] for r in self.readings], dtype=float))

    def attempts(self) -> NDArray[np.int64]:
        return np.array([r["attempt"] for r in self.readings], dtype=np.int64)

    def windows(self) -> list[tuple[int, float, float]]:
        """(attempt, first, last unix s) of each attempt in this stretch."""
        times, attempts = self.times(), self.attempts()
        found: list[tuple[int, float, float]] = []
        for attempt in np.unique(attempts):
            own = times[attempts == attempt]
            found.append((int(attempt), float(own[0]), float(own[-1])))
        return found


@dataclass
class Curve:
    """Cumulative energy in J of one device at its good readings; `power_w` has NaN where it was missing."""

    time_unix_s: Array
    cumulative_j: Array
    attempt: NDArray[np.int64]
    power_time_unix_s: Array
    power_w: Array
    first_counter_j: float | None = None
    last_counter_j: float | None = None
    gap_s: float = 0.0
    warnings: list[str] = field(default_factory=list)

    @property
    def energy_j(self) -> float:
        return float(self.cumulative_j[-1]) if len(self.cumulative_j) else 0.0

    def by_attempt(self) -> list[tuple[int, float]]:
        """Energy in J by attempt; an interval belongs to the attempt in which it began."""
        used = np.diff(self.cumulative_j)
        return [(int(a), float(used[self.attempt[:-1] == a].sum())) for a in np.unique(self.attempt)]


@dataclass
class Gap:
    """Time between a crash and the restart of the metering, and by how much the counter grew in it."""

    attempt: int
    start_unix_s: float
    end_unix_s: float
    energy_j: float
    text: str


def read_segments(ledger: Path) -> tuple[list[Segment], list[str]]:
    """The stretches of metering of a ledger, and its damaged lines. A stretch without readings is dropped."""
    contents = read_ledger(ledger)
    segments: list[Segment] = []
    for entry in contents.entries:
        kind = entry.get("kind")
        if kind == "header":
            segments.append(Segment(header=entry))
        elif kind == "reading":
            # Monotonic time going backwards is a reboot whose header was lost.
            last = segments[-1].readings[-1]["monotonic_s"] if segments and segments[-1].readings else -np.inf
            if not segments or entry["monotonic_s"] < last:
                segments.append(Segment())
            segments[-1].readings.append(entry)
        elif kind == "end" and segments:
            segments[-1].ended = True
    return [segment for segment in segments if segment.readings], contents.damaged


def curve_of(uuid: str, segment: Segment) -> Curve:
    """The device's cumulative energy over a segment, with a warning for all that was not read plainly."""
    values = [reading["values"].get(uuid, {}) for reading in segment.readings]
    energy = np.array([value.get("energy_j") for value in values], dtype=float)
    power = np.array([value.get("power_w") for value in values], dtype=float)
    times, attempts = segment.times(), segment.attempts()
    clock = np.array([reading["monotonic_s"] for reading in segment.readings], dtype=float)
    good = np.flatnonzero(~(np.isnan(energy) & np.isnan(power)))
    t, e, p = times[good], energy[good], power[good]
    dt, grown = np.diff(clock[good]), np.diff(e)
    held = np.where(np.isnan(p[:-1]), p[1:], p[:-1]) * dt
    counted, skipped = grown >= 0, np.diff(good) > 1
    used = np.where(counted, grown, held)
    unknown = np.isnan(used) | (skipped & ~counted)
    used[unknown] = 0.0
    silent = dt > max(5.0, STALL_INTERVALS * float(segment.header.get("interval_s", 0.5)))
    outside_s = (
        float(clock[-1] - clock[0]) if not len(good) else float(clock[good[0]] - clock[0] + clock[-1] - clock[good[-1]])
    )
    shown = power.copy()
    if len(dt) and np.isnan(power[good]).all():  # a counter without power: draw its mean power instead
        shown[good[1:]] = np.divide(used, dt, out=np.full_like(dt, np.nan), where=dt > 0)
    known = e[~np.isnan(e)]
    curve = Curve(
        t,
        np.concatenate([[0.0], np.cumsum(used)]) if len(good) else np.empty(0),
        attempts[good],
        times,
        shown,
        first_counter_j=float(e[0]) if len(known) and not np.isnan(e[0]) else None,
        last_counter_j=float(e[-1]) if len(known) and not np.isnan(e[-1]) else None,
        gap_s=float(dt[skipped | silent | unknown].sum()) + outside_s,
    )
    missing = len(values) - len(good)
    if missing:
        why = next((value["error"] for value in values if value.get("error")), "no value")
        curve.warnings.append(f"missing in {missing} of {len(values)} readings ({why})")
    if unknown.any():
        curve.warnings.append(f"the energy of {dt[unknown].sum():.1f} s is unknown and not in the total")
    if silent.any():
        curve.warnings.append(f"the meter was silent for {dt[silent].sum():.1f} s")
    for index in np.flatnonzero(grown < 0):
        how = "unknown" if unknown[index] else f"{used[index]:.1f} J from integrated power"
        curve.warnings.append(f"the counter went backwards at {t[index + 1]:.3f}: a new epoch, the interval is {how}")
    if len(known) and (lost := int((np.isnan(grown) & ~unknown).sum())):
        curve.warnings.append(f"no counter in {lost} intervals: taken from integrated power")
    _cross_check(curve, grown[counted], held[counted])
    return curve


def gap_between(old: Segment, before: Curve, new: Segment, after: Curve) -> Gap:
    """What was used between a crash and the restart: the growth of the same boot's counter."""
    start, end = float(old.times()[-1]), float(new.times()[0])
    attempt, duration = int(old.attempts()[-1]), f"{end - start:.1f} s between a crash and the restart"
    first, last = before.last_counter_j, after.first_counter_j
    boot = old.header.get("boot_id")
    if boot is None or boot != new.header.get("boot_id"):
        why = "the machine was restarted, or its boot is unknown"
    elif first is None or last is None:
        why = "no energy counter"
    elif last < first:
        why = "the counter went backwards"
    else:
        text = f"{last - first:.1f} J in {duration} are booked as gap"
        return Gap(attempt, start, max(start, end), last - first, text)
    return Gap(
        attempt,
        start,
        max(start, end),
        0.0,
        f"the energy of {duration} is unknown and not in the total: {why}",
    )


def _cross_check(curve: Curve, grown: Array, held: Array) -> None:
    """Say so when counter and integrated power of the same intervals differ by more than 5%."""
    both = ~np.isnan(held)
    counter_j, power_j = float(grown[both].sum()), float(held[both].sum())
    if both.sum() >= 10 and abs(counter_j - power_j) > DISAGREEMENT * max(counter_j, power_j):
        curve.warnings.append(
            f"counter ({counter_j:.1f} J) and integrated power ({power_j:.1f} J) differ by more than 5%"
        )
