"""Windows: named stretches of time and the energy of each device in them, with an interval.

Beginning or ending a window only notes the time; the meter's own thread then reads each energy counter until it has
updated, so that the edge lies between two updates and not at a stale one. A window can be asked at once and answers
when its edges are known (a fraction of a second); the program that is measured never waits unless it asks.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from energy.accounting.uncertainty import MEASURED, NODE_LEAST, half_width, half_widths, quantile
from energy.metering.readers import Channel, Clock
from energy.units import JOULE_PER_KWH

UPDATE_S = 0.1  # what an NVML energy counter takes between updates; an edge is uncertain by a part of it
LATE_S = 10.0  # how long asking a window waits for models that are still being looked up
CLOCK_JUMP_S = 0.5  # two clocks that part by more: one was set
SETTLE_S = 0.4  # a counter that has not updated this long after an edge is extended by its power


@dataclass(frozen=True)
class DeviceEdge:
    """A device's curve at a moment, in mJ, and what had happened on it up to then."""

    energy_mj: float | None
    doubt_mj: int
    power_w: float | None
    samples: int
    gap_s: float
    resets: int
    missing: str | None


@dataclass
class Edge:
    """A moment at which all curves are wanted."""

    unix_s: float
    monotonic_s: float
    devices: dict[str, DeviceEdge] = field(default_factory=dict)
    ready: threading.Event = field(default_factory=threading.Event)
    late: dict[str, Channel] = field(default_factory=dict)  # those whose sensor was not ready yet


@dataclass(frozen=True)
class DeviceWindow:
    """Energy of one device in a window in J, with the bounds of its 95 % interval; None where nothing is known.

    `method`: counter, integrated, modelled or assumed. `gap_s`: time in s in which the device could not be read.
    `note` says in words what was not plain.
    """

    uuid: str
    name: str
    kind: str
    method: str
    boundary: str
    energy_j: float | None
    low_j: float | None
    high_j: float | None
    samples: int
    gap_s: float
    share: float = 1.0
    note: str = ""


