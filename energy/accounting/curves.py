"""From a ledger's rows to a curve of cumulative energy per device, and to what was used between crash and restart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from energy.accounting.uncertainty import MEASURED
from energy.ledger.readings import Session
from energy.metering.track import INTEGRATED, MISSING, NO_POWER, RESET, SILENT, UNKNOWN
from energy.sensors.rapl import WRAP_POWER_W

Array = NDArray[np.float64]
DISAGREEMENT = 0.05  # counter and integrated power may differ by this share before the account says so
POWER_POINTS = 4000  # what is kept of a device's power for drawing, once it has several times as many rows


@dataclass
class Curve:
    """One device in one stretch: cumulative energy in J at unix times, and what the rows say about it.

    `power_w` is the mean since the row before, with the extremes within; NaN where the device was missing. `known`: the
    energy since the row before is known. `doubt_sofar_j`: the half width, cumulative, of what sampled power may have
    missed. counter_j and held_j are what counter and integrated power say of the same
    intervals.
    """

    time_unix_s: Array
    cumulative_j: Array
    attempt: NDArray[np.int64]
    power_w: Array
    power_min_w: Array
    power_max_w: Array
    known: NDArray[np.bool_]
    doubt_sofar_j: Array
    samples: int
    first_counter_mj: int | None
    last_counter_mj: int | None
    integrated_j: float = 0.0
    gap_s: float = 0.0
    unknown_s: float = 0.0
    counter_j: float = 0.0
    held_j: float = 0.0
    warnings: list[str] = field(default_factory=list)

    @property
    def energy_j(self) -> float:
        return float(self.cumulative_j[-1]) if len(self.cumulative_j) else 0.0

    @property
    def known_s(self) -> float:
        """Time in s that the energy is of: all but what is unknown. What a counter told afterwards of the time in which
        it was silent is in it; a counter that is lost for good has rows at its last moment alone."""
        return math.fsum(np.diff(self.time_unix_s)[self.known[1:]].tolist())

    @property
    def doubt_j(self) -> float:
        """Half width in J. Where the doubt was larger at the start than at the end, it is the start that was doubted: a
        counter has told since what was used before it."""
        return abs(float(self.doubt_sofar_j[-1])) if len(self.doubt_sofar_j) else 0.0

    @property
    def booked_j(self) -> Array:
        """`cumulative_j` as it is booked: what it has at its first point (a model that was looked up late) belongs to
        the first interval; a single point has all of it."""
        return np.concatenate([[0.0], self.cumulative_j[1:]]) if len(self.cumulative_j) > 1 else self.cumulative_j

    def between(self, start_unix_s: float, end_unix_s: float) -> Curve:
        """The curve cut to a span, its energy counted from there; at a cut it is a line between two updates."""
        times, used_j = self.time_unix_s, self.cumulative_j
        if len(times) < 2 or (start_unix_s <= times[0] and end_unix_s >= times[-1]):
            return self
        start, end = np.clip((start_unix_s, max(start_unix_s, end_unix_s)), times[0], times[-1]).tolist()
        first, after = int(np.searchsorted(times, start, "right")), int(np.searchsorted(times, end, "left"))
        cut = (start > times[0], end < times[-1])
        start_j = float(np.interp(start, times, used_j)) if cut[0] else float(used_j[0])
        end_j = float(np.interp(end, times, used_j)) if cut[1] else float(used_j[-1])

        doubt_j = np.interp((start, end), times, self.doubt_sofar_j)

        def with_edges(column: NDArray[Any], left: Any, right: Any) -> NDArray[Any]:
            return np.concatenate([[left], column[first:after], [right]]).astype(column.dtype)

        # A cut has the attempt in which its interval began, and the power of the row with which that ends.
        left, right = (min(first, len(times) - 1) if cut[0] else 0), min(max(after, first - 1), len(times) - 1)
        begun = (max(first - 1, 0) if cut[0] else 0, max(after - 1, 0) if cut[1] else -1)
        return replace(
            self,
            time_unix_s=with_edges(times, start, end),
            cumulative_j=with_edges(used_j, start_j, end_j) - (start_j if cut[0] else 0.0),
            attempt=with_edges(self.attempt, self.attempt[begun[0]], self.attempt[begun[1]]),
            power_w=with_edges(self.power_w, self.power_w[left], self.power_w[right]),
            power_min_w=with_edges(self.power_min_w, self.power_min_w[left], self.power_min_w[right]),
            power_max_w=with_edges(self.power_max_w, self.power_max_w[left], self.power_max_w[right]),
            known=with_edges(self.known, self.known[left], self.known[right]),
            doubt_sofar_j=with_edges(self.doubt_sofar_j, doubt_j[0], doubt_j[1]) - (doubt_j[0] if cut[0] else 0.0),
        )

    def by_attempt(self) -> list[tuple[int, float]]:
        """Energy in J by attempt; an interval belongs to the attempt in which it began."""
        # Attempts follow each other, so that each has the curve between its first row and the next one's.
        starts = np.flatnonzero(np.diff(self.attempt, prepend=self.attempt[:1] - 1))
        edges = [0.0, *self.cumulative_j[starts[1:]].tolist(), self.energy_j]
        return [
            (int(a), after - before) for a, before, after in zip(self.attempt[starts], edges, edges[1:], strict=False)
        ]


@dataclass
class Gap:
    """Time between a crash and the restart of the metering, and by how much the counter grew in it."""

    attempt: int
    start_unix_s: float
    end_unix_s: float
    energy_j: float
    text: str


def curve_of(device: int, session: Session) -> Curve:
    """The device's cumulative energy over a stretch, with a warning for all that was not read plainly."""
    kept = _since_ready(session.ticks["rows"][:, device])
    rows, times = session.ticks["rows"][kept, device], session.device_times(device)[kept]
    clock = session.ticks["monotonic_s"][kept]
    flags = rows["flags"].astype(np.int64)
    share = float(session.sensors[device].get("share", 1.0))  # of the GPU that a MIG instance stands for
    energy_j = rows["energy_mj"] * (share / 1e3) if share < 1.0 else rows["energy_mj"] / 1e3
    missing = (flags & MISSING) > 0
    passed_s = np.diff(clock, prepend=clock[:1])
    used_j, spans_s = np.diff(energy_j), np.diff(times)
    power_w = np.full(len(rows), np.nan)
    np.divide(used_j, spans_s, out=power_w[1:], where=spans_s > 0)
    power_w[missing | ((flags & UNKNOWN) > 0)] = np.nan
    if len(rows) and not missing[0]:  # there is no row before the first: what was read stands
        power_w[0] = (float(rows["power_min_w"][0]) + float(rows["power_max_w"][0])) / 2
    begun = np.logical_or.accumulate(~missing)  # before its first reading nothing is known
    unread = missing | np.concatenate([[False], missing[:-1]]) | ((flags & SILENT) > 0)
    fallback = (flags[1:] & INTEGRATED) > 0
    known = rows["counter_mj"] >= 0
    counters = rows["counter_mj"][known]
    curve = Curve(
        times,
        energy_j,
        session.ticks["attempt"][kept].astype(np.int64),
        power_w,
        rows["power_min_w"].astype(float),
        rows["power_max_w"].astype(float),
        known=((flags & UNKNOWN) == 0) & np.concatenate([[True], begun[:-1]])[: len(rows)],
        doubt_sofar_j=rows["doubt_mj"] * (share / 1e3),
        samples=int(rows["n"][~missing].sum()),
        # At the stretch's start: of one whose first rows are lost the energy is in the first that is left.
        first_counter_mj=int(counters[0]) - int(rows["energy_mj"][known][0]) if len(counters) else None,
        last_counter_mj=int(counters[-1]) if len(counters) else None,
        integrated_j=math.fsum(used_j[fallback].tolist()),
        gap_s=math.fsum(passed_s[unread].tolist()),
        unknown_s=math.fsum(passed_s[(flags & UNKNOWN) > 0].tolist()),
    )
    _explain(curve, session, session.sensors[device], flags, missing)
    if session.sensors[device]["method"] == "counter":
        _cross_check(curve, rows, flags)
    held = held_to_end(device, session, times[-1:], power_w)
    return curve if held is None else _held(curve, *held)


