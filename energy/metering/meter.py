"""The meter: reads every sensor of a node on a schedule, keeps windows, and appends to the node's ledger.

    with Meter() as meter:
        meter.begin("epoch")
        train_one_epoch()
        print(meter.end("epoch").energy_j)

Once built it never raises into its caller, and it never makes it wait: what goes wrong becomes a warning, and the
readings say which device was missing. A sensor whose call hangs is left alone by a new reading thread.
"""

from __future__ import annotations

import math
import os
import random
import socket
import threading
import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from energy.ledger.writer import LedgerWriter, Tick
from energy.metering.live import OwnCpu, live_figures, overhead
from energy.metering.readers import Alarm, Channel, Clock, be_punctual, boot_id, channels_of, system_clock
from energy.metering.windows import CLOCK_JUMP_S, SETTLE_S, Edge, Edges, OpenWindows, Window
from energy.sensors import Sensor, discover

# How often counters are looked at between rows, for each GPU that there is: half of it is unknown of one that is lost,
# which matters less to a node of many, where looking costs more. Eight GPUs are left to rows of a second.
GLANCE_S, GLANCES_S = 0.1, (0.2, 1.0)
FAST_S = 0.05  # power that no counter backs is read this often
EDGE_S = 0.01  # how often the counters are read while an edge waits for them to update
HANG_S = 2.0  # a sensor that has not answered for this long is left alone
JITTER = 0.2  # readings come up to this share of the interval early, so that periodic loads are not aliased
SILENT_S = 5.0  # ten readings left out are a gap


