"""A full disk and a kill -9, for real: what was saved stays, the cause is named, and the run goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import write_spec

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
