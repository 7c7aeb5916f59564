"""A budget holds: a real training, a real meter over GPUs of a known power (the NVML stand-in), and the run's watch.

Without Ray, whose start-up takes a time of its own. All that is claimed is computed from what the run wrote down, so
that a slow machine changes the numbers and not the outcome.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from build import NoCompiler, build

ROOT = Path(__file__).parents[3]

GPU_W, GPUS, INTERVAL_S = 400.0, 2, 0.5
DRIVER = """
import json, sys, threading, time
from functools import partial
from pathlib import Path
from tiny import plain_rank, train, write_spec
from energy.accounting.account import account_run
from energy.metering.meter import Meter
from energy.runs import RunFolder, write_json
from orchestrator.driver.run_watch import BudgetSpent, RunWatch
from orchestrator.ranks.worker import Rank
from orchestrator.spec.file import load_experiment

def slow_rank(least_s, rank, world, port, job):
    step = Rank.step
    def slow(self, number):
        time.sleep(least_s)
        return step(self, number)
    Rank.step = slow
    plain_rank(rank, world, port, job)

def main():
    folder, limit_wh, interval_s, least_s = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), float(sys.argv[4])
    overrides = [f"energy.budget.energy={limit_wh} Wh", "training.tokens=256M", f"energy.sample_interval={interval_s}"]
    spec, run = write_spec(folder), RunFolder(folder / "run")
    experiment = load_experiment(spec, overrides)
    attempts = [{"attempt": 1, "started_unix_s": time.time(), "status": "running"}]
    document = {"world_size": 1, "device_type": "cpu", "attempts": attempts, "meters": [], "status": "running",
                "model": {"flop_per_token": 1e6}}
    run.write_run(document)
    watch = RunWatch(experiment, run, document, lambda text: print(text, file=sys.stderr), False)
    meter = Meter(run.ledger_file("n1"), node="n1", gpus="all", host=False, interval_s=interval_s)
    options = {"overrides": overrides, "rank": partial(slow_rank, least_s)}
    training = threading.Thread(target=train, args=(spec, run.path), kwargs=options, daemon=True)
    training.start()
    while not run.steps() and training.is_alive():
        time.sleep(0.05)  # the start-up is not metered: how long it takes is no matter here
    meter.start()
    ended = threading.Event()
    def live():
        while not ended.wait(1.0):
            write_json(run.path / "live" / "n1.json", meter.live(), durable=False)
    threading.Thread(target=live, daemon=True).start()
    state = None
    while training.is_alive():
        training.join(timeout=0.5)
        watch.look()
        if watch.stopped_by is not None and state is None:
            state = watch.stopped_by
    ended.set()
    meter.stop()
    watch.look(last=True)
    account = account_run(run)
    assert state is not None, "the budget never stopped it"
    print(json.dumps({
        "energy_j": account.energy_j, "warnings": account.warnings, "held_back_j": state.held_back * 3.6e6,
        "asked_j": state.spent * 3.6e6, "steps": run.steps(), "phases": run.phases(),
        "live": json.loads((run.path / "live.json").read_text()),
        "saved": [path.name for path in (run.path / "checkpoints").iterdir()],
    }))

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize(
    ("limit_j", "step_s"), [(5_000.0, 0.0), (8_000.0, 1.0)], ids=["small steps", "steps of a tenth of the budget"]
)
def test_it_never_overshoots_by_more_than_a_step_and_a_reading(tmp_path: Path, limit_j: float, step_s: float) -> None:
    try:
        library = build(tmp_path / "nvml")
    except NoCompiler as error:
        pytest.skip(str(error))
    gpus, driver = tmp_path / "gpus.txt", tmp_path / "driver.py"
    gpus.write_text("".join(f"gpu uuid=GPU-{n}{n}{n}{n} power={GPU_W:g}\n" for n in range(GPUS)))
    driver.write_text(DRIVER)
    simulated = {"LD_LIBRARY_PATH": str(library), "NVML_SIM": str(gpus), "NVML_SIM_EPOCH": str(int(time.time()))}
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "shared")))
    command = [sys.executable, str(driver), str(tmp_path), f"{limit_j / 3600:.9g}", str(INTERVAL_S), str(step_s)]
    done = subprocess.run(
        command, env={**os.environ, **simulated, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    power_w = GPUS * GPU_W
    longest_step_s = max(step["seconds"] for step in told["steps"])
    assert told["energy_j"] <= limit_j + power_w * (longest_step_s + INTERVAL_S), told["warnings"]
    # Nor does it give up early: when it was asked to stop, no more was left than what it held back for its end, but for
    # the reading and the look that may lie between.
    assert limit_j - told["held_back_j"] <= told["asked_j"]
    spans = [span["end_unix_s"] - span["start_unix_s"] for span in told["phases"] if span["phase"] != "startup"]
    assert told["energy_j"] >= told["asked_j"] - power_w * INTERVAL_S
    assert told["held_back_j"] <= power_w * (4.0 + 0.5 + 2 * longest_step_s + 3 * max(spans))
    # It ended at a step boundary, with a checkpoint of the last step, and the live state says as much as the ledger.
    last = told["steps"][-1]["step"]
    assert f"step-{last:08d}" in told["saved"] and told["phases"][-1]["phase"] == "checkpoint"
    live = told["live"]
    assert (live["phase"], live["step"], live["nodes"][0]["power_w"]) == (
        "ended",
        last,
        pytest.approx(power_w, rel=0.01),
    )
    assert live["energy_it_kwh"] * 3.6e6 == pytest.approx(told["energy_j"], abs=power_w * (2.0 + INTERVAL_S + 4.0))
    assert "is reached: checkpoint and report" in done.stderr
