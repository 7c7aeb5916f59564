"""A sensor with the curve that it feeds, and the care that one sensor's trouble does not become another's."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from energy.metering.track import LONGEST_UPDATE_S, OLDEST_TIMESTAMP_S, Row, Track
from energy.sensors import Reading, Sensor, device_key

Clock = Callable[[], tuple[float, float]]  # (unix s, monotonic s)
SLOW_METHODS = ("modelled", "assumed")  # they know nothing finer than the second in which they are asked
SLOW_S = 10.0
CLOCK_S, CLOCK_TRIES = 2e-5, 10  # in how long both clocks are read, and how often that is tried on a busy machine


def boot_id() -> str | None:
    """Identifies this boot of the machine: energy counters are only comparable within one."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def system_clock() -> tuple[float, float]:
    """(unix seconds, monotonic seconds): the first places a reading, the second measures between readings.

    Both are of one moment. A process that is put aside between two looks at its clocks would shift a driver's timestamp
    by as much, and with it the edge of a window: such a look is taken again.
    """
    for _ in range(CLOCK_TRIES):
        before_s = time.monotonic()
        unix_s = time.time()
        after_s = time.monotonic()
        if after_s - before_s < CLOCK_S:
            break
    return unix_s, (before_s + after_s) / 2


class Alarm:
    """What the reading thread sleeps on: a bare lock, because waking from an Event costs half as much as a reading."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def wait(self, timeout_s: float) -> None:
        self._lock.acquire(timeout=timeout_s)

    def set(self) -> None:
        with contextlib.suppress(RuntimeError):  # it rings already
            self._lock.release()


def be_punctual() -> None:
    """Let the calling thread run before the trainer's own, where the system allows it: late readings miss changes."""
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), -10)
    except (OSError, AttributeError):  # only root may, and only Linux counts threads as processes
        return