class Window:
    """A stretch of metering. Reading `devices` or `energy_j` waits until both edges are known."""

    def __init__(self, name: str, begin: Edge, channels: Sequence[Channel]) -> None:
        self.name = name
        self._begin, self._end = begin, begin
        self._channels = channels
        self._devices: list[DeviceWindow] | None = None
        self.is_open = True

    def __repr__(self) -> str:
        return f"Window({self.name!r}, {'open' if self.is_open else f'{self.duration_s:.3f} s'})"

    def close(self, edge: Edge) -> None:
        self._end, self.is_open = edge, False

    @property
    def start_unix_s(self) -> float:
        return self._begin.unix_s

    @property
    def end_unix_s(self) -> float:
        """By a clock that was set back meanwhile: its start and the time that passed, as its ledger counts, too."""
        passed_unix_s = self.start_unix_s + self.duration_s
        return passed_unix_s if passed_unix_s - self._end.unix_s > CLOCK_JUMP_S else self._end.unix_s

    @property
    def span_monotonic_s(self) -> tuple[float, float]:
        """Its start and end by the clock that the ledger's readings have, too."""
        return self._begin.monotonic_s, self._end.monotonic_s

    @property
    def duration_s(self) -> float:
        return self._end.monotonic_s - self._begin.monotonic_s

    @property
    def devices(self) -> list[DeviceWindow]:
        """The devices of the node. ValueError while the window is open; RuntimeError if the meter died."""
        if self.is_open:
            raise ValueError(f"the window {self.name!r} is still open: end it first")
        if self._devices is None:
            for edge in (self._begin, self._end):
                if not edge.ready.wait(timeout=10 * SETTLE_S):
                    raise RuntimeError(f"the window {self.name!r} has no readings: the meter is not running")
            self._await_late()
            self._devices = [self._device(channel.about, channel.share) for channel in self._channels]
        return self._devices

    @property
    def energy_j(self) -> float | None:
        """All devices together, each once, a whole-node sensor in place of its parts; None if nothing was read."""
        known = [device for device in self.counted if device.energy_j is not None]
        return math.fsum(device.energy_j or 0.0 for device in known) if known else None

    @property
    def energy_kwh(self) -> float | None:
        return None if self.energy_j is None else self.energy_j / JOULE_PER_KWH

    @property
    def low_j(self) -> float | None:
        return None if self.energy_j is None else max(0.0, self.energy_j - self._half_width_j())

    @property
    def high_j(self) -> float | None:
        return None if self.energy_j is None else self.energy_j + self._half_width_j()

    @property
    def counted(self) -> list[DeviceWindow]:
        """The devices that make up the total, each joule once: of a node with a sensor of its own that one and not its
        parts. Where it was not read all the time both are less than what was used, and the larger is taken; nor is one
        believed that shows less than half of what was measured of its parts."""
        whole = [device for device in self.devices if device.kind == "node" and device.energy_j is not None]
        parts = [device for device in self.devices if device.kind != "node"]
        if not whole:
            return parts
        node = min(whole, key=lambda device: device.gap_s)  # of several sensors of a node the one that was read longest
        node_j, parts_j = node.energy_j or 0.0, math.fsum(device.energy_j or 0.0 for device in parts)
        measured_j = math.fsum(device.energy_j or 0.0 for device in parts if device.method in MEASURED)
        return parts if node_j < NODE_LEAST * measured_j or (node.gap_s > 0 and parts_j > node_j) else [node]

    def half_widths_j(self) -> list[float]:
        """Half widths in J of the independent errors of the total (energy.accounting.uncertainty)."""
        return half_widths([(d.method, d.energy_j or 0.0, self._edges_j(d.uuid)) for d in self.counted])

    def _half_width_j(self) -> float:
        return quantile(self.half_widths_j())

    def _edges_j(self, uuid: str) -> float:
        """Half width in J that the edges and sampled power add to a device."""
        first, last = self._begin.devices.get(uuid), self._end.devices.get(uuid)
        if first is None or last is None:
            return 0.0
        watts = max(
            abs((first.power_w or 0.0) - (last.power_w or 0.0)), 0.2 * max(first.power_w or 0, last.power_w or 0)
        )
        share = next(channel.share for channel in self._channels if channel.uuid == uuid)
        return share * (abs(last.doubt_mj - first.doubt_mj) / 1e3 + watts * UPDATE_S / 4)

    def _await_late(self) -> None:
        """Sensors that were being looked up when the window ended have their curve a little later."""
        deadline_s = time.monotonic() + LATE_S
        while time.monotonic() < deadline_s:
            if all(channel.track.points or not channel.is_pending for channel in self._end.late.values()):
                return
            time.sleep(0.02)

    def _device(self, about: dict[str, Any], share: float) -> DeviceWindow:
        uuid, method = about["uuid"], about["method"]
        fixed = {"uuid": uuid, "name": about["name"], "kind": about["kind"], "boundary": about["boundary"]}
        first, last = self._begin.devices.get(uuid), self._end.devices.get(uuid)
        start_mj, end_mj = (self._curve(edge, uuid) for edge in (self._begin, self._end))
        if first is None or last is None or end_mj is None:
            why = (last and last.missing) or "no reading"
            return DeviceWindow(**fixed, method=method, energy_j=None, low_j=None, high_j=None, samples=0,
                                gap_s=self.duration_s, share=share, note=f"missing: {why}")  # fmt: skip
        energy_j = max(0.0, end_mj - (start_mj or 0.0)) / 1e3 * share
        notes = []
        if start_mj is None:
            notes.append("not read at the beginning")
        if last.resets > first.resets:
            notes.append("the counter was reset in it")
        gap_s = max(0.0, last.gap_s - first.gap_s)
        if last.missing:
            notes.append(f"lost ({last.missing}): what it used since is not in the figure")
        elif gap_s:
            notes.append(f"not read for {gap_s:.1f} s")
        if share < 1.0:
            method, text = "assumed", f"{share:.0%} of its GPU: a MIG instance's share by compute slices"
            notes.append(text)
        half_j = half_width([(method, energy_j, self._edges_j(uuid))])
        return DeviceWindow(**fixed, method=method, energy_j=energy_j, low_j=max(0.0, energy_j - half_j),
                            high_j=energy_j + half_j, samples=last.samples - first.samples, gap_s=gap_s, share=share,
                            note="; ".join(notes))  # fmt: skip

    @staticmethod
    def _curve(edge: Edge, uuid: str) -> float | None:
        """A device's curve at an edge in mJ; of one that was not ready then, what was found out since."""
        at_edge = edge.devices.get(uuid)
        if at_edge is not None and at_edge.energy_mj is not None:
            return at_edge.energy_mj
        late = edge.late.get(uuid)
        return None if late is None else late.late_mj(edge.monotonic_s)


