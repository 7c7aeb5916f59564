"""The meter: reads every sensor of a node on a schedule and appends to its ledger.

One per node. Once built it never raises into its caller: what goes wrong becomes a warning, and the readings
say which device was missing.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from energy.ledger import SCHEMA, LedgerWriter
from energy.sensors import Reading, Sensor, discover

BACKLOG = 512  # entries kept in memory while the disk takes none; beyond it every second reading is dropped


def system_clock() -> tuple[float, float]:
    """(unix seconds, monotonic seconds): the first places a reading, the second measures between readings."""
    return time.time(), time.monotonic()


def boot_id() -> str | None:
    """Identifies this boot of the machine: energy counters are only comparable within one."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


class Meter:
    """Meters a node into `ledger_path` from `start()` to `stop()`, in a thread of its own.

    `sensors` (default: all that are found) can be given; `gpus` limits the GPUs to these UUIDs. `sample()`
    takes one reading by hand. A ledger that exists is continued, which the account sees as a restart.
    """

    def __init__(
        self,
        ledger_path: str | os.PathLike[str],
        node: str,
        interval_s: float = 0.5,
        attempt: int = 1,
        *,
        sensors: Sequence[Sensor] | None = None,
        gpus: Collection[str] | None = None,
        clock: Callable[[], tuple[float, float]] = system_clock,
    ) -> None:
        if not interval_s > 0:
            raise ValueError(f"interval_s: expected a time above 0 s, got {interval_s}")
        self.node, self.interval_s, self.attempt = node, interval_s, attempt
        self.warnings: list[str] = []
        self._path, self._clock = Path(ledger_path), clock
        self._writer: LedgerWriter | None = None
        self._pending: list[dict[str, Any]] = []
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._closed = False
        if sensors is None:
            found, warnings = discover(node, gpus=gpus)
            self._sensors: list[Sensor] = found
            self.warnings += warnings
        else:
            self._sensors = list(sensors)
        self._uuids = [sensor.describe()["uuid"] for sensor in self._sensors]
        self._thread = threading.Thread(target=self._run, name=f"meter-{node}", daemon=True)

    @property
    def sensors(self) -> list[dict[str, str]]:
        """What each sensor is, as in `run.json`."""
        return [sensor.describe() for sensor in self._sensors]

    def describe(self) -> dict[str, Any]:
        """{node, sensors, warnings}: this meter's entry in `run.json`."""
        return {"node": self.node, "sensors": self.sensors, "warnings": list(self.warnings)}

    def start(self) -> Meter:
        """Write the header and the first reading, then go on in the background."""
        self.sample()
        try:
            self._thread.start()
        except RuntimeError as error:
            self._warn(f"meter of {self.node}: no background readings ({error})")
        return self

    def stop(self) -> None:
        """Take a last reading, note the orderly end, close the ledger. Safe to call twice."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10 + self.interval_s)
        self.sample(last=True)

    def mark(self, attempt: int) -> None:
        """From here on the readings belong to `attempt`."""
        self.attempt = attempt
        self.sample()

    def __enter__(self) -> Meter:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def sample(self, *, last: bool = False) -> None:
        """Read every sensor once and append the reading; `last` ends the ledger in good order."""
        with self._lock:
            if self._closed:
                return
            try:
                self._sample(last)
            except Exception as error:  # the trainer must never die of its meter
                self._warn(f"meter of {self.node}: a reading failed ({error!r})")

    def _sample(self, last: bool) -> None:
        time_unix_s, monotonic_s = self._clock()
        stamp = {"time_unix_s": time_unix_s, "monotonic_s": monotonic_s, "attempt": self.attempt}
        values = {uuid: self._read(sensor) for uuid, sensor in zip(self._uuids, self._sensors, strict=True)}
        self._pending.append({"kind": "reading", **stamp, "values": values})
        if last:
            self._pending.append({"kind": "end", **stamp, "warnings": list(self.warnings)})
            self._closed = True
        self._write()
        if last and self._writer is not None:
            self._writer.close()

    def _header(self) -> dict[str, Any]:
        return {
            "kind": "header",
            "schema": SCHEMA,
            "node": self.node,
            "boot_id": boot_id(),
            "attempt": self.attempt,
            "interval_s": self.interval_s,
            "sensors": self.sensors,
        }

    def _read(self, sensor: Sensor) -> dict[str, Any]:
        try:
            reading = sensor.read()
        except Exception as error:
            reading = Reading(error=f"{type(error).__name__}: {error}")
        return {"energy_j": reading.energy_j, "power_w": reading.power_w, "error": reading.error}

    def _write(self) -> None:
        """Append what is pending, in order. While the disk refuses, keep it, thinned, and retry."""
        try:
            if self._writer is None:
                self._writer = LedgerWriter(self._path)
                self._pending.insert(0, self._header())
            while self._pending:
                self._writer.append(self._pending[0])
                del self._pending[0]
        except OSError as error:
            self._warn(f"{self._path}: not writable ({error.strerror}): readings wait in memory, thinned")
            if len(self._pending) > BACKLOG:
                recent = len(self._pending) % 2  # keep the newest reading and whatever is no reading
                self._pending = [
                    entry
                    for index, entry in enumerate(self._pending)
                    if entry["kind"] != "reading" or index % 2 != recent
                ]

    def _warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)

    def _run(self) -> None:
        next_s = time.monotonic()
        while True:
            next_s = max(next_s + self.interval_s, time.monotonic())
            if self._stopping.wait(next_s - time.monotonic()):
                return
            self.sample()
