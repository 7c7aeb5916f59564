"""What several energy tests share."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from unittest.mock import patch

from energy.metering import meter as meter_module
from energy.metering.meter import Meter
from energy.metering.windows import Window
from energy.runs import RunFolder
from energy.sensors import Reading

ROOT = Path(__file__).parents[2]


def reading(energy_j: float | None = None, power_w: float | None = None) -> Reading:
    """A reading of a counter that stands at so many J."""
    return Reading(energy_mj=None if energy_j is None else round(energy_j * 1000), power_w=power_w)


class FakeSensor:
    """Answers with the given readings in turn; an exception among them is raised."""

    def __init__(self, uuid: str, readings: list[Any], kind: str = "gpu", method: str = "counter") -> None:
        self._readings = iter(readings)
        self._about: dict[str, Any] = dict(
            uuid=uuid, name=f"fake {uuid}", node="n1", kind=kind, method=method, boundary="gpu"
        )

    def describe(self) -> dict[str, Any]:
        return dict(self._about)

    def describe_more(self, about: dict[str, Any]) -> None:
        self._about |= about

    def read(self) -> Reading:
        reading = next(self._readings)
        if isinstance(reading, Exception):
            raise reading
        return reading


def meter_fake(
    run: RunFolder,
    sensors: list[FakeSensor],
    times: list[float],
    attempt: int = 1,
    stop: bool = True,
    node: str = "n1",
    machine: str | None = None,
) -> Meter:
    """Take one reading at each time (unix = monotonic), then stop in order or leave as a crash would. Each node is a
    machine of its own, unless another name for it is given."""
    held = [times[0]]

    def now() -> tuple[float, float]:
        return held[0], held[0]

    meter = Meter(
        run.ledger_file(node),
        node=node,
        interval_s=1.0,
        attempt=attempt,
        sensors=sensors,
        discover_sensors=False,
        clock=now,
    )
    boot = machine or meter_module.boot_id()
    with patch.object(meter_module, "boot_id", lambda: boot and f"{boot} {'' if machine else node}"):
        for index, held[0] in enumerate(times):
            meter.sample(last=stop and index == len(times) - 1)
    if not stop and meter._writer is not None:
        for appender in (meter._writer._main, meter._writer._raw, meter._writer._seconds):
            os.close(appender._fd)  # as the kernel does for a process that is killed: nothing more is written
    return meter


def metered_window(sensors: list[FakeSensor], seconds: int) -> tuple[Window, Meter]:
    """A window from second 0 to `seconds` over sensors that are read every second, and once more after it."""
    now = [0.0]
    meter = Meter(node="n1", sensors=sensors, discover_sensors=False, interval_s=1.0, clock=lambda: (now[0], now[0]))
    meter.sample()
    window = meter.begin("w")
    for now[0] in map(float, range(1, seconds + 1)):
        meter.sample()
    meter.end(window)
    now[0] = seconds + 1.0
    meter.sample()
    return window, meter


def write_phases(run: RunFolder, spans: list[tuple[str, float, float]], attempt: int = 1) -> None:
    run.metrics_dir.mkdir(parents=True, exist_ok=True)
    with open(run.metrics_file(0), "a") as file:
        for phase, start, end in spans:
            event = {"event": "phase", "phase": phase, "attempt": attempt, "start_unix_s": start, "end_unix_s": end}
            file.write(json.dumps(event) + "\n")
