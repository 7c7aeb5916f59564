"""One device's running energy: readings in, a curve of cumulative mJ out, with what was odd about it.

The curve follows the energy counter. Beside it runs the integral of power, held between driver timestamps: the
cross-check, and the stand-in for an interval in which the counter gave nothing (a reset, an unsupported field). What
neither could tell is `UNKNOWN` and adds nothing. Rows hold
whole mJ, cumulative, so that thinning the curve loses nothing.
"""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

from energy.metering.between import integrated, missed_w, used_mj
from energy.sensors import Reading

# What was odd between the row before and this one. A row's own state is MISSING; the others speak of the interval.
MISSING, RESET, UNKNOWN, INTEGRATED, SILENT, NO_POWER = 1, 2, 4, 8, 16, 32
FLAGS = {
    MISSING: "missing", RESET: "reset", UNKNOWN: "unknown", INTEGRATED: "integrated", SILENT: "silent",
    NO_POWER: "no_power",
}  # fmt: skip

STAMP_LAG_S = 0.002  # a timestamp that lies further back than a call takes is that of an update
TIGHT_S = 0.02  # an update whose moment is known to this is good for the edge of a window
LONGEST_UPDATE_S = 0.1
OLDEST_TIMESTAMP_S = 10.0  # a driver timestamp further from now than this is not believed (a clock was set)
HIGHEST_POWER_W = 3000.0  # above what any accelerator draws: bounds what a counter can have counted
LONG_SPAN_S = 0.25  # power registers update every 0.1 s or faster: beyond this some of them were not seen
MEMORY = 0.95  # of the running share of power changes per sample, see `_doubt`


class Point(NamedTuple):
    """Cumulative energy at a monotonic time in s: an update of the counter, or of the power register.

    loose_s: by how much the update may have come earlier, where the driver does not tell when it was.
    """

    at_s: float
    energy_mj: int
    loose_s: float = 0.0


class Row(NamedTuple):
    """A device's state at a tick. Cumulative columns hold at `at_s`; n, power and flags cover the time since the last.

    counter_mj is the counter that energy_mj stands for (with what integration put on the curve in its place), -1 where
    there is none. held_mj is the integral of power, energy_mj the curve, doubt_mj the half width by which sampled power
    may have missed what happened between its samples.
    """

    flags: int
    n: int
    at_s: float
    power_min_w: float
    power_max_w: float
    counter_mj: int
    held_mj: int
    energy_mj: int
    doubt_mj: int


