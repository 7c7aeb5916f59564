"""Each joule once, over runs that meter the same devices at the same time."""

import math
from pathlib import Path

import pytest
from energy_fakes import FakeSensor, meter_fake, reading

from energy.accounting.account import account_run
from energy.accounting.merge import merge
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
    assert merge(runs, until_unix_s={tmp_path / "a": 45.5}).overlap_j == pytest.approx(550 + 500)


def test_files_too_large_together_are_left_to_rows_a_minute_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [metered(tmp_path / "a", 0, 240), metered(tmp_path / "b", 120, 360)]
    files = [tmp_path / name / "energy" / "n1.seconds" for name in "ab"]
    for file in files:  # whoever reads it says so
        file.write_bytes(file.read_bytes() + b"damage")
    assert len(merge(runs).warnings) == 2
    sizes = [file.stat().st_size for file in files]
    monkeypatch.setattr(
        "energy.ledger.readings.FINEST_BYTES", sum(sizes) - 1
    )  # each alone could be read, and is for its account
    assert all(len(account_run(run).damaged) == 1 for run in runs)
    merged = merge(runs)
    (said,) = merged.warnings
    assert "rows a minute apart" in said and "too large together" in said
    assert merged.overlap_j == pytest.approx(12_000) and merged.energy_j == pytest.approx(36_000)
    monkeypatch.setattr("energy.ledger.readings.FINEST_BYTES", min(sizes) - 1)
    assert ["rows a minute apart" in " ".join(account_run(run).warnings) for run in runs] == [True, True]


def test_runs_apart_and_other_devices_add_up(tmp_path: Path) -> None:
    runs = [metered(tmp_path / "a", 0, 10), metered(tmp_path / "b", 20, 30), metered(tmp_path / "c", 0, 10, "GPU-2")]
    assert merge(runs).energy_j == pytest.approx(3000) and merge(runs).overlap_j == 0


def test_a_gap_that_another_run_covered_is_not_counted_again(tmp_path: Path) -> None:
    crashed = metered(tmp_path / "a", 0, 10, stop=False)
    metered(tmp_path / "a", 30, 40)
    assert merge([crashed]).energy_j == pytest.approx(4000)
    both = [crashed, metered(tmp_path / "b", 5, 35)]
    assert merge(both).energy_j == pytest.approx(4000)
    assert merge(both, until_unix_s={crashed.path: 10.0}).overlap_j == pytest.approx(500)


def test_of_a_gap_only_what_no_other_run_counted_is_added(tmp_path: Path) -> None:
    def used_j(at_s: float) -> float:
        return 70.0 * at_s + 630.0 * min(max(at_s - 20.0, 0.0), 10.0)

    def worked(name: str, first: int, last: int, stop: bool = True) -> RunFolder:
        run, times = RunFolder(tmp_path / name), [float(t) for t in range(first, last + 1)]
        meter_fake(run, [FakeSensor("GPU-1", [reading(energy_j=used_j(t)) for t in times])], times, stop=stop)
        return run

    for name, *spans in (("a", (0, 10), (60, 70)), ("c", (12, 15), (40, 45))):
        for first, last in spans:
            crashed = worked(name, first, last, stop=(first, last) == spans[-1])
        assert merge([crashed]).energy_j == pytest.approx(used_j(spans[-1][1]) - used_j(spans[0][0]))
    runs = [RunFolder(tmp_path / "a"), worked("b", 20, 30), RunFolder(tmp_path / "c")]
    for some in (runs[:2], runs, runs[::-1]):
        merged = merge(some)
        assert merged.energy_j == pytest.approx(used_j(70))
        assert merged.overlap_j == pytest.approx(math.fsum(account_run(run).energy_j for run in some) - used_j(70))


@pytest.mark.parametrize("failed", [True, False], ids=["lost", "stood still"])
@pytest.mark.parametrize("runs", [1, 2])
def test_what_one_meter_did_not_know_another_one_tells(tmp_path: Path, runs: int, failed: bool) -> None:
    """100 W of a device without a counter; a second meter went on while the first one knew nothing."""
    found = [RunFolder(tmp_path / str(number)) for number in range(runs)]
    first = [*range(11), *(range(11, 50) if failed else ()), *range(50, 61)]
    for number, times in enumerate((first, range(5, 56))):
        watts = [RuntimeError("lost") if number == 0 and 10 < t < 50 else reading(power_w=100.0) for t in times]
        sensor = FakeSensor(f"cpu@n{number}", watts, kind="cpu", method="integrated")
        meter_fake(found[number % runs], [sensor], [float(t) for t in times], node=f"n{number}", machine="m1")
    assert merge(found).energy_j == pytest.approx(6000)
    if runs == 1:
        (device,) = account_run(found[0]).devices
        assert (device.energy_j, device.metered_s) == pytest.approx((6000, 60))
        assert any("what one of them does not know the other tells" in text for text in account_run(found[0]).warnings)
    else:
        assert merge(found[:1]).energy_j == pytest.approx(account_run(found[0]).energy_j)
        assert account_run(found[0]).energy_j == pytest.approx(2050 if failed else 2000)


def instance(path: Path, parts: dict[str, float], first: int = 0, last: int = 10, stop: bool = True) -> RunFolder:
    """A run that metered a GPU of 100 W for some of its MIG instances."""
    run = RunFolder(path)
    sensor = FakeSensor("GPU-1", [reading(energy_j=100.0 * t, power_w=100.0) for t in range(first, last + 1)])
    sensor.describe_more({"instances": parts, "share": min(1.0, sum(parts.values()))} if parts else {})
    meter_fake(run, [sensor], [float(t) for t in range(first, last + 1)], stop=stop)
    return run


