"""The account's start and end belong to its energy: the truth between them is what it states, however it ended."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from energy_fakes import FakeSensor, meter_fake, reading
from test_meter import Board, meter_of
from truth import parse

from energy.accounting.account import account_run
from energy.accounting.curves import Curve
from energy.runs import RunFolder
from energy.sensors import Reading

# Counters that update every 0.1 s at moments of their own, so that no reading holds at the time at which it is made.
GPUS = "".join(f"gpu uuid=GPU-{n} power={100 * n + 100} counter_offset={0.03 * n:.2f}\n" for n in range(3))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def true_j(start: float | None, end: float | None) -> float:
    assert start is not None and end is not None
    return math.fsum(gpu.energy_j(start, end) for gpu in parse(GPUS))


@pytest.mark.parametrize("fine", [True, False])
@pytest.mark.parametrize("stop", [True, False])
def test_energy_is_that_between_start_and_end(
    run: RunFolder, meter_gpus: Callable[..., str], stop: bool, fine: bool
) -> None:
    meter_gpus(run.ledger_file("n1"), GPUS, 5.0, 25.27, 1.0, stop=stop)
    account = account_run(run, fine=fine)
    assert account.energy_j == pytest.approx(true_j(account.start_unix_s, account.end_unix_s), abs=0.01)
    if fine:
        assert account.start_unix_s == pytest.approx(5.0, abs=0.1) and account.end_unix_s == pytest.approx(25, abs=0.1)
    assert math.fsum(p["energy_j"] for p in account.phases.values()) == pytest.approx(account.energy_j, rel=1e-12)


def test_across_a_crash_nothing_is_lost_or_counted_twice(run: RunFolder, meter_gpus: Callable[..., str]) -> None:
    meter_gpus(run.ledger_file("n1"), GPUS, 5.0, 12.0, 0.5, stop=False)
    meter_gpus(run.ledger_file("n1"), GPUS, 14.33, 20.33, 0.5, attempt=2)
    account = account_run(run)
    assert account.energy_j == pytest.approx(true_j(account.start_unix_s, account.end_unix_s), abs=0.01)
    assert account.phases["gap"]["energy_j"] > 0
    assert math.fsum(a["energy_j"] for a in account.attempts) == pytest.approx(account.energy_j, rel=1e-12)


def test_a_stop_in_order_ends_at_the_stop_itself(run: RunFolder) -> None:
    meter = meter_of(Board("GPU-1"), Board("GPU-2", 50.0, "integrated"), ledger=run.ledger_file("n1"), interval_s=10.0)
    began = time.time()
    meter.start()
    time.sleep(0.3)
    told = time.time()
    meter.stop()
    for fine in (True, False):
        account = account_run(run, fine=fine)
        assert account.start_unix_s is not None and account.end_unix_s is not None
        assert began - 0.1 <= account.start_unix_s < told <= account.end_unix_s
        span_s = account.end_unix_s - account.start_unix_s
        for device, power_w in zip(account.devices, (200, 50), strict=True):
            assert device.energy_j == pytest.approx(power_w * span_s, abs=0.01 * power_w)


def test_a_device_that_was_lost_does_not_hold_the_end_back(run: RunFolder) -> None:
    lost = [reading(energy_j=100.0 * n, power_w=100.0) for n in range(4)] + [RuntimeError("lost")] * 7
    fine = [reading(energy_j=100.0 * n, power_w=100.0) for n in range(11)]
    meter_fake(run, [FakeSensor("GPU-1", lost), FakeSensor("GPU-2", fine)], [float(n) for n in range(11)], stop=False)
    account = account_run(run)
    assert account.end_unix_s == 10.0
    assert [device.energy_j for device in account.devices] == pytest.approx([350, 1000])


def test_a_driver_s_stamps_in_a_killed_ledger_are_its_edges(run: RunFolder) -> None:
    stamped = [Reading(100_000 * n, 100.0, n - 0.07, n - 0.07) for n in range(6)]
    meter_fake(run, [FakeSensor("GPU-1", stamped)], [float(n) for n in range(6)], stop=False)
    account = account_run(run)
    assert (account.start_unix_s, account.end_unix_s) == pytest.approx((0.0, 4.93))
    assert account.energy_j == pytest.approx(493.0)


def curve(seed: int) -> Curve:
    draw = np.random.default_rng(seed)
    times = np.cumsum(draw.uniform(0.1, 1, 40))
    power_w = draw.uniform(0, 400, 40)
    attempt = np.repeat([1, 2], 20)
    known = np.ones(40, bool)
    used_j = np.cumsum(power_w) - power_w[0]
    return Curve(times, used_j, attempt, power_w, power_w, power_w, known, used_j / 10, 40, None, None)


@pytest.mark.parametrize("seed", range(20))
def test_the_cuts_of_a_curve_sum_to_the_curve(seed: int) -> None:
    whole = curve(seed)
    draw = np.random.default_rng(seed + 100)
    cuts = np.sort([*draw.uniform(whole.time_unix_s[0], whole.time_unix_s[-1], 3), whole.time_unix_s[20]]).tolist()
    edges = [-math.inf, *cuts, math.inf]
    parts = [whole.between(start, end) for start, end in zip(edges, edges[1:], strict=False)]
    assert math.fsum(part.energy_j for part in parts) == pytest.approx(whole.energy_j)
    assert math.fsum(part.doubt_j for part in parts) == pytest.approx(whole.doubt_j)
    by_attempt = {1: 0.0, 2: 0.0}
    for part in parts:
        assert len(part.time_unix_s) == len(part.attempt) == len(part.power_w) >= 2
        for attempt, energy_j in part.by_attempt():
            by_attempt[attempt] += energy_j
    assert by_attempt == pytest.approx(dict(whole.by_attempt()))
    outside = whole.between(whole.time_unix_s[-1] + 1, whole.time_unix_s[-1] + 2)
    assert outside.energy_j == 0


def test_a_doubt_that_the_counter_took_back_later_is_one_of_the_start() -> None:
    whole = replace(curve(1), doubt_sofar_j=np.repeat([5.0, 0.0], 20))
    assert whole.doubt_j == 0 and whole.between(whole.time_unix_s[5], math.inf).doubt_j == 5.0


def test_a_flaky_device_s_counter_is_compared_only_where_power_was_read_too(run: RunFolder) -> None:
    answers = [RuntimeError("timeout") if n % 4 == 2 else reading(100.0 * n, 100.0) for n in range(41)]
    meter_fake(run, [FakeSensor("GPU-1", answers)], [float(n) for n in range(41)])
    [device] = account_run(run).devices
    assert device.energy_j == pytest.approx(4000) and device.counter_to_power == pytest.approx(1.0)


def test_a_counter_that_comes_up_late_is_compared_from_then_on(run: RunFolder) -> None:
    answers = [reading(None if n < 3 else 7000 + 100.0 * n, 100.0) for n in range(41)]
    meter_fake(run, [FakeSensor("GPU-1", answers)], [float(n) for n in range(41)])
    account = account_run(run)
    [device] = account.devices
    assert device.energy_j == pytest.approx(4000) and device.counter_to_power == pytest.approx(1.0)
    assert not any("differ by more" in text for text in account.warnings)


def test_of_a_model_that_is_asked_every_ten_seconds_a_kill_loses_nothing(run: RunFolder) -> None:
    counted = [reading(energy_j=100.0 * n, power_w=100.0) for n in range(26)]
    model = FakeSensor("cpu0", [Reading(power_w=40.0, covers_past=True)] * 26, kind="cpu", method="modelled")
    meter_fake(run, [FakeSensor("GPU-1", counted), model], [float(n) for n in range(26)], stop=False)
    account = account_run(run)
    gpu, cpu = account.devices
    assert account.start_unix_s is not None and account.end_unix_s is not None
    span_s = account.end_unix_s - account.start_unix_s
    assert span_s == pytest.approx(25.0, abs=1.0)
    assert (gpu.energy_j, cpu.energy_j) == pytest.approx((100 * span_s, 40 * span_s))
    assert math.fsum(p["energy_j"] for p in account.phases.values()) == pytest.approx(account.energy_j, rel=1e-12)
