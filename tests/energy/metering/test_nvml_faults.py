"""Faults of real drivers, one on each simulated GPU, through the real pynvml and in real time: each is named, and the
others go on. The truth is the stand-in's."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from truth import parse

GPUS = """
gpu uuid=GPU-mute power=200 hang=0
gpu uuid=GPU-fine power=200
gpu uuid=GPU-flaky power=200 flaky=3
gpu uuid=GPU-slow power=200 latency=0.003
gpu uuid=GPU-stuck power=200 hang=1.5
gpu uuid=GPU-dumb power=200 nopower=0
gpu uuid=GPU-nocounter power=200 counter=0
gpu uuid=GPU-reloaded power=200 reset=2 stale=1
gpu uuid=GPU-stamps power=200 stamp_call=1
gpu uuid=GPU-averaged power=200 instant=0
gpu uuid=GPU-old power=200 average=0 instant=0
"""
CODE = """
import json, os, sys, time
epoch = time.time()
os.environ["NVML_SIM_EPOCH"] = repr(epoch)  # the faults happen so many seconds from here
import energy.metering.meter, energy.sensors.nvml
energy.metering.meter.HANG_S = 0.4
energy.sensors.nvml.REOPEN_AFTER_S = energy.sensors.nvml.FIRST_ANSWER_S = 0.2
from energy import Meter
from energy.accounting.account import account_run
from energy.runs import RunFolder
run = RunFolder(sys.argv[1])
meter = Meter(run.ledger_file("n1"), node="n1", host=False, interval_s=0.2).start()
with meter.window("w") as window:
    time.sleep(4)
keys = ("energy_j", "gap_s", "note", "method")
devices = {d.uuid: {key: getattr(d, key) for key in keys} for d in window.devices}
meter.stop()
account = account_run(run)
print(json.dumps({
    "epoch": epoch, "start": window.start_unix_s, "end": window.end_unix_s,
    "devices": devices, "warnings": meter.warnings,
    "account": {d.uuid: d.energy_j for d in account.devices}, "said": account.warnings,
}))
"""


@pytest.fixture(scope="module")
def measured(nvml_library: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("faults")
    (folder / "gpus.txt").write_text(GPUS)
    environment = {
        "LD_LIBRARY_PATH": str(nvml_library),
        "NVML_SIM": str(folder / "gpus.txt"),
        "PYTHONPATH": str(Path(__file__).parents[3]),
    }
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(folder / "run")], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    start, end = (answer[key] - answer["epoch"] for key in ("start", "end"))
    answer["truth"] = {gpu.uuid: gpu.energy_j(start, end) for gpu in parse(GPUS)}
    return answer


@pytest.mark.parametrize("name", ["fine", "flaky", "slow", "dumb", "stamps", "averaged", "old"])
def test_these_have_their_energy_all_the_same(measured: dict, name: str) -> None:
    device = measured["devices"][f"GPU-{name}"]
    assert device["energy_j"] == pytest.approx(measured["truth"][f"GPU-{name}"], rel=0.01)
    assert device["method"] == "counter"


def test_power_alone_is_integrated(measured: dict) -> None:
    device = measured["devices"]["GPU-nocounter"]
    assert device["method"] == "integrated"
    assert device["energy_j"] == pytest.approx(measured["truth"]["GPU-nocounter"], rel=0.02)


def test_a_call_that_never_returns_marks_its_device_alone(measured: dict) -> None:
    device = measured["devices"]["GPU-stuck"]
    assert "does not answer" in device["note"] and device["gap_s"] > 1
    assert device["energy_j"] < 0.8 * measured["truth"]["GPU-stuck"]
    assert any("does not answer" in warning for warning in measured["warnings"])


def test_one_that_never_answered_holds_nobody_up(measured: dict) -> None:
    device = measured["devices"]["GPU-mute"]
    assert device["energy_j"] is None and device["note"] == "missing: its driver does not answer"
    assert any("GPU-mute does not answer" in warning for warning in measured["warnings"])


def test_a_reloaded_driver_starts_a_new_epoch(measured: dict) -> None:
    device = measured["devices"]["GPU-reloaded"]
    assert 0.5 < device["energy_j"] / measured["truth"]["GPU-reloaded"] <= 1.02
    assert any("GPU-reloaded" in text and "new epoch" in text for text in measured["said"])


def test_window_and_ledger_agree(measured: dict) -> None:
    for uuid, device in measured["devices"].items():  # the ledger goes on until the meter was stopped, a little later
        if uuid == "GPU-mute":
            assert measured["account"][uuid] == 0
            continue
        assert 0.99 * device["energy_j"] <= measured["account"][uuid] <= 1.25 * device["energy_j"], uuid


def test_a_flaky_sensor_s_gaps_are_counted(measured: dict) -> None:
    assert measured["devices"]["GPU-flaky"]["gap_s"] > 0 and measured["devices"]["GPU-fine"]["gap_s"] == 0
