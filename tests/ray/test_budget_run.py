"""`hoofprint run` with a budget, as a user types it: it stops with exit code 3, and another process watches it live."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import write_spec

HOOFPRINT = [sys.executable, "-c", "from orchestrator.cli import main; main()"]
POWER_W, LIMIT_J, INTERVAL_S = 3000.0, 40_000.0, 0.5


@pytest.fixture
def environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}


def test_a_budget_stops_the_run_and_a_larger_one_goes_on(tmp_path: Path, environment: dict[str, str]) -> None:
    spec, watts = write_spec(tmp_path, workers=1, steps=1_000_000), tmp_path / "watts.txt"
    # What a start-up takes depends on the machine: until the first step the node is told to draw next to nothing.
    watts.write_text("1 W")
    run, top = tmp_path / "runs" / "one", [*HOOFPRINT, "top", "one", "--runs", str(tmp_path / "runs")]
    settings = [f"energy.budget.energy={LIMIT_J / 3600:.9g} Wh", f"energy.node_power_file={watts}"]
    settings += [f"energy.sample_interval={INTERVAL_S}", "training.checkpoint_every_steps=500"]
    sets = [part for each in settings for part in ("--set", each)]
    command = [*HOOFPRINT, "run", str(spec), "--runs", str(tmp_path / "runs"), *sets]
    process = subprocess.Popen([*command, "--name", "one"], stderr=subprocess.PIPE, text=True, env=environment)
    metrics = run / "metrics" / "rank-0.jsonl"
    deadline = time.monotonic() + 300
    while not (metrics.exists() and '"step": 3' in metrics.read_text()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    seen = json.loads(subprocess.run([*top, "--json"], capture_output=True, text=True, env=environment).stdout)
    assert (seen["status"], seen["doubt"], seen["live"]["schema"]) == ("running", None, 1)
    assert seen["live"]["pid"] == process.pid
    watts.write_text(f"{POWER_W:g} W")
    _, said = process.communicate(timeout=300)
    assert process.returncode == 3, said

    told = json.loads((run / "run.json").read_text())
    assert (told["status"], told["attempts"][-1]["status"]) == ("budget", "budget")
    footprint = json.loads((run / "footprint.json").read_text())
    assert footprint["run"]["status"] == "budget" and footprint["run"]["partial"]
    steps = [json.loads(line) for line in metrics.read_text().splitlines() if '"event": "step"' in line]
    longest_s = max(step["seconds"] for step in steps)
    used_j = footprint["energy"]["energy_it_kwh"] * 3.6e6
    assert LIMIT_J / 2 < used_j <= LIMIT_J + POWER_W * (longest_s + INTERVAL_S)
    last = steps[-1]["step"]
    assert (run / "checkpoints" / f"step-{last:08d}" / ".metadata").exists()
    assert "partial" in (run / "report.html").read_text()
    assert f"the budget of 11.1 Wh (IT energy) stopped the run after step {last:,}" in said
    proposed = re.search(r"hoofprint (run .* --resume .*)", said)
    assert proposed is not None

    once = subprocess.run([*top, "--once"], capture_output=True, text=True, env=environment)
    assert once.returncode == 0 and once.stdout.startswith("run=one status=budget attempt=1 phase=ended")

    watts.write_text("1 W")
    spent = [*command, "--resume", str(run), "--set", "energy.budget.energy=0.5 Wh"]
    refused = subprocess.run(spent, capture_output=True, text=True, timeout=120, env=environment)
    assert refused.returncode == 2
    assert re.search(
        r"have taken \d+\.\d+ Wh \(IT energy\), and the budget is 0.500 Wh: nothing is left", refused.stderr
    )
    assert json.loads((run / "run.json").read_text()) == told  # a refused resume leaves no trace

    # What is proposed can be typed, and counts what was spent before: it stops again at the larger limit.
    go_on = [*HOOFPRINT, *shlex.split(proposed[1])]
    assert go_on[-2] == "--set" and go_on[-1].startswith("energy.budget.energy=")
    go_on[-1] = f"energy.budget.energy={2 * LIMIT_J / 3600:.9g} Wh"
    go_on += [part for each in settings[1:] for part in ("--set", each)]
    process = subprocess.Popen(go_on, stderr=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 300
    while f'"step": {last + 1}' not in metrics.read_text():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    watts.write_text(f"{POWER_W:g} W")
    _, said = process.communicate(timeout=300)
    assert process.returncode == 3, said
    footprint = json.loads((run / "footprint.json").read_text())
    used_j = footprint["energy"]["energy_it_kwh"] * 3.6e6
    steps = [json.loads(line) for line in metrics.read_text().splitlines() if '"event": "step"' in line]
    longest_s = max(step["seconds"] for step in steps)
    assert 1.5 * LIMIT_J < used_j <= 2 * LIMIT_J + POWER_W * (longest_s + INTERVAL_S)
    assert [attempt["status"] for attempt in footprint["run"]["attempts"]] == ["budget", "budget"]
