"""Processes of a run that are killed, through the benchmark's own code: two of them here, a hundred under stress."""

from pathlib import Path

import pytest
from build import NoCompiler, build

from benchmarks.resilience import kills, recovery
from benchmarks.resilience.judge import inside_checkpoint
from benchmarks.resilience.kills import Planned
from benchmarks.resilience.places import OwnRay

TRIES = 3  # a checkpoint may become whole just before the driver is killed


@pytest.fixture(autouse=True)
def compiler(tmp_path: Path) -> None:
    try:
        build(tmp_path / "nvml_sim")
    except NoCompiler as error:
        pytest.skip(str(error))


def test_a_meter_and_a_driver_are_killed_and_no_joule_is_lost_or_counted_twice(tmp_path: Path) -> None:
    reference = kills.uninterrupted(tmp_path, 250)
    planned = [Planned("meter", "training", 0.5, 0.0), Planned("driver", "checkpoint", 1.0, 0.0)]
    for number in range(TRIES):
        run = kills.one_run(OwnRay(tmp_path / "own"), planned, reference, tmp_path / "runs" / str(number))
        assert run["wrong"] == []
        inside = [kill["kind"] for kill in run["kills"] if inside_checkpoint(kill)]
        if inside:
            break
    assert inside == ["driver"]
    assert [kill["kind"] for kill in run["kills"]] == ["meter", "driver"]
    assert run["attempts"] == ["lost", "completed"] and run["losses_equal"] and run["verified"]
    assert len(run["percent_of_truth"]) == 2


@pytest.mark.stress
def test_a_hundred_random_kills(tmp_path: Path) -> None:
    reference = kills.uninterrupted(tmp_path, 800)
    killed = kills.many(100, 1, reference, tmp_path)
    assert killed["kills"] == killed["resumed"] == 100
    assert killed["inside_a_checkpoint"] >= killed["inside_wanted"] >= 10
    assert {run["run"]: run["wrong"] for run in killed["runs"] if run["wrong"]} == {}


@pytest.mark.stress
def test_a_training_goes_on_from_its_checkpoint_after_a_worker_was_killed(tmp_path: Path) -> None:
    measured = recovery.measure(tmp_path, times=1)
    assert measured["wrong"] == []
    [recovered], [lost] = measured["recoveries"], measured["steps_lost"]
    assert recovered["resumed_from_step"] >= recovered["kill"]["whole_step"] >= recovery.INTERVAL_STEPS
    assert 0 <= lost["steps"] <= recovery.INTERVAL_STEPS
