"""A budget that is reached while a worker is being lost, for real: the run ends by its budget, and both are told."""

import json
import os
import signal
from pathlib import Path

import pytest
from driver import Driver, reached
from driver import left_over as left_over
from tiny import write_spec

from energy.runs import STOP_FILE


@pytest.mark.stress
def test_a_worker_dies_between_the_request_and_the_end_of_its_step(tmp_path: Path, left_over: list[Driver]) -> None:
    spec, watts, run = (
        write_spec(tmp_path, workers=2, steps=1_000_000),
        tmp_path / "watts.txt",
        tmp_path / "runs" / "one",
    )
    watts.write_text("1 W")
    settings = [f"energy.node_power_file={watts}", "energy.sample_interval=0.5", "energy.budget.energy=2 Wh"]
    sets = [part for each in settings for part in ("--set", each)]
    driver = Driver(run, str(spec), "--runs", str(run.parent), "--name", run.name, *sets)
    left_over.append(driver)
    driver.wait_for(reached(1, 40))
    dies = driver.pid_of(1)
    os.kill(dies, signal.SIGSTOP)  # no step ends any more
    watts.write_text("6000 W")
    driver.wait_for(lambda _: (run / STOP_FILE).exists())
    os.kill(dies, signal.SIGKILL)
    said = (driver.end(), driver.said.read_text())
    assert said[0] == 3, said[1]

    told = driver.folder.read_run()
    assert (told["status"], told["error"], told["budget"]["startup"]) == ("budget", None, False)
    [attempt] = told["attempts"]
    assert attempt["status"] == "budget"
    assert attempt["error"].startswith("the process of rank 1 (") and f"process {dies}) was killed" in attempt["error"]
    assert f"{attempt['error']}; the run is to stop" in said[1]
    [go_on] = [line for line in said[1].splitlines() if "--resume" in line]
    assert "go on from step " in go_on and "--set 'energy.budget.energy=" in go_on
    footprint = json.loads((run / "footprint.json").read_text())
    assert footprint["run"]["status"] == "budget" and footprint["run"]["attempts"][0]["error"] == attempt["error"]
