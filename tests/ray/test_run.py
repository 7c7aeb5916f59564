"""`hoofprint run` as a user types it: real Ray, real workers, a real Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import write_spec

from energy.runs import RunFolder

HOOFPRINT = [sys.executable, "-c", "from orchestrator.cli import main; main()", "run"]


@pytest.fixture
def environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}


def test_a_run_from_yaml_to_report(tmp_path: Path, environment: dict[str, str]) -> None:
    spec = write_spec(tmp_path, workers=2)
    command = [*HOOFPRINT, str(spec), "--runs", str(tmp_path / "runs"), "--name", "one", "--json", "--profile", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    footprint = json.loads(done.stdout)  # nothing but the record on stdout
    run = tmp_path / "runs" / "one"
    assert json.loads((run / "footprint.json").read_text()) == footprint
    assert footprint["run"]["status"] == "completed"
    assert [attempt["world_size"] for attempt in footprint["run"]["attempts"]] == [2]
    assert footprint["data"]["tokens_trained"] == 20 * 256
    assert footprint["energy"]["energy_it_kwh"] > 0
    assert footprint["energy"]["energy_facility_kwh"] is None  # no PUE was declared, and none is guessed
    assert footprint["carbon"]["carbon_tco2eq"] is None
    assert f" % {'modelled' if footprint['energy']['share_modelled'] else 'measured'}" in done.stderr
    assert (run / "report.html").stat().st_size > 10_000
    assert "raylet" not in done.stderr
    assert (run / "profile" / "profile.txt").read_text() in done.stderr  # the table, as it is


def test_ctrl_c_checkpoints_reports_and_says_how_to_go_on(tmp_path: Path, environment: dict[str, str]) -> None:
    spec = write_spec(tmp_path, workers=1, steps=20_000)
    run = tmp_path / "runs" / "stopped"
    command = [*HOOFPRINT, str(spec), "--runs", str(tmp_path / "runs"), "--name", "stopped"]
    command += ["--set", "training.checkpoint_every_steps=20000"]  # so that the one that is there was made for Ctrl-C
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    metrics = run / "metrics" / "rank-0.jsonl"
    deadline = time.monotonic() + 180
    while not (metrics.exists() and '"step": 3' in metrics.read_text()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    footprint = json.loads((run / "footprint.json").read_text())
    assert footprint["run"]["status"] == "stopped"
    assert 0 < footprint["data"]["tokens_trained"] < 20_000 * 256
    assert "partial" in (run / "report.html").read_text()
    last = max(step["step"] for step in RunFolder(run).steps())
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step-{last:08d}"]
    assert f"go on from step {last}: hoofprint run {spec} --resume {run}" in said


def test_ctrl_c_while_the_workers_start_leaves_a_record(tmp_path: Path, environment: dict[str, str]) -> None:
    spec = write_spec(tmp_path, workers=1, steps=20_000)
    run = tmp_path / "runs" / "early"
    command = [*HOOFPRINT, str(spec), "--runs", str(tmp_path / "runs"), "--name", "early"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    deadline = time.monotonic() + 120
    while not ((run / "run.json").exists() and json.loads((run / "run.json").read_text())["meters"]):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(3)  # into Ray Train's own start, whose thread must not outlive Ray
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert json.loads((run / "footprint.json").read_text())["run"]["status"] == "stopped"
