"""Processes of a run that are killed, through the benchmark's own code: two of them here, a hundred under stress."""

from pathlib import Path

import pytest
from build import NoCompiler, build

from benchmarks.resilience import kills
from benchmarks.resilience.kills import Planned
from benchmarks.resilience.places import OwnRay


@pytest.fixture(autouse=True)
def compiler(tmp_path: Path) -> None:
    try:
        build(tmp_path / "nvml_sim")
    except NoCompiler as error:
        pytest.skip(str(error))


def test_a_meter_and_a_driver_are_killed_and_no_joule_is_lost_or_counted_twice(tmp_path: Path) -> None:
    reference = kills.uninterrupted(tmp_path, 250)
    planned = [Planned("meter", "training", 0.5, 0.0), Planned("driver", "checkpoint", 1.0, 0.0)]
    run = kills.one_run(OwnRay(tmp_path / "own"), planned, reference, tmp_path / "runs" / "one")
    assert run["wrong"] == []
    assert [kill["kind"] for kill in run["kills"]] == ["meter", "driver"]
    assert run["attempts"] == ["lost", "completed"] and run["losses_equal"] and run["verified"]
    assert len(run["percent_of_truth"]) == 2


@pytest.mark.stress
def test_a_hundred_random_kills(tmp_path: Path) -> None:
    reference = kills.uninterrupted(tmp_path, 800)
    killed = kills.many(100, 1, reference, tmp_path)
    assert killed["kills"] == killed["resumed"] == 100
    assert {run["run"]: run["wrong"] for run in killed["runs"] if run["wrong"]} == {}