class Edges:
    """The moments that wait until the curves of all devices are known on both sides of them."""

    def __init__(self, channels: Sequence[Channel]) -> None:
        self._channels = channels
        self._waiting: list[Edge] = []
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, edge: Edge) -> None:
        with self._lock:
            self._waiting.append(edge)

    def unsettled(self) -> list[Channel]:
        """The devices to be read until their counters have updated."""
        with self._lock:
            latest_s = max((edge.monotonic_s for edge in self._waiting), default=-math.inf)
        return self._unsettled_at(latest_s)

    def settle(self, clock: Clock, at_once: bool) -> list[Edge]:
        """Fix the curves at the moments that are known by now, or have waited too long; these moments.

        at_once: there will be no further readings.
        """
        now_s, settled = clock()[1], []
        for edge in list(self._waiting):
            if at_once or now_s - edge.monotonic_s > SETTLE_S or not self._unsettled_at(edge.monotonic_s):
                for channel in self._channels:  # a model's last word may be seconds old
                    if channel.is_slow and not channel.hung and not channel.track.is_settled(edge.monotonic_s):
                        channel.read(clock, forced=True)
                resolve(edge, self._channels)
                settled.append(edge)
                with self._lock:
                    self._waiting.remove(edge)
        return settled

    def _unsettled_at(self, at_s: float) -> list[Channel]:
        return [c for c in self._channels if not (c.is_slow or c.hung or c.track.is_settled(at_s))]


def resolve(edge: Edge, channels: Sequence[Channel]) -> None:
    """Fix the curves at the edge; from here on the window can be asked."""
    for channel in channels:
        track = channel.track
        if not track.points:
            edge.late[channel.uuid] = channel
        edge.devices[channel.uuid] = DeviceEdge(
            track.energy_at(edge.monotonic_s),
            track.doubt_mj,
            track.power_w,
            channel.samples,
            channel.gap_s_at(edge.monotonic_s),
            track.resets,
            track.why_missing if track.missing else None,
        )
    edge.ready.set()


class OpenWindows:
    """The windows of a meter that have begun and not ended, by name; safe from any thread."""

    def __init__(self, channels: Sequence[Channel], edges: Edges) -> None:
        self._channels, self._edges = channels, edges
        self._open: dict[str, Window] = {}
        self._lock = threading.Lock()

    def begin(self, name: str, edge: Edge) -> Window:
        """Opens a window; ValueError where one of this name is open."""
        window = Window(name, edge, self._channels)
        with self._lock:
            if name in self._open:
                raise ValueError(f"a window called {name!r} is open already: end it, or give this one another name")
            self._open[name] = window
            self._edges.add(edge)
        return window

    def end(self, which: str | Window, edge: Edge) -> Window:
        """Closes a window; ValueError where it is not open."""
        name = which.name if isinstance(which, Window) else which
        with self._lock:
            window = self._open.get(name)
            if window is None or (isinstance(which, Window) and which is not window):
                known = ", ".join(map(repr, self._open)) or "none is open"
                ended = " (it has ended)" if isinstance(which, Window) else ""
                raise ValueError(f"no window called {name!r} is open{ended} ({known})")
            del self._open[name]
            window.close(edge)
            self._edges.add(edge)
        return window

    def end_all(self, edge: Edge) -> list[str]:
        """End them where their meter stops; their names."""
        with self._lock:
            ended, self._open = self._open, {}
            for window in ended.values():
                window.close(edge)
            if ended:
                self._edges.add(edge)
        return list(ended)
