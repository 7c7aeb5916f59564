"""A full disk, a kill -9, a machine taken away, for real: what was saved stays, the cause is named, the run goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from driver import Driver, reached
from driver import left_over as left_over
from tiny import write_spec

from energy.runs import RESIZE_FILE
from orchestrator.checkpoints.saved import newest_complete

HOOFPRINT = [sys.executable, "-c", "from orchestrator.cli import main; main()"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for two checkpoints of the tiny model."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root: sudo make test")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_then_more_room_then_a_kill(tmp_path: Path, small_disk: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    spec = write_spec(tmp_path, workers=1, steps=20_000)
    run = small_disk / "run"
    start = [*HOOFPRINT, "run", str(spec), "--runs", str(small_disk), "--name", "run", "--json"]
    full = subprocess.run(start, capture_output=True, text=True, timeout=600, env=environment)
    assert full.returncode == 1, full.stderr
    assert json.loads(full.stdout)["run"]["status"] == "failed"
    assert "the run failed: No space left on device: the checkpoint of step" in full.stderr
    assert f"--resume {run}" in full.stderr and "Traceback" not in full.stderr
    assert json.loads((run / "run.json").read_text())["status"] == "failed"
    assert (run / "report.html").exists()
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert kept and all((run / "checkpoints" / name / ".metadata").exists() for name in kept)

    subprocess.run(["mount", "-o", "remount,size=500m", str(small_disk)], check=True)
    command = [*HOOFPRINT, "run", str(spec), "--resume", str(run)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment)
    metrics = run / "metrics" / "rank-0.jsonl"
    seen = metrics.stat().st_size
    deadline = time.monotonic() + 600
    while metrics.stat().st_size < seen + 2000:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed = json.loads((run / "run.json").read_text())
    assert killed["status"] == "running"  # nobody was left to say otherwise

    report = subprocess.run([*HOOFPRINT, "report", str(run), "--json"], capture_output=True, text=True, env=environment)
    assert report.returncode == 0, report.stderr
    footprint = json.loads(report.stdout)
    assert [attempt["status"] for attempt in footprint["run"]["attempts"]] == ["failed", "lost"]
    first = int(kept[-1].removeprefix("step-")) + 1
    second = [json.loads(line) for line in metrics.read_text().splitlines() if '"attempt": 2' in line]
    assert next(event["step"] for event in second if event["event"] == "step") == first


def test_ranks_that_are_told_to_end_make_a_checkpoint_first(tmp_path: Path, left_over: list[Driver]) -> None:
    spec = write_spec(tmp_path, workers=2, steps=3000)
    run = tmp_path / "runs" / "one"
    options = ["--set", "training.checkpoint_every_steps=3000"]  # so that every checkpoint is one of a notice
    driver = Driver(run, str(spec), "--runs", str(run.parent), "--name", run.name, *options)
    left_over.append(driver)
    driver.wait_for(reached(1, 20))
    told = driver.pid_of(1)
    os.kill(told, signal.SIGTERM)  # one machine of several
    driver.wait_for(reached(2, 1))
    [first, second] = driver.folder.read_run()["attempts"]
    assert (first["status"], second["status"]) == ("stopped", "running")
    said = driver.said.read_text()
    assert f"process {told}) was asked to end (SIGTERM), as before its machine is taken away" in said
    steps = [(event["attempt"], event["step"]) for event in driver.folder.steps()]
    saved = max(step for attempt, step in steps if attempt == 1)
    assert (2, saved + 1) in steps  # none was lost, none done again
    assert not (run / RESIZE_FILE).exists()

    driver.wait_for(reached(2, saved + 20))
    for pid in (driver.pid_of(0), driver.pid_of(1), driver.process.pid):  # the machine with the driver
        os.kill(pid, signal.SIGTERM)
    assert driver.end() == 130, driver.said.read_text()
    assert f"attempt 2 goes on from step {saved}\n" in driver.said.read_text()
    done = driver.folder.read_run()
    assert [attempt["status"] for attempt in done["attempts"]] == ["stopped", "stopped"]
    steps = [event["step"] for event in driver.folder.steps()]
    assert steps == list(range(1, len(steps) + 1))  # over both attempts
    assert newest_complete(run / "checkpoints") == run / "checkpoints" / f"step-{len(steps):08d}"
    assert (run / "report.html").exists()