def held_to_end(device: int, session: Session, times: Array, power_w: Array) -> tuple[float, float] | None:
    """(unix s, W): until when a model stands for what it said last, in a stretch that was killed or goes on.

    Models are asked every ten seconds, and the other devices are known up to the last row. None where the device was
    measured or missing, or the stretch stopped in order, which asks all once more. times, power_w: of the device's rows
    (`curve_of`), the last of them at the end.
    """
    missing = session.ticks["rows"]["flags"][-1, device] & MISSING
    if session.ended or missing or session.sensors[device]["method"] in MEASURED:
        return None
    told, end_unix_s = np.flatnonzero(np.isfinite(power_w)), float(session.times()[-1])
    return (end_unix_s, float(power_w[told[-1]])) if len(told) and end_unix_s > times[-1] else None


def _held(curve: Curve, end_unix_s: float, held_w: float) -> Curve:
    """The curve with what a model is held at up to a moment, with as much doubt."""
    rest_s = end_unix_s - float(curve.time_unix_s[-1])

    def and_last(column: NDArray[Any], value: Any) -> NDArray[Any]:
        return np.append(column, value).astype(column.dtype)

    return replace(
        curve,
        time_unix_s=and_last(curve.time_unix_s, end_unix_s),
        cumulative_j=and_last(curve.cumulative_j, curve.cumulative_j[-1] + held_w * rest_s),
        attempt=and_last(curve.attempt, curve.attempt[-1]),
        power_w=and_last(curve.power_w, held_w),
        power_min_w=and_last(curve.power_min_w, held_w),
        power_max_w=and_last(curve.power_max_w, held_w),
        known=and_last(curve.known, True),
        doubt_sofar_j=and_last(curve.doubt_sofar_j, curve.doubt_sofar_j[-1] + held_w * rest_s),
    )


