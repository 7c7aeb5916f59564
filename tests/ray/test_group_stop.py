"""SIGTERM to everything that a run has started, as SLURM, systemd and `docker stop` behind a shell send it."""

import json
import os
import signal
from pathlib import Path

import psutil
from driver import Driver, reached
from driver import left_over as left_over
from tiny import write_spec

from benchmarks.resilience.places import title_of
from orchestrator.checkpoints.saved import newest_complete

# Ray Train's actors that only others' clusters need: each costs a second of both cores before the first step.
UNNEEDED = {"ray::_AutoscalingCoordinatorActor", "ray::PlacementGroupCleaner", "ray::DatasetManager"}


def test_sigterm_to_all_of_a_run_is_a_stop_and_not_the_loss_of_ray(tmp_path: Path, left_over: list[Driver]) -> None:
    spec = write_spec(tmp_path, workers=1, steps=20_000)
    run = tmp_path / "runs" / "one"
    options = ["--set", "training.checkpoint_every_steps=20000"]  # so that the only checkpoint is that of the stop
    driver = Driver(run, str(spec), "--runs", str(run.parent), "--name", run.name, *options)
    left_over.append(driver)
    driver.wait_for(reached(1, 20))
    own = psutil.Process(driver.process.pid)
    started = own.children(recursive=True)
    assert {"raylet", "gcs_server"} <= {process.name() for process in started}
    actors = {title_of(process).partition(".")[0] for process in started}
    assert {"ray::RayTrainWorker", "ray::MeterActor", "ray::TrainController"} <= actors and not actors & UNNEEDED
    os.killpg(own.pid, signal.SIGTERM)
    for process in started:  # Ray's workers have groups of their own; a cgroup has them all
        if os.getpgid(process.pid) != own.pid:
            process.terminate()
    assert driver.end() == 130, driver.said.read_text()

    described = driver.folder.read_run()
    assert (described["status"], [attempt["status"] for attempt in described["attempts"]]) == ("stopped", ["stopped"])
    steps = [event["step"] for event in driver.folder.steps()]
    assert newest_complete(run / "checkpoints") == run / "checkpoints" / f"step-{max(steps):08d}"
    footprint = json.loads((run / "footprint.json").read_text())
    assert footprint["data"]["tokens_trained"] == 256 * max(steps)
    assert footprint["energy"]["energy_it_kwh"] > 0
    assert "gap" not in {phase["phase"] for phase in footprint["energy"]["phases"]}  # the meter went on to the end
    assert (run / "report.html").exists()
    assert [title for process in started if (title := title_of(process))] == []  # nothing of Ray is left
