"""The NVML stand-in through the real pynvml, against the truth it claims to show."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from build import NoCompiler, build
from truth import Gpu, parse

EPOCH_S = 1_700_000_000
TIMES = [0.0, 0.03, 0.1, 0.3, 0.35, 1.0, 1.77, 4.4, 9.99, 17.2, 33.3, 123.456, 5000.05]
TRACES = {
    "constant": "trace=constant power=321",
    "square": "trace=square low=80 high=390 period=0.35 duty=0.4 phase=0.1",
    "bursts": "trace=bursts seed=7 on=0.2 off=0.4 bursts=50",
    "ramp": "trace=ramp low=50 high=350 period=7",
    "steps": "trace=steps step=0.7 every=5 dip=2",
    "linear": "trace=file path={csv}",
    "hold": "trace=file path={csv} shape=hold",
}
CSV = "seconds,watts\n0,100\n1.5,300\n2,50\n4,200\n"

# Turns the clock to each time and writes down what NVML says; a call that fails gives its error's text.
PROBE = """
import json, sys
import pynvml
clock, times, expression = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
def turn(t):
    with open(clock, "w") as file:
        file.write(repr(t))
def field(value):
    return {"status": value.nvmlReturn, "us": value.timestamp, "type": value.valueType,
            "mj": value.value.ullVal, "mw": value.value.uiVal}
def attempt(call, *arguments):
    try:
        return call(*arguments)
    except pynvml.NVMLError as error:
        return str(error)
turn(times[0])
pynvml.nvmlInit()
handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
handle = handles[0]
rows = []
for t in times:
    turn(t)
    rows.append(eval(expression))