class Meter:
    """Meters this node from `start()` to `stop()`, in a thread of its own.

    ledger: file to append to (continued if it exists), or None for windows alone.
    interval_s: time between rows of the ledger. Between them counters are looked at up to five times a second on nodes
        of few GPUs; the edges of windows and power without a counter are read faster.
    gpus: "visible" to this process, "all" of the node, or UUIDs. host: also CPU and memory.
    sensors: further sensors, or (with `discover_sensors=False`) the only ones.
    whole_process: this process does nothing else, so that all of its CPU time is the cost of metering.
    """

    def __init__(
        self,
        ledger: str | os.PathLike[str] | None = None,
        *,
        node: str | None = None,
        interval_s: float = 1.0,
        attempt: int = 1,
        gpus: Collection[str] | str | None = "visible",
        host: bool = True,
        sensors: Sequence[Sensor] = (),
        discover_sensors: bool = True,
        clock: Clock = system_clock,
        whole_process: bool = False,
    ) -> None:
        if not interval_s > 0:
            raise ValueError(f"interval_s: expected a time above 0 s, got {interval_s}")
        self.node = node or socket.gethostname()
        self.interval_s, self.attempt = interval_s, attempt
        self.warnings: list[str] = []
        self._path = None if ledger is None else Path(ledger)
        self._clock = clock
        self._writer: LedgerWriter | None = None
        self._number = 0
        self._last: tuple[float, float] | None = None
        self._began_s = clock()[1]
        self._opening: Edge | None = None  # the first reading
        self._until_s: float | None = None  # the stop
        self._lock = threading.Lock()  # of the thread that reads now
        self._wake, self._first, self._done = Alarm(), threading.Event(), threading.Event()
        self._stopping = self._read_now = False
        self._generation, self._closed, self._cpu = 0, False, OwnCpu(whole_process)
        self._pid = os.getpid()
        found: list[Sensor] = []
        if discover_sensors:
            found, warnings = discover(self.node, gpus=gpus, host=host)
            self.warnings += warnings
        self._channels, doubled = channels_of([*found, *sensors])
        self.warnings += doubled
        self._edges = Edges(self._channels)
        self._windows = OpenWindows(self._channels, self._edges)
        gpu_count = sum(channel.about["kind"] == "gpu" for channel in self._channels)
        self._glance_s = min(max(GLANCE_S * gpu_count, GLANCES_S[0]), GLANCES_S[1])
        self._notes: deque[dict[str, Any]] = deque()
        self._random = random.Random()

    # What this meter is

    @property
    def sensors(self) -> list[dict[str, Any]]:
        """What each sensor is, as in `run.json`."""
        return [channel.about for channel in self._channels]

    def describe(self) -> dict[str, Any]:
        """{node, sensors, warnings, overhead}: this meter's entry in `run.json`."""
        cpu_s = self._cpu.total_s([channel.own_cpu_s for channel in self._channels])
        told = {"node": self.node, "sensors": self.sensors, "warnings": list(self.warnings)}
        return told | {"overhead": overhead(cpu_s, self._cpu.counts, self._number)}

    def now(self) -> list[dict[str, Any]]:
        """The newest figures of each device: energy_j since the start, power_w, its counter_mj, why it is missing."""
        return [
            channel.about | {"energy_j": channel.track.energy_mj / 1e3, "power_w": channel.track.power_w}
            | {"counter_mj": channel.track.counter_mj}
            | {"missing": channel.track.why_missing if channel.track.missing else None}
            for channel in self._channels
        ]  # fmt: skip

    def live(self) -> dict[str, Any]:
        """{node, time_unix_s, power_w, energy_j, missing} of this node now: what a screen shows. By boot_id and
        began_monotonic_s another meter is known, which counts energy_j from 0 again."""
        figures = live_figures(self.node, self._clock()[0], self.now())
        return figures | {"boot_id": boot_id(), "began_monotonic_s": self._began_s}

    # From start to stop

    def start(self) -> Meter:
        """Take the first reading and go on in the background. Waits for that reading, unless a sensor hangs. One that
        runs already goes on; ValueError for one that was stopped."""
        self._require_ours()
        if self._generation:
            return self
        self._launch()
        threading.Thread(target=self._watch, name=f"meter-watch-{self.node}", daemon=True).start()
        self._first.wait(timeout=HANG_S)
        return self

    def stop(self) -> None:
        """Read until the counters have updated, note the orderly end, close the ledger. Safe to call twice.

        The ledger's energy ends at this call, not at an update before it: that takes a tenth of a second. So do windows
        that are still open. In a forked child nothing happens: the metering is its parent's.
        """
        if os.getpid() != self._pid:
            return
        for name in self._windows.end_all(self._edge()):
            self._warn(f"the window {name!r} was still open at the end: it ends where the meter was stopped")
            self._wake.set()
        if self._generation == 0:  # by hand, without a thread
            self.sample(last=True)
            return
        if self._path is not None and self._until_s is None:
            edge = self._edge()
            self._until_s = edge.monotonic_s
            self._edges.add(edge)
            self._read_soon()
        deadline_s = time.monotonic() + SETTLE_S
        while self._edges and time.monotonic() < deadline_s:
            time.sleep(EDGE_S / 2)
        self._stopping = True
        self._wake.set()
        if not self._done.wait(timeout=3 * HANG_S):
            self._warn(f"meter of {self.node}: the last reading did not come; the ledger ends with the one before")

    def __enter__(self) -> Meter:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def mark(self, attempt: int) -> None:
        """From a reading now on they belong to `attempt`."""
        self.attempt = attempt
        self._read_soon()

    def note(self, event: dict[str, Any]) -> None:
        """Put something that is known of this stretch into its ledger, with the next row."""
        self._notes.append(event)

    # Windows

    def begin(self, name: str) -> Window:
        """Open a window. ValueError when one of this name is open, and where nothing reads any more."""
        self._require_ours()
        window = self._windows.begin(name, self._edge())
        self._wake.set()
        return window

    def end(self, name: str | Window) -> Window:
        """Close a window and return it; its figures are there a fraction of a second later. ValueError if unknown."""
        self._require_ours()
        window = self._windows.end(name, self._edge())
        self._wake.set()
        return window

    @contextmanager
    def window(self, name: str) -> Iterator[Window]:
        """`with meter.window("step") as w: ...`, then `w.energy_j`."""
        window = self.begin(name)
        try:
            yield window
        finally:
            if window.is_open and os.getpid() == self._pid:  # not ended inside, nor by the meter's stop
                self.end(window)

    def _require_ours(self) -> None:
        """ValueError where nothing reads: in a forked child, and after the stop."""
        if os.getpid() != self._pid:
            raise ValueError(f"this meter reads in process {self._pid}, which forked this one: make another Meter here")
        if self._closed or self._stopping:
            raise ValueError("this meter was stopped: make another Meter")

    def _edge(self) -> Edge:
        return Edge(*self._clock())

    def _read_soon(self) -> None:
        """Have all devices read now, in a row that is kept in every file."""
        self._read_now = True
        self._wake.set()

    # Readings

    def sample(self, *, last: bool = False) -> None:
        """Read every sensor once, now, and append the reading; `last` ends the ledger in good order.

        For a meter that was not started: with a thread of its own it does this by itself.
        """
        with self._lock:
            if not self._closed:
                self._read_all(self._lock, last)
                self._edges.settle(self._clock, self._closed)

    def _read_all(self, lock: threading.Lock, last: bool = False, keep: bool = False) -> None:
        """`lock` is the one that the caller holds: when it is no longer the meter's, another thread has taken over."""
        try:
            self._note_silence()
            for channel in self._channels:
                channel.read(self._clock, forced=last)
                if lock is not self._lock:
                    return
            self._append(last, keep)
        except Exception as error:  # the trainer must never die of its meter
            self._warn(f"meter of {self.node}: a reading failed ({error!r})")

    def _append(self, last: bool, keep: bool) -> None:
        unix_s, now_s = self._clock()
        self._number += 1
        if self._path is not None and self._writer is None:
            self._open_writer()
        self._take_news(unix_s, now_s)
        if self._path is not None:
            if self._writer is not None:
                rows = tuple(channel.row(now_s) for channel in self._channels)
                self._writer.tick(Tick(self._writer.session, self._number, unix_s, now_s, self.attempt, rows), keep)
                for fault in self._writer.faults:
                    self._warn(fault)
        if last:
            self._closed = True
            if self._writer is not None:
                until_s = now_s if self._until_s is None else self._until_s
                end = {"event": "end", "unix_s": unix_s, "until_monotonic_s": until_s}
                self._writer.event(end | self.describe())
                self._writer.close()
                self.warnings += [fault for fault in self._writer.faults if fault not in self.warnings]

    def _take_news(self, unix_s: float, now_s: float) -> None:
        while self._notes and self._writer is not None:
            self._writer.event({"unix_s": unix_s, **self._notes.popleft()})
        for channel in self._channels:
            if channel.track.missing != channel.was_missing and self._writer is not None:
                channel.was_missing = channel.track.missing
                event = "missing" if channel.was_missing else "found"
                about = {"uuid": channel.uuid, "unix_s": unix_s, "why": channel.track.why_missing}
                self._writer.news(now_s, {"event": event, **about})
            news = channel.news()
            if news is None:
                continue
            for text in news:
                self._warn(text)
            if self._writer is not None:
                self._writer.event({"event": "sensor", **channel.about})

    def _open_writer(self) -> None:
        from energy.sensors.nvml import driver_version

        assert self._path is not None
        try:
            self._writer = LedgerWriter(self._path)
        except OSError as error:
            self._warn(f"{self._path}: cannot be written ({error.strerror}): nothing is kept on disk so far")
            return
        self._writer.header(
            {
                "node": self.node,
                "boot_id": boot_id(),
                "driver": driver_version(),
                "attempt": self.attempt,
                "interval_s": self.interval_s,
                "began_monotonic_s": self._began_s,
                "sensors": self.sensors,
            }
        )

    def _note_silence(self) -> None:
        """Before anything is read: whether this process stood still (what it held must not stretch over that), or the
        clock was set."""
        unix_s, now_s = self._clock()
        before, self._last = self._last, (unix_s, now_s)
        if before is None:
            return
        passed_s, shown_s = now_s - before[1], unix_s - before[0]
        if passed_s > SILENT_S:
            for channel in self._channels:
                channel.silence(passed_s)
        if abs(shown_s - passed_s) > CLOCK_JUMP_S:
            self._warn(f"the clock of {self.node} was set by {shown_s - passed_s:+.1f} s while it was metered")
            if self._writer is not None:
                by = {"monotonic_s": now_s, "by_s": shown_s - passed_s}
                self._writer.event({"event": "clock", "unix_s": unix_s, **by})

    # The reading thread

    def _launch(self) -> None:
        """A reading thread with a lock of its own; one that came before it ends at its next step."""
        self._generation += 1
        self._lock = threading.Lock()
        name = f"meter-{self.node}-{self._generation}"
        try:
            threading.Thread(target=self._run, args=(self._lock,), name=name, daemon=True).start()
        except RuntimeError as error:
            self._warn(f"meter of {self.node}: no background readings ({error})")

    def _run(self, lock: threading.Lock) -> None:
        fast = [channel for channel in self._channels if channel.needs_fast]
        quick = [channel for channel in self._channels if not channel.is_slow]
        be_punctual()
        due_s = fast_due_s = time.monotonic()
        between_s = math.inf
        while lock is self._lock and not self._closed:
            now_s = time.monotonic()
            wanted_s = min(due_s, between_s, fast_due_s if fast else math.inf)
            if self._read_now:
                wanted_s = now_s
            elif self._edges:
                wanted_s = min(wanted_s, now_s + EDGE_S)
            self._wake.wait(max(0.0, wanted_s - now_s))
            now_s = time.monotonic()
            with lock:
                if now_s >= due_s or self._stopping or self._read_now:
                    wanted, self._read_now = self._read_now, False
                    self._read_all(lock, last=self._stopping, keep=wanted)
                    due_s = now_s + self._spaced(self.interval_s)
                    between_s = now_s + self._glance_s if self.interval_s > 1.3 * self._glance_s else math.inf
                elif now_s >= between_s and not self._edges:
                    between_s = now_s + self._glance_s if due_s - now_s > 1.3 * self._glance_s else math.inf
                    self._read_some(lock, quick, glance=True)
                else:
                    self._read_some(lock, self._edges.unsettled() if self._edges else fast)
                if now_s >= fast_due_s:
                    fast_due_s = now_s + self._spaced(FAST_S)
            if lock is self._lock:
                if self._edges and self._opening in self._edges.settle(self._clock, self._closed):
                    self._read_now = True  # with the row before, this one holds the first reading between two updates
                if not self._first.is_set():
                    if self._path is not None:
                        self._opening = self._edge()
                        self._edges.add(self._opening)
                    self._first.set()
            self._cpu.note()
        if self._closed:
            self._done.set()

    def _spaced(self, interval_s: float) -> float:
        return interval_s * self._random.uniform(1 - JITTER, 1)

    def _read_some(self, lock: threading.Lock, channels: Sequence[Channel], glance: bool = False) -> None:
        try:
            self._note_silence()
            for channel in channels:
                (channel.glance if glance else channel.read)(self._clock)
                if lock is not self._lock:
                    return
        except Exception as error:  # the trainer must never die of its meter
            self._warn(f"meter of {self.node}: a reading failed ({error!r})")

    def _watch(self) -> None:
        """Replace the reading thread when a sensor's call hangs; the stuck one ends by itself once it is answered."""
        while not self._done.wait(2 * HANG_S):
            for channel in self._channels:
                since_s = channel.in_call_s
                if since_s is not None and time.monotonic() - since_s > HANG_S and not channel.hung:
                    channel.hung = True
                    self._warn(f"{channel.about['name']} ({channel.uuid}): its sensor does not answer")
                    self._launch()
            self._cpu.note()

    def _warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)