class Track:
    """The curve of one device. `update` takes a reading; `row` gives the state; `energy_at` the curve at a time."""

    def __init__(self, uses_counter: bool, update_s: float = math.inf, oldest_s: float = OLDEST_TIMESTAMP_S) -> None:
        """update_s: how long a value of the power register stands, where that is known: what lies further apart was
        not seen. oldest_s: a timestamp further back than this is not believed."""
        self.uses_counter, self._update_s, self._oldest_s = uses_counter, update_s, oldest_s
        self.missing = False
        self.why_missing: str | None = None
        self.resets = 0
        self.power_w: float | None = None
        self.points: deque[Point] = deque(maxlen=24)  # enough for the edges of a window at ten readings a second
        self._seen_w: deque[tuple[float, float]] = deque(maxlen=24)  # (s, W) of the power register
        self._energy_mj = 0
        self._held_j = self._held_doubt_j = 0.0
        self._doubt_j = 0.0
        self._counter_mj: int | None = None
        self._held_whole = True  # power was known ever since the counter's last point
        self._owed_doubt_j = self._missed_w = 0.0
        self._owed_mj = 0  # integrated energy already on the curve, which the counter's next growth contains
        self._power_at_s: float | None = None
        self._changes, self._usual_w = 1.0, 0.0
        self._stamps_tell = False
        self._read_at_s = self._unread_s = float("-inf")
        self._range_w = (float("inf"), float("-inf"))
        self._flags = self._n = 0
        self._power_low_w, self._power_high_w = float("inf"), float("-inf")

    @property
    def energy_mj(self) -> int:
        return self._energy_mj

    @property
    def counter_mj(self) -> int | None:
        """As in `Row`; None where there is none."""
        return None if self._counter_mj is None else self._counter_mj + self._owed_mj

    @property
    def doubt_mj(self) -> int:
        """Half width by which what was integrated may be wrong; a counter leaves no such doubt."""
        return int((self._doubt_j if self.uses_counter else self._held_doubt_j) * 1e3)

    @property
    def held_mj(self) -> int:
        return int(self._held_j * 1e3)

    def update(self, reading: Reading, unix_s: float, now_s: float, began_unix_s: float | None = None) -> None:
        """Take one reading that ended at unix time `unix_s` and monotonic time `now_s`, begun at `began_unix_s` (s)."""
        self._n += 1
        if reading.error is not None or (reading.energy_mj is None and reading.power_w is None):
            self._miss(reading.error or "no value", now_s)
            return
        if self.missing and self.points and not self.uses_counter:
            self._flags |= UNKNOWN  # a counter would tell what was used meanwhile
        if reading.power_w is not None:
            for seen_unix_s, seen_w in reading.glimpses_w:
                self._take_power(seen_w, self._moment(seen_unix_s, unix_s, now_s), False)
            self._take_power(reading.power_w, self._moment(reading.power_unix_s, unix_s, now_s), reading.covers_past)
        elif self.uses_counter:
            self._flags |= NO_POWER
            self._lose_power()
        self._unread_s, self._read_at_s = now_s - self._read_at_s, now_s
        began_unix_s = unix_s if began_unix_s is None else began_unix_s
        if reading.counter_unix_s is not None and began_unix_s - reading.counter_unix_s > STAMP_LAG_S:
            self._stamps_tell = True  # of updates; some drivers stamp the moment of the call, which tells nothing
        if self.uses_counter:
            at_s = self._moment(reading.counter_unix_s, unix_s, now_s)
            self._take_counter(reading.energy_mj, at_s, now_s, reading.begun_anew)
        self.missing, self.why_missing = False, None

    def begin_at(self, at_s: float) -> None:
        """Start the curve before the first reading, which is then taken to hold since `at_s`: for models alone."""
        self._power_at_s = at_s
        self.points.append(Point(at_s, 0))

    def silence(self) -> None:
        """The meter itself did not run for long: power was not followed, a counter still counts."""
        self._flags |= SILENT
        self._lose_power()
        if not self.uses_counter and self.points:
            self._flags |= UNKNOWN

    def row(self, now_s: float) -> Row:
        """The state now; the next row's interval begins here."""
        low, high = self._power_low_w, self._power_high_w
        if low > high:
            low = high = float("nan")
        flags = self._flags | (MISSING if self.missing else 0)
        at_s = self.points[-1].at_s if self.points else now_s
        counter = -1 if self.counter_mj is None else self.counter_mj
        row = Row(flags, self._n, at_s, low, high, counter, self.held_mj, self._energy_mj, self.doubt_mj)
        self._forget_interval()
        return row

    def is_settled(self, at_s: float) -> bool:
        """Whether the curve is known on both sides of a moment."""
        if not self.points or self.points[-1].at_s < at_s:
            return False
        if self.uses_counter and self._power_at_s is not None:
            updated_s = next(point.at_s for point in self.points if point.at_s >= at_s)
            if self._power_at_s < updated_s:  # it will say how power stood when the counter updated
                return False
        return self._stamps_tell or not self.uses_counter or len(self._tight_after(at_s)) >= 2

    def _tight_after(self, at_s: float) -> list[Point]:
        return [point for point in self.points if point.at_s >= at_s and point.loose_s <= TIGHT_S]

    def energy_at(self, at_s: float) -> float | None:
        """Cumulative energy in mJ at a monotonic time, extended after the last point; None before the first reading."""
        if not self.points:
            return None
        if at_s >= self.points[-1].at_s:
            last = self.points[-1]
            return last.energy_mj + (0.0 if self.missing else (self.power_w or 0.0) * (at_s - last.at_s) * 1e3)
        after = self.points[-1]
        for before in reversed(self.points):
            if before.at_s <= at_s:
                if before.loose_s > TIGHT_S and len(tight := self._tight_after(at_s)) >= 2:
                    # Nobody knows when `before` was true; the two updates after the moment are known, and lead back.
                    slope = (tight[1].energy_mj - tight[0].energy_mj) / (tight[1].at_s - tight[0].at_s)
                    return max(before.energy_mj, tight[0].energy_mj - slope * (tight[0].at_s - at_s))
                total_mj = after.energy_mj - before.energy_mj
                seen_w = self._seen_w if self.uses_counter else ()  # without a counter the curve is made of them
                return before.energy_mj + used_mj(before.at_s, after.at_s, total_mj, at_s, tuple(seen_w))
            after = before
        first = self.points[0]
        return first.energy_mj - (self.power_w or 0.0) * (first.at_s - at_s) * 1e3

    def _miss(self, why: str, now_s: float) -> None:
        if not self.missing and self.points:
            self._hold_half(now_s)
        self.missing, self.why_missing = True, why
        self._lose_power()
        self.power_w = None
        if not self.uses_counter and self.points:
            self._flags |= UNKNOWN

    def _lose_power(self) -> None:
        """From here on power is not known: what was seen of it stands for no time after."""
        self._power_at_s, self._held_whole = None, False
        self._seen_w.clear()

    def _hold_half(self, now_s: float) -> None:
        """A device was lost at some moment since its last reading: its power is held to the middle, give or take."""
        last = self.points[-1]
        span_s = now_s - last.at_s
        if self.power_w is None or span_s <= 0:
            return
        half_j = self.power_w * span_s / 2
        self._flags |= INTEGRATED
        if self.uses_counter:
            self._energy_mj += round(half_j * 1e3)
            self._owed_mj += round(half_j * 1e3)  # if it comes back, its counter knows better
            self._doubt_j += half_j
            self._owed_doubt_j += half_j
        else:
            self._held_j += half_j
            self._held_doubt_j += half_j
            self._energy_mj = self.held_mj
        self.points.append(Point(last.at_s + span_s / 2, self._energy_mj))

    def _take_power(self, power_w: float, at_s: float, covers_past: bool) -> None:
        self._power_low_w, self._power_high_w = min(self._power_low_w, power_w), max(self._power_high_w, power_w)
        before_w, before_s = self.power_w, self._power_at_s
        if before_s is not None and at_s > before_s:
            held_w = power_w if covers_past or before_w is None else before_w
            self._held_j += held_w * (at_s - before_s)
            if before_w is not None and not covers_past and not self.uses_counter:
                self._doubt(before_w, power_w, at_s - before_s)
        if before_s is None or at_s > before_s or power_w != before_w:
            self.power_w = power_w
            self._power_at_s = at_s = at_s if before_s is None else max(at_s, before_s)
            self._seen_w.append((at_s, power_w))
            if not self.uses_counter:
                self._energy_mj = self.held_mj
                if not self.points or at_s > self.points[-1].at_s:
                    self.points.append(Point(at_s, self._energy_mj))

    def _take_counter(self, counter_mj: int | None, at_s: float, now_s: float, begun_anew: bool) -> None:
        if counter_mj is None:  # power alone: it stands in until the counter speaks again
            until_s = now_s if self._power_at_s is None else self._power_at_s
            self._stand_in(until_s)
            if not self.points or until_s > self.points[-1].at_s:
                self.points.append(Point(until_s, self._energy_mj))
            return
        if self._counter_mj is None or counter_mj < self._counter_mj or begun_anew:
            is_reset = self._counter_mj is not None
            self.resets += is_reset
            self._flags |= RESET if is_reset else 0
            if self._held_whole:
                self._stand_in(at_s, self._looseness_s())
            elif self.points:  # what it has counted since it began again is known, what came before that is not
                self._flags |= UNKNOWN
                if is_reset and not begun_anew:  # else it may have wrapped, and began at no zero
                    self._energy_mj += self._counted_since_restart(counter_mj, now_s)
            self._owed_mj, self._owed_doubt_j = 0, 0.0
            self._restart(counter_mj, at_s)
        elif counter_mj > self._counter_mj:
            grown_mj = counter_mj - self._counter_mj - self._owed_mj
            self._owed_mj = max(0, -grown_mj)
            # It kept count all the while: by what it still owes the curve is too high, and by nothing else.
            self._doubt_j += self._owed_mj / 1e3 - self._owed_doubt_j
            self._owed_doubt_j = self._owed_mj / 1e3
            self._energy_mj += max(0, grown_mj)
            self._restart(counter_mj, at_s)

    def _counted_since_restart(self, counter_mj: int, now_s: float) -> int:
        """The new counter's value, if it can have come up since the last reading: a counter may also not begin at 0."""
        unread_s = now_s - self.points[-1].at_s
        return counter_mj if counter_mj <= unread_s * HIGHEST_POWER_W * 1e3 else 0

    def _restart(self, counter_mj: int, at_s: float) -> None:
        self._counter_mj, self._held_whole = counter_mj, self._power_at_s is not None
        if self.points and self.points[-1].at_s >= at_s:  # one point for a moment: a slope needs two
            at_s = self.points.pop().at_s
        self.points.append(Point(at_s, self._energy_mj, self._looseness_s()))

    def _looseness_s(self) -> float:
        """By how much an update of the counter that has just been read may have come earlier."""
        return 0.0 if self._stamps_tell else min(self._unread_s, LONGEST_UPDATE_S)

    def _stand_in(self, until_s: float, loose_s: float = 0.0) -> None:
        """Put what power says of the time since the curve's last point on it, as what the counter will be found to owe.

        loose_s: by how much that time may have ended earlier.
        """
        if not self.points or not self._seen_w or until_s <= self.points[-1].at_s:
            return
        last = self.points[-1]
        start_s = last.at_s if self._held_whole else max(last.at_s, self._seen_w[0][0])
        used_j, doubt_j = integrated(start_s, max(start_s, until_s), self._seen_w, LONGEST_UPDATE_S)
        if not self._owed_mj:  # the counter spoke last: how well did power tell what it counted before?
            counted = [(point.at_s, point.energy_mj) for point in self.points]
            self._missed_w = missed_w(counted, self._seen_w, max(until_s - last.at_s, LONGEST_UPDATE_S))
        doubt_j = max(doubt_j, math.sqrt(3) * self._missed_w * (until_s - start_s))  # of a uniform error as large
        doubt_j += (self.power_w or 0.0) * (last.loose_s + loose_s) / 2
        self._doubt_j += doubt_j
        self._owed_doubt_j += doubt_j
        self._flags |= INTEGRATED
        self._energy_mj += round(used_j * 1e3)
        self._owed_mj += round(used_j * 1e3)

    def _doubt(self, before_w: float, power_w: float, span_s: float) -> None:
        """By how much holding may be wrong: the moment of a change is not known within a span.

        A single change is uncertain by |dP| span / 2 either way. Changes that are far apart in samples average out;
        changes in step with the sampling add up instead (aliasing). `_changes` is the running share of samples at
        which power moved through its range: the doubt of each change is weighted with it, which gives nearly nothing
        for rare steps and the full systematic width for power that moves at every sample. What was missed between
        samples that came late adds to that in full.
        """
        low, high = self._range_w
        low, high = min(low, power_w, before_w), max(high, power_w, before_w)
        self._range_w = (low, high)
        moved_w = abs(power_w - before_w)
        share = moved_w / (high - low) if high > low else 0.0
        self._changes = MEMORY * self._changes + (1 - MEMORY) * share
        self._usual_w = MEMORY * self._usual_w + (1 - MEMORY) * moved_w
        unseen_s = span_s - self._update_s
        if unseen_s > self._update_s / 2:
            # The meter did not get to read in time: since then power may have strayed by its usual change an update,
            # as far as its range.
            reach_w = min(max(high - before_w, before_w - low), self._usual_w * unseen_s / self._update_s)
            self._held_doubt_j += reach_w * unseen_s
        if span_s > LONG_SPAN_S:  # updates were missed: power may have moved there and back as it usually does
            self._held_doubt_j += max(moved_w, 2 * self._usual_w) * span_s / 2
        else:
            self._held_doubt_j += moved_w * span_s / 2 * self._changes

    def _forget_interval(self) -> None:
        self._flags = self._n = 0
        self._power_low_w, self._power_high_w = float("inf"), float("-inf")

    def _moment(self, driver_unix_s: float | None, unix_s: float, now_s: float) -> float:
        """The monotonic time of a driver timestamp; of the reading itself where there is none to believe."""
        if driver_unix_s is None or not 0.0 <= unix_s - driver_unix_s <= self._oldest_s:
            return now_s
        return now_s - (unix_s - driver_unix_s)
