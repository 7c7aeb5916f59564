"""Each joule once, over runs that meter the same devices at the same time."""

from pathlib import Path

import pytest
from energy_fakes import FakeSensor, meter_fake, reading

from energy.account import account_run
from energy.merge import merge
from energy.runs import RunFolder


def metered(path: Path, first: int, last: int, uuid: str = "GPU-1", stop: bool = True, node: str = "n1") -> RunFolder:
    run = RunFolder(path)
    readings = [reading(energy_j=100.0 * t, power_w=100.0) for t in range(first, last + 1)]
    meter_fake(run, [FakeSensor(uuid, readings)], [float(t) for t in range(first, last + 1)], stop=stop, node=node)
    return run


def test_overlapping_runs_count_a_device_once(tmp_path: Path) -> None:
    runs = [metered(tmp_path / "a", 0, 60), metered(tmp_path / "b", 40, 100), metered(tmp_path / "c", 50, 55)]
    assert sum(account_run(run).energy_j for run in runs) == pytest.approx(12500)
    merged = merge(runs)
    assert merged.energy_j == pytest.approx(10000)
    assert merged.overlap_j == pytest.approx(2500)
    assert merged.devices[0].runs == ["a", "b", "c"]


def test_runs_apart_and_other_devices_add_up(tmp_path: Path) -> None:
    runs = [metered(tmp_path / "a", 0, 10), metered(tmp_path / "b", 20, 30), metered(tmp_path / "c", 0, 10, "GPU-2")]
    assert merge(runs).energy_j == pytest.approx(3000) and merge(runs).overlap_j == 0


def test_a_gap_that_another_run_covered_is_not_counted_again(tmp_path: Path) -> None:
    crashed = metered(tmp_path / "a", 0, 10, stop=False)
    metered(tmp_path / "a", 30, 40)
    assert merge([crashed]).energy_j == pytest.approx(4000)
    assert merge([crashed, metered(tmp_path / "b", 5, 35)]).energy_j == pytest.approx(4000)
