"""Fixtures of the energy tests: the NVML stand-in, and a metering process under it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from build import NoCompiler, build

ROOT = Path(__file__).parents[2]

VIRTUAL_METER = """
import sys
from energy.metering.meter import Meter
from energy.sensors import nvml
ledger, clock_file, node, start, end, step, attempt, stop = sys.argv[1:]
now = [float(start)]
def tick():
    with open(clock_file, "w") as file:
        file.write(repr(now[0]))
tick()
sensors, warnings = nvml.find(node)
meter = Meter(
    ledger, node=node, interval_s=float(step), attempt=int(attempt), sensors=sensors, discover_sensors=False,
    clock=lambda: (now[0], now[0]),
)
count = round((float(end) - float(start)) / float(step))
for index in range(count + 1):
    now[0] = float(start) + index * float(step)
    tick()
    meter.sample(last=index == count and stop == "stop")
print(warnings + meter.warnings)
"""


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a libnvidia-ml.so.1 that is ours."""
    try:
        return build(tmp_path_factory.mktemp("nvml"))
    except NoCompiler as error:
        pytest.skip(str(error))


@pytest.fixture
def nvml_env(nvml_library: Path, tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """The environment of a process that sees the GPUs described by the text (see tests/nvml_sim/README.md)."""

    def environment(gpus: str) -> dict[str, str]:
        config = tmp_path / "gpus.txt"
        config.write_text(gpus)
        return {
            **os.environ,
            "LD_LIBRARY_PATH": str(nvml_library),
            "NVML_SIM": str(config),
            "PYTHONPATH": str(ROOT),
        }

    return environment


@pytest.fixture
def meter_gpus(nvml_env: Callable[[str], dict[str, str]], tmp_path: Path) -> Callable[..., str]:
    """Meter simulated GPUs over simulated seconds, in a process with the real pynvml."""

    def meter(
        ledger: Path, gpus: str, start: float, end: float, step: float, attempt: int = 1, stop: bool = True
    ) -> str:
        clock = tmp_path / "clock.txt"
        arguments = [ledger, clock, "n1", start, end, step, attempt, "stop" if stop else "crash"]
        done = subprocess.run(
            [sys.executable, "-c", VIRTUAL_METER, *map(str, arguments)],
            env=nvml_env(gpus) | {"NVML_SIM_CLOCK": str(clock)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return meter
