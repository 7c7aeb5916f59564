"""Workers and drivers that die or hang in the middle of a run, for real: it goes on, and every loss is the same."""

import json
import os
import signal
from pathlib import Path

import pytest
from driver import Driver, reached
from driver import left_over as left_over
from tiny import losses, train, write_spec

from orchestrator.checkpoints.saved import complete, damage
from orchestrator.ranks.watchdog import HANGS


def test_a_killed_worker_and_one_that_hangs(tmp_path: Path, left_over: list[Driver]) -> None:
    spec = write_spec(tmp_path, workers=2, steps=160)
    run = tmp_path / "runs" / "one"
    options = ["--set", "cluster.step_deadline=10 s"]
    driver = Driver(run, str(spec), "--runs", str(run.parent), "--name", run.name, *options)
    left_over.append(driver)
    driver.wait_for(reached(1, 40))
    os.kill(driver.pid_of(1), signal.SIGKILL)
    driver.wait_for(reached(2, 75))
    stopped = driver.pid_of(1)
    os.kill(stopped, signal.SIGSTOP)
    assert driver.end() == 0, driver.said.read_text()

    assert losses(driver.folder) == losses(train(spec, tmp_path / "uninterrupted", world=2))
    described = driver.folder.read_run()
    assert [attempt["status"] for attempt in described["attempts"]] == ["failed", "failed", "completed"]
    killed, hung = (attempt["error"] for attempt in described["attempts"][:2])
    assert killed.startswith("the process of rank 1 (") and "was killed" in killed
    assert hung.startswith("a hang: ") and "was not done after 10 s; rank 0 in " in hung
    assert f"process {stopped}) without a word" in hung
    assert "called by" in hung and ("(orchestrator/" in hung or "(model/" in hung)  # where in our code rank 0 stood
    assert (run / HANGS / "attempt-2-rank-0.txt").stat().st_size > 0
    with pytest.raises(ProcessLookupError):
        os.kill(stopped, 0)  # it holds no memory and no device
    # No more was done again than what followed the last whole checkpoint, while the next may have been half written,
    # and it is accounted for.
    steps = [(event["attempt"], event["step"]) for event in driver.folder.steps()]
    for attempt in (1, 2):
        last = max(step for number, step in steps if number == attempt)
        first = min(step for number, step in steps if number == attempt + 1)
        assert last - first < 16 and first % 8 == 1
    footprint = json.loads((run / "footprint.json").read_text())
    assert [part["attempt"] for part in footprint["energy"]["attempts"]] == [1, 2, 3]
    assert all(part["energy_kwh"] > 0 for part in footprint["energy"]["attempts"])
    phases = {phase["phase"]: phase["energy_kwh"] for phase in footprint["energy"]["phases"]}
    assert phases["lost"] > 0
    assert "gap" not in phases  # the meters went on
    again = len(steps) - 160
    assert footprint["data"]["tokens_processed"] - footprint["data"]["tokens_trained"] == 256 * again


@pytest.mark.stress
def test_a_driver_that_is_asked_to_end_and_then_killed_twice(tmp_path: Path, left_over: list[Driver]) -> None:
    spec = write_spec(tmp_path, workers=2, steps=90)
    run = tmp_path / "runs" / "one"
    options = ["--set", "training.checkpoint_every_steps=2"]  # so that a kill is always near to one
    driver = Driver(run, str(spec), "--runs", str(run.parent), "--name", run.name, *options)
    left_over.append(driver)
    driver.wait_for(reached(1, 11))
    driver.process.send_signal(signal.SIGTERM)
    assert driver.end() == 130, driver.said.read_text()
    assert driver.folder.read_run()["attempts"][0]["status"] == "stopped"
    assert complete(run / "checkpoints")[0].name == f"step-{max(losses(driver.folder)):08d}"
    for attempt, step in ((2, 30), (3, 60)):
        driver = Driver(run, str(spec), "--resume", str(run), *options)
        left_over.append(driver)
        driver.wait_for(reached(attempt, step))
        driver.process.kill()
        driver.end()
    driver = Driver(run, str(spec), "--resume", str(run), *options, "--set", "checkpoint.keep_last=3")
    left_over.append(driver)
    assert driver.end() == 0, driver.said.read_text()
    assert losses(driver.folder) == losses(train(spec, tmp_path / "uninterrupted", world=2))
    assert [attempt["status"] for attempt in driver.folder.read_run()["attempts"]] == [
        "stopped",
        "lost",
        "lost",
        "completed",
    ]
    kept = complete(run / "checkpoints")
    assert [path.name for path in kept] == ["step-00000090", "step-00000088", "step-00000086"]
    assert [damage(path) for path in kept] == [None] * 3
    assert not list((run / "checkpoints").glob(".*"))