def test_two_mig_instances_of_one_gpu_each_have_their_share(tmp_path: Path) -> None:
    runs = [instance(tmp_path / "a", {"MIG-a": 2 / 7}), instance(tmp_path / "b", {"MIG-b": 3 / 7}, 5, 15)]
    merged = merge(runs)
    assert merged.energy_j == pytest.approx(1000 * 2 / 7 + 1000 * 3 / 7) and merged.overlap_j == pytest.approx(0)
    assert merged.energy_j == pytest.approx(sum(account_run(run).energy_j for run in runs))
    again = instance(tmp_path / "c", {"MIG-b": 3 / 7, "MIG-c": 1 / 7}, 5, 15)
    merged = merge([*runs, again])
    assert merged.energy_j == pytest.approx(1000 * 2 / 7 + 1000 * 4 / 7)
    assert merged.overlap_j == pytest.approx(1000 * 3 / 7)


def test_instances_have_no_more_than_their_gpu(tmp_path: Path) -> None:
    whole = instance(tmp_path / "whole", {})
    parts = [instance(tmp_path / name, {f"MIG-{name}": 4 / 7}) for name in "ab"]
    assert merge(parts).energy_j == pytest.approx(1000)
    assert merge([whole, *parts]).energy_j == pytest.approx(1000)
    assert merge([whole, *parts]).overlap_j == pytest.approx(8000 / 7)


def test_the_gap_of_an_instance_is_its_share_of_the_gap(tmp_path: Path) -> None:
    crashed = instance(tmp_path / "a", {"MIG-a": 2 / 7}, 0, 10, stop=False)
    instance(tmp_path / "a", {"MIG-a": 2 / 7}, 30, 40)
    assert account_run(crashed).energy_j == pytest.approx(4000 * 2 / 7)
    assert merge([crashed]).energy_j == pytest.approx(4000 * 2 / 7)


def test_two_ledgers_of_one_run_for_two_instances_both_count(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    for node, parts in (("n1", {"MIG-a": 2 / 7}), ("n2", {"MIG-b": 3 / 7})):
        sensor = FakeSensor("GPU-1", [reading(energy_j=100.0 * t, power_w=100.0) for t in range(11)])
        sensor.describe_more({"instances": parts, "share": sum(parts.values())})
        meter_fake(run, [sensor], [float(t) for t in range(11)], node=node)
    assert account_run(run).energy_j == pytest.approx(1000 * 5 / 7)


def test_containers_of_one_machine_have_its_cpus_once_and_their_own_gpus(tmp_path: Path) -> None:
    def metered_in(run: RunFolder, node: str, gpu: str, times: range, machine: str) -> None:
        sensors = [FakeSensor(gpu, [reading(energy_j=100.0 * t, power_w=100.0) for t in times])]
        sensors.append(FakeSensor(f"cpu@{node}", [reading(energy_j=10.0 * t) for t in times], kind="cpu"))
        meter_fake(run, sensors, [float(t) for t in times], node=node, machine=machine)

    one = RunFolder(tmp_path / "one")  # a run with a node in each of two containers, and a third machine
    metered_in(one, "pod-a", "GPU-a", range(0, 61), "m1")
    metered_in(one, "pod-b", "GPU-b", range(40, 101), "m1")
    metered_in(one, "pod-c", "GPU-c", range(40, 101), "m2")
    account = account_run(one)
    assert account.energy_j == pytest.approx(3 * 6000 + 1000 + 600) and account.nodes == ["pod-a", "pod-b", "pod-c"]
    assert {d.uuid for d in account.devices} == {"GPU-a", "GPU-b", "GPU-c", "cpu@pod-b", "cpu@pod-c"}
    assert any("at the same time: counted once" in text for text in account.warnings)
    other = RunFolder(tmp_path / "other")
    metered_in(other, "pod-d", "GPU-d", range(90, 121), "m1")
    merged = merge([one, other])
    assert merged.energy_j == pytest.approx(19_600 + 3000 + 200) and merged.overlap_j == pytest.approx(100)


def test_the_power_of_a_whole_node_has_the_devices_of_every_run_on_it(tmp_path: Path) -> None:
    def metered_by(name: str, gpu_w: float, first: int, last: int, node_power: bool) -> RunFolder:
        run, times = RunFolder(tmp_path / name), range(first, last + 1)
        sensors = [FakeSensor(f"GPU-{name}", [reading(gpu_w * t, gpu_w) for t in times])]
        if node_power:
            watts = [reading(power_w=500.0) for _ in times]
            sensors.append(FakeSensor(f"node@pod-{name}", watts, kind="node", method="integrated"))
        meter_fake(run, sensors, [float(t) for t in times], node=f"pod-{name}", machine="m1")
        return run

    # Two jobs side by side, each with a GPU of its own and the same controller's figure; a third has its GPU alone.
    a, b = metered_by("a", 100.0, 0, 60, True), metered_by("b", 200.0, 30, 90, True)
    c = metered_by("c", 50.0, 20, 100, False)
    for runs, energy_j in (([a], 30_000), ([a, b], 45_000), ([a, c], 30_000 + 50 * 40), ([c, b, a], 45_000 + 500)):
        merged = merge(runs)
        assert merged.energy_j == pytest.approx(energy_j)
        assert merged.energy_j + merged.overlap_j == pytest.approx(sum(account_run(run).energy_j for run in runs))