class Channel:
    """One sensor, its curve, and the time in which it could not be read."""

    def __init__(self, sensor: Sensor) -> None:
        self._sensor = sensor
        self._glance: Callable[[], bool] | None = getattr(sensor, "glance", None)
        self.about: dict[str, Any] = sensor.describe()
        self.uuid: str = self.about["uuid"]
        self.share = float(self.about.get("share", 1.0))
        update_s = LONGEST_UPDATE_S if self.about["kind"] == "gpu" else math.inf
        # A node's controller answers when it likes: until it does, its last answer stands for no time after it.
        oldest_s = math.inf if self.about["kind"] == "node" else OLDEST_TIMESTAMP_S
        self.track = Track(self.about["method"] == "counter", update_s, oldest_s)
        self.samples = 0
        self.hung = False
        self.was_missing = False
        self.in_call_s: float | None = None  # since when its sensor's call is under way
        self.is_slow: bool = self.about["method"] in SLOW_METHODS
        self._gap_s = 0.0
        self._missing_since_s: float | None = None
        self._asked_s = float("-inf")
        self._pending_since_s: float | None = None
        self._late_w = 0.0

    @property
    def is_pending(self) -> bool:
        """Its sensor is being looked up, and its curve will be there afterwards."""
        return self._pending_since_s is not None and not self.track.points and not self.track.missing

    @property
    def own_cpu_s(self) -> tuple[float, float]:
        """CPU s of the sensor's own thread and of the programs that it asked; most have neither."""
        told = getattr(self._sensor, "own_cpu_s", None)
        return (0.0, 0.0) if told is None else told()

    @property
    def needs_fast(self) -> bool:
        """Power alone, with no counter behind it: what happens between two readings is lost."""
        return self.about["kind"] == "gpu" and not self.track.uses_counter

    def read(self, clock: Clock, forced: bool = False) -> None:
        """Ask the sensor, unless it hangs or was asked just now and knows nothing new."""
        if self.hung:
            self._take(Reading(error="its sensor does not answer"), *clock(), 0.0)
            return
        if self.is_slow:
            now_s = clock()[1]
            if not forced and now_s - self._asked_s < SLOW_S:
                return
            self._asked_s = now_s
        began_s = self.in_call_s = time.monotonic()
        try:
            reading = self._sensor.read()
        except Exception as error:
            reading = Reading(error=f"{type(error).__name__}: {error}")
        self.in_call_s = None
        if reading.pending:
            if self._pending_since_s is None:
                self._pending_since_s = clock()[1]
            self._asked_s = -math.inf  # a window may be waiting for it
            return
        if self.hung:  # answered at last, but a new thread reads by now: what is said is too old
            self.hung = False
            return
        took_s = time.monotonic() - began_s
        unix_s, now_s = clock()
        self._take(reading, unix_s, now_s, unix_s - took_s)

    def glance(self, clock: Clock) -> None:
        """Look at what the sensor can tell cheaply; a sensor that cannot is read."""
        if self._glance is None or self.hung:
            self.read(clock)
            return
        self.in_call_s = time.monotonic()
        plain = self._glance()
        self.in_call_s = None
        if self.hung:  # answered at last: as in `read`
            self.hung = False
        elif not plain:
            self.read(clock)

    def news(self) -> list[str] | None:
        """Warnings of a sensor that has just become ready (its description is then renewed), else None."""
        tell = getattr(self._sensor, "news", None)
        told = tell() if tell is not None else None
        if told is None:
            return None
        self.about = told[0]
        return list(told[1])

    def late_mj(self, at_s: float) -> float | None:
        """The curve at a moment when the sensor was not ready yet, known afterwards; None if it never became so."""
        if self._pending_since_s is None or not self.track.points:
            return None
        return self._late_w * max(0.0, at_s - self._pending_since_s) * 1e3

    def silence(self, duration_s: float) -> None:
        self.track.silence()
        self._gap_s += duration_s

    def row(self, now_s: float) -> Row:
        return self.track.row(now_s)

    def gap_s_at(self, now_s: float) -> float:
        """Time in s in which it could not be read, up to now."""
        waiting_s = 0.0 if self._missing_since_s is None else max(0.0, now_s - self._missing_since_s)
        return self._gap_s + waiting_s

    def _take(self, reading: Reading, unix_s: float, now_s: float, began_unix_s: float) -> None:
        if not self.track.points and self._pending_since_s is not None and reading.power_w is not None:
            # The model is constant or an average: what it says first stands for the moments in which it was looked up.
            self._late_w = reading.power_w
            self.track.begin_at(self._pending_since_s)
        track = self.track
        before_s = track.points[-1].at_s if track.points else now_s
        if reading.before is not None:
            # Seen a while ago: its timestamp does not tell whether the driver stamps updates or calls.
            stamped = reading.before.counter_unix_s
            seen_unix_s = max(stamped or unix_s, reading.before.power_unix_s or 0.0)
            track.update(reading.before, seen_unix_s, now_s - max(0.0, unix_s - seen_unix_s), stamped)
            before_s = track.points[-1].at_s
        track.update(reading, unix_s, now_s, began_unix_s)
        if track.missing:
            if self._missing_since_s is None:
                self._missing_since_s = before_s
            return
        self.samples += 1
        if self._missing_since_s is not None:
            self._gap_s += now_s - self._missing_since_s
            self._missing_since_s = None


def channels_of(sensors: Iterable[Sensor]) -> tuple[list[Channel], list[str]]:
    """A channel for each device, and of further sensors for the same device, which are not read, that it is so."""
    channels: dict[str, Channel] = {}
    doubled = []
    for sensor in sensors:
        channel = Channel(sensor)
        first = channels.setdefault(device_key(channel.about), channel)
        if first is not channel:
            doubled.append(
                f"{channel.about['name']} ({channel.uuid}) is left out: {first.about['name']} reads the same device"
            )
    return list(channels.values()), doubled
