"""Runs made for the browser: one of hours with a single second of high power, and one whose name is a script."""

from __future__ import annotations

import math
from pathlib import Path

from energy_fakes import FakeSensor, meter_fake, reading
from record_fakes import START, make_run

from energy.runs import RunFolder

EVIL = '<img src=x onerror="document.title=1">'  # a folder's name cannot hold a slash
HOURS_S, SPIKE_S, SPIKE_W = 3 * 3600, 7000, 690.0


def spiked(path: Path) -> RunFolder:
    """Three hours of a GPU at about 300 W, with one second of 690 W in them."""
    run = make_run(path, meter=False, ended_unix_s=START + HOURS_S, planned_tokens=None)
    watts = [round(300 + 20 * math.sin(t / 300)) for t in range(HOURS_S)]
    watts[SPIKE_S] = round(SPIKE_W)
    used, readings = 0.0, []
    for second in range(HOURS_S + 1):
        readings.append(reading(used, float(watts[min(second, HOURS_S - 1)])))
        used += watts[second] if second < HOURS_S else 0.0
    meter_fake(run, [FakeSensor("GPU-spike", readings)], [START + t for t in range(HOURS_S + 1)])
    attempt = {"attempt": 1, "started_unix_s": START, "ended_unix_s": START + HOURS_S, "status": "completed"}
    run.update_run(attempts=[attempt])
    return run