def _since_ready(rows: Any) -> NDArray[np.bool_]:
    """All rows but those in which a model was still being looked up; the first stays, as its curve begins there."""
    asked = np.flatnonzero((rows["n"] > 0) | (rows["flags"] != 0))
    kept = np.ones(len(rows), bool)
    kept[1 : int(asked[0]) if len(asked) else 1] = False
    return kept


def _explain(curve: Curve, session: Session, about: dict[str, Any], flags: Any, missing: Any) -> None:
    if missing.any():
        why = next(
            (e["why"] for e in session.events if e.get("event") == "missing" and e["uuid"] == about["uuid"]), None
        )
        state = "is missing from the beginning" if missing.all() else f"could not be read for {curve.gap_s:.1f} s"
        curve.warnings.append(f"{state} ({why or 'no reason was kept'})")
    if curve.unknown_s and about["kind"] != "node":  # of a node's own sensor see energy.accounting.whole_node
        curve.warnings.append(f"the energy of {curve.unknown_s:.1f} s is unknown and not in the total")
    silent = (flags & SILENT) > 0
    if silent.any():
        count = int(silent.sum())
        curve.warnings.append(f"the meter was silent {'once' if count == 1 else f'{count} times'}")
    for place in np.flatnonzero((flags & RESET) > 0):
        how = "unknown" if flags[place] & UNKNOWN else "taken from integrated power"
        when = datetime.fromtimestamp(float(curve.time_unix_s[place]), UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        curve.warnings.append(f"the counter went backwards before {when}: a new epoch, that interval is {how}")
    stood_in = ((flags & INTEGRATED) > 0) & ((flags & RESET) == 0)
    if stood_in.any() and about["method"] == "counter":
        count = int(stood_in.sum())
        curve.warnings.append(f"no counter in {count} interval{'s' * (count > 1)}: taken from integrated power")


def _cross_check(curve: Curve, rows: Any, flags: Any) -> None:
    """What counter and integrated power say of the same intervals; more than 5 % apart is a warning."""
    kept = np.flatnonzero(rows["held_mj"] >= 0)  # the seconds file leaves the integral out
    if len(kept) < 2:
        return
    odd_rows = (flags & (MISSING | RESET | UNKNOWN | NO_POWER | SILENT | INTEGRATED)) > 0
    odd_rows[1:] |= (flags[:-1] & MISSING) > 0  # a counter tells of the time in which it was missing, power does not
    odd = np.cumsum(odd_rows)
    clean = np.diff(odd[kept]) == 0
    counted = np.diff(rows["counter_mj"][kept])[clean]
    held = np.diff(rows["held_mj"][kept])[clean]
    curve.counter_j, curve.held_j = float(counted.sum()) / 1e3, float(held.sum()) / 1e3
    largest = max(curve.counter_j, curve.held_j)
    if clean.sum() >= 10 and abs(curve.counter_j - curve.held_j) > DISAGREEMENT * largest:
        curve.warnings.append(
            f"counter ({curve.counter_j:.1f} J) and integrated power ({curve.held_j:.1f} J) differ by more than 5 %"
        )


def gap_between(old: Session, before: Curve, new: Session, after: Curve, about: dict[str, Any]) -> Gap:
    """What a device used between a crash and the restart."""
    start, end = float(before.time_unix_s[-1]), float(after.time_unix_s[0])
    attempt, duration = int(before.attempt[-1]), f"{end - start:.1f} s between a crash and the restart"
    boots = (old.header.get("boot_id"), new.header.get("boot_id"))
    used_j = counted_between(boots, (before.last_counter_mj, after.first_counter_mj), end - start, about)
    if isinstance(used_j, str):
        text = f"the energy of {duration} is unknown and not in the total: {used_j}"
        return Gap(attempt, start, max(start, end), 0.0, text)
    return Gap(attempt, start, max(start, end), used_j, f"{used_j:.1f} J in {duration} are booked as gap")


def counted_between(
    boots: tuple[str | None, str | None],
    counters_mj: tuple[int | None, int | None],
    passed_s: float,
    about: Mapping[str, Any],
) -> float | str:
    """J that a device used between two meters: the growth of the same boot's counter, a MIG instance's share of it; or
    why nobody knows."""
    first_mj, last_mj = counters_mj
    if boots[0] is None or boots[0] != boots[1]:
        return "the machine was restarted, or its boot is unknown"
    if first_mj is None or last_mj is None:
        return "no energy counter"
    grown_mj, range_mj = last_mj - first_mj, about.get("range_mj")
    if range_mj:
        # It wraps at its range; over a longer time nobody can tell how often.
        if passed_s * WRAP_POWER_W * 1e3 >= range_mj:
            return "its counter may have wrapped more than once"
        grown_mj %= range_mj
    if grown_mj < 0:
        return "the counter went backwards"
    return grown_mj / 1e3 * float(about.get("share", 1.0))


def power_of(curves: list[Curve]) -> tuple[Array, Array]:
    """Time and mean power of every row, of very many rows of equal stretches; NaN where the device was missing."""
    if not curves:
        return np.empty(0), np.empty(0)
    times, power_w = np.concatenate([c.time_unix_s for c in curves]), np.concatenate([c.power_w for c in curves])
    if len(times) <= 4 * POWER_POINTS:
        return times, power_w
    edges = np.linspace(times[0], times[-1], POWER_POINTS + 1)
    used = np.concatenate([[0.0], np.cumsum(np.nan_to_num(power_w[1:]) * np.diff(times))])
    mean_w = np.diff(np.interp(edges, times, used)) / np.diff(edges)
    missing = np.interp((edges[1:] + edges[:-1]) / 2, times, np.isnan(power_w)) > 0.5
    return edges, np.concatenate([[np.nan], np.where(missing, np.nan, mean_w)])