print(json.dumps(rows))
"""
SENSORS = "[attempt(f, handle) for f in (pynvml.nvmlDeviceGetTotalEnergyConsumption, pynvml.nvmlDeviceGetPowerUsage)]"
FIELDS = "attempt(lambda: [field(value) for value in pynvml.nvmlDeviceGetFieldValues(handle, [83, 186, 185, 1])])"

Ask = Callable[..., list[Any]]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return build(tmp_path_factory.mktemp("nvml"))
    except NoCompiler as error:
        pytest.skip(str(error))


@pytest.fixture
def ask(library: Path, tmp_path: Path) -> Ask:
    """The values of an expression at simulated times, in a process that has these GPUs."""

    def asked(config: str, times: list[float], expression: str = SENSORS) -> list[Any]:
        gpus, clock = tmp_path / "gpus.txt", tmp_path / "clock.txt"
        gpus.write_text(config)
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": str(library),
            "NVML_SIM": str(gpus),
            "NVML_SIM_CLOCK": str(clock),
            "NVML_SIM_EPOCH": str(EPOCH_S),
        }
        command = [sys.executable, "-c", PROBE, str(clock), json.dumps(times), expression]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        rows: list[Any] = json.loads(done.stdout)
        return rows

    return asked


def updated(t: float, period_s: float = 0.1, offset_s: float = 0.0) -> float:
    return offset_s + math.floor((t - offset_s) / period_s + 1e-9) * period_s


def mean_w(gpu: Gpu, until_s: float, window_s: float) -> float:
    """What a register shows that was updated at `until_s`; before time 0 there is nothing."""
    start_s = max(until_s - window_s, 0.0)
    return gpu.energy_j(start_s, until_s) / (until_s - start_s) if until_s > start_s else gpu.power_w(until_s)


@pytest.mark.parametrize("name", TRACES)
def test_the_sensors_show_the_truth_as_old_as_their_last_update(name: str, ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text(CSV)
    config = "gpu uuid=GPU-1 " + TRACES[name].format(csv=tmp_path / "trace.csv")
    gpu = parse(config)[0]
    for t, (counter_mj, power_mw) in zip(TIMES, ask(config, TIMES), strict=True):
        assert counter_mj == pytest.approx(1e9 + 1e3 * gpu.energy_j(0, updated(t)), abs=1.01)
        assert power_mw == pytest.approx(1e3 * mean_w(gpu, updated(t), 0.025), abs=1.01)


@pytest.mark.parametrize("name", TRACES)
def test_the_truth_is_the_integral_of_its_power(name: str, tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text(CSV)
    gpu = parse("uuid=GPU-1 " + TRACES[name].format(csv=tmp_path / "trace.csv"))[0]
    start_s, end_s, count = 0.123, 25.0, 200_000
    step_s = (end_s - start_s) / count
    summed = sum(gpu.power_w(start_s + (i + 0.5) * step_s) for i in range(count)) * step_s
    assert gpu.energy_j(start_s, end_s) == pytest.approx(summed, rel=1e-4)
    assert gpu.energy_j(0, 10) + gpu.energy_j(10, 30) == pytest.approx(gpu.energy_j(0, 30), rel=1e-12)


def test_period_offset_quantum_and_gain(ask: Ask) -> None:
    config = (
        "gpu uuid=GPU-1 trace=ramp period=100 low=100 high=300 gain=1.05 counter_period=0.25 counter_offset=0.07"
        " counter_start=50 counter_step=0.5 update=0.4 offset=0.11 window=0.2 power_step=1"
    )
    gpu = parse(config)[0]
    for t, (counter_mj, power_mw) in zip([3.0, 3.31, 3.33, 77.7], ask(config, [3.0, 3.31, 3.33, 77.7]), strict=True):
        true_j = 50 + 1.05 * gpu.energy_j(0, updated(t, 0.25, 0.07))
        assert counter_mj % 500 == 0 and true_j * 1e3 - 500 <= counter_mj <= true_j * 1e3
        assert power_mw % 1000 == 0
        assert power_mw == pytest.approx(1e3 * 1.05 * mean_w(gpu, updated(t, 0.4, 0.11), 0.2), abs=500)


def test_a_counter_without_a_period_is_always_fresh(ask: Ask) -> None:
    rows = ask("uuid=GPU-1 power=200 counter_period=0 update=0 window=0", [0.011, 0.012])
    assert [row[0] for row in rows] == [1_000_002_200, 1_000_002_400]
    assert [row[1] for row in rows] == [200_000, 200_000]


def test_field_values_carry_the_time_of_the_update(ask: Ask) -> None:
    config = "gpu uuid=GPU-1 trace=square period=0.35 counter_offset=0.03 offset=0.06"
    gpu = parse(config)[0]
    for t, row in zip([5.0, 5.05, 7.777], ask(config, [5.0, 5.05, 7.777], FIELDS), strict=True):
        energy, instant, average, unknown = row
        counted_s, seen_s = updated(t, 0.1, 0.03), updated(t, 0.1, 0.06)
        assert energy["us"] == round((EPOCH_S + counted_s) * 1e6)
        assert instant["us"] == average["us"] == round((EPOCH_S + seen_s) * 1e6)
        assert energy["mj"] == pytest.approx(1e9 + 1e3 * gpu.energy_j(0, counted_s), abs=1.01)
        assert instant["mw"] == pytest.approx(1e3 * mean_w(gpu, seen_s, 0.025), abs=1.01)
        assert average["mw"] == pytest.approx(1e3 * mean_w(gpu, seen_s, 1.0), abs=1.01)
        assert (energy["type"], instant["type"], average["type"]) == (3, 1, 1)
        assert [value["status"] for value in row] == [0, 0, 0, 3] and unknown["mj"] == 0


def test_what_is_unsupported_says_so(ask: Ask) -> None:
    config = "gpu uuid=GPU-1 counter=0 instant=0 nopower=5:6"
    rows = ask(config, [4.0, 5.0, 6.0], f"[{SENSORS}, {FIELDS}]")
    assert [row[0] for row in rows] == [
        ["Not Supported", 200_000],
        ["Not Supported", "Not Supported"],
        ["Not Supported", 200_000],
    ]
    assert [[value["status"] for value in row[1]] for row in rows] == [[3, 3, 0, 3], [3, 3, 3, 3], [3, 3, 0, 3]]


def test_a_reload_of_the_driver_restarts_the_counter(ask: Ask) -> None:
    rows = ask("gpu uuid=GPU-1 power=200 reset=10.05", [10.0, 10.07, 10.1, 20.0], f"[{SENSORS}[0], {FIELDS}[0]['us']]")
    assert [row[0] for row in rows] == [1_002_000_000, 0, 10_000, 1_990_000]
    assert rows[1][1] == round((EPOCH_S + 10.05) * 1e6)


def test_after_a_reload_stale_handles_need_a_new_start(ask: Ask) -> None:
    again = f"[{SENSORS}, t == 12.0 and (pynvml.nvmlShutdown(), pynvml.nvmlInit())]"
    rows = ask("gpu uuid=GPU-1 reset=10 stale=1", [9.0, 12.0, 13.0], again)
    assert [row[0][1] for row in rows] == [200_000, "Uninitialized", 200_000]


def test_a_lost_gpu_and_a_flaky_one_among_others(ask: Ask) -> None:
    config = "gpu uuid=GPU-1 lost=5:7\ngpu uuid=GPU-2 flaky=3\n# a comment\n\ngpu uuid=GPU-3\n"
    times = [4.0, 5.0, 6.9, 7.0]
    rows = ask(config, times, "[attempt(pynvml.nvmlDeviceGetPowerUsage, h) for h in handles]")
    assert [row[0] for row in rows] == [200_000, "GPU is lost", "GPU is lost", 200_000]
    assert [row[1] for row in rows] == [200_000, 200_000, "Timeout", 200_000]
    assert {row[2] for row in rows} == {200_000}


def test_a_call_that_hangs_returns_when_time_has_gone_on(ask: Ask) -> None:
    late = "(__import__('threading').Timer(0.2, turn, [9.0]).start(), attempt(pynvml.nvmlDeviceGetPowerUsage, handle))"
    rows = ask("gpu uuid=GPU-1 trace=ramp period=10 hang=5:8 window=0", [5.5], f"{late}[1]")
    assert rows == [370_000]


def test_a_call_takes_as_long_as_it_is_told(ask: Ask) -> None:
    clock = "__import__('time').monotonic()"
    [row] = ask("gpu uuid=GPU-1 latency=0.05", [1.0], f"[{clock}, {SENSORS}, {clock}]")
    assert row[2] - row[0] >= 0.1 and row[1] == [1_000_200_000, 200_000]
    rows = ask("gpu uuid=GPU-1 latency=0.003", [1.0], "pynvml.nvmlDeviceGetFieldValues(handle, [83])[0].latencyUsec")
    assert rows == [3000]


def test_devices_are_found_by_index_uuid_and_bus(ask: Ask) -> None:
    expression = """[
        [pynvml.nvmlDeviceGetUUID(h), pynvml.nvmlDeviceGetName(h), pynvml.nvmlDeviceGetIndex(h)] for h in (
            handles[1],
            pynvml.nvmlDeviceGetHandleByUUID("GPU-2"),
            pynvml.nvmlDeviceGetHandleByPciBusId(pynvml.nvmlDeviceGetPciInfo(handles[1]).busId),
        )
    ] + [attempt(pynvml.nvmlDeviceGetHandleByUUID, "GPU-9"), pynvml.nvmlDeviceGetEnforcedPowerLimit(handle)]"""
    [row] = ask("gpu uuid=GPU-1 limit=700\ngpu uuid=GPU-2 name=H100", [0.0], expression)
    assert row == [["GPU-2", "H100", 1]] * 3 + ["Not Found", 700_000]


def test_mig_instances_have_a_parent_and_no_sensor(ask: Ask) -> None:
    expression = """[
        pynvml.nvmlDeviceGetMigMode(handle), pynvml.nvmlDeviceGetMigMode(handles[1]),
        pynvml.nvmlDeviceGetMaxMigDeviceCount(handle), attempt(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, 2),
    ] + [
        [pynvml.nvmlDeviceGetUUID(m), pynvml.nvmlDeviceIsMigDeviceHandle(m).value,
         pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(m)),
         pynvml.nvmlDeviceGetAttributes(m).multiprocessorCount, pynvml.nvmlDeviceGetAttributes(m).gpuInstanceSliceCount,
         pynvml.nvmlDeviceGetAttributes(m).memorySizeMB, pynvml.nvmlDeviceGetGpuInstanceId(m),
         attempt(pynvml.nvmlDeviceGetPowerUsage, m)]
        for m in (pynvml.nvmlDeviceGetHandleByUUID("MIG-a"), pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, 1))
    ]"""
    [row] = ask("gpu uuid=GPU-1 mig=MIG-a:3:42:40192,MIG-b:2:28:20096\ngpu uuid=GPU-2", [0.0], expression)
    assert row[:4] == [[1, 1], [0, 0], 7, "Not Found"]
    assert row[4:] == [
        ["MIG-a", 1, "GPU-1", 42, 3, 40192, 1, "Not Supported"],
        ["MIG-b", 1, "GPU-1", 28, 2, 20096, 2, "Not Supported"],
    ]


def test_a_word_that_is_not_understood_is_an_error(ask: Ask) -> None:
    for word in ("colour=red", "power=much", "trace=triangle"):
        with pytest.raises(AssertionError, match="nvml_sim: .*(not understood|no trace)"):
            ask(f"gpu uuid=GPU-1 {word}", [0.0])
        with pytest.raises(ValueError, match="not understood|could not convert|no trace"):
            parse(f"gpu uuid=GPU-1 {word}")


def test_processes_share_one_truth_by_the_epoch(library: Path, tmp_path: Path) -> None:
    """Two processes, one after the other, in real time: the counter of the second goes on where the first was."""
    (tmp_path / "gpus.txt").write_text("gpu uuid=GPU-1 power=200 counter_period=0")
    epoch_s = time.time() - 1000
    code = "import pynvml as n, time; n.nvmlInit(); h = n.nvmlDeviceGetHandleByIndex(0); t = time.time(); "
    code += "print(t, n.nvmlDeviceGetTotalEnergyConsumption(h), time.time())"
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(library),
        "NVML_SIM": str(tmp_path / "gpus.txt"),
        "NVML_SIM_EPOCH": repr(epoch_s),
    }
    environment.pop("NVML_SIM_CLOCK", None)
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        before_s, counter_mj, after_s = map(float, done.stdout.split())
        shown_s = epoch_s + (counter_mj / 1e3 - 1e6) / 200
        assert before_s - 1e-3 <= shown_s <= after_s + 1e-3
