import json
import math
from pathlib import Path

import numpy as np
import pytest
from energy_fakes import FakeSensor, meter_fake, reading, write_phases

from energy.accounting.account import Account, account_run
from energy.metering.meter import Meter
from energy.runs import RunFolder, list_runs
from energy.sensors import Reading


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def counter(*values_j: float) -> list[Reading]:
    return [reading(energy_j=value) for value in values_j]


def watts(*values_w: float) -> list[Reading]:
    return [reading(power_w=value) for value in values_w]


def assert_sums(account: Account) -> None:
    phases = math.fsum(phase["energy_j"] for phase in account.phases.values())
    attempts = math.fsum(attempt["energy_j"] for attempt in account.attempts)
    assert phases == pytest.approx(account.energy_j, rel=1e-12)
    assert attempts == pytest.approx(account.energy_j, rel=1e-12)


def test_phases_interpolate_the_curve_and_sum_to_the_total(run: RunFolder) -> None:
    sensor = FakeSensor("GPU-1", counter(*(1000 + 100.0 * n for n in range(11))))
    meter_fake(run, [sensor], [float(n) for n in range(100, 111)])
    write_phases(
        run,
        [
            ("startup", 90, 100.5),
            ("train_step", 100.5, 104),
            ("checkpoint", 106, 108),
            ("evaluation", 107, 107.5),
        ],
    )
    account = account_run(run)
    energies = {phase: entry["energy_j"] for phase, entry in account.phases.items()}
    assert energies == pytest.approx(
        {"startup": 50, "train_step": 350, "checkpoint": 150, "evaluation": 50, "unattributed": 400}
    )
    assert account.phases["checkpoint"]["seconds"] == pytest.approx(1.5)
    assert account.phases["startup"]["seconds"] == pytest.approx(0.5)
    assert account.energy_j == pytest.approx(1000)
    assert (account.start_unix_s, account.end_unix_s) == (100, 110)
    assert account.warnings == []
    assert_sums(account)


def test_power_is_held_between_readings(run: RunFolder) -> None:
    meter_fake(run, [FakeSensor("GPU-1", watts(100, 300, 50), method="integrated")], [0.0, 1.0, 4.0])
    account = account_run(run)
    assert account.energy_j == pytest.approx(100 + 900)
    assert account.devices[0].method == "integrated"


def test_a_reset_is_a_new_epoch(run: RunFolder) -> None:
    readings = [reading(energy_j=e, power_w=100.0) for e in (5000.0, 5100.0, 30.0, 130.0)]
    meter_fake(run, [FakeSensor("GPU-1", readings)], [0.0, 1.0, 2.0, 3.0])
    account = account_run(run)
    assert account.energy_j == pytest.approx(300)
    assert any("went backwards" in warning for warning in account.warnings)


def test_a_lost_device_is_named_and_its_time_known(run: RunFolder) -> None:
    lost = RuntimeError("fell off the bus")
    readings = [reading(power_w=100.0), lost, lost, reading(power_w=100.0), reading(power_w=100.0)]
    meter_fake(run, [FakeSensor("GPU-1", readings, method="integrated")], [0.0, 1.0, 2.0, 3.0, 4.0])
    account = account_run(run)
    # The unknown 3 s are not made up, but for the half of a reading's distance in which it was lost.
    assert account.energy_j == pytest.approx(150) and account.devices[0].doubt_j == pytest.approx(50)
    assert account.devices[0].gap_s == pytest.approx(3) and account.devices[0].samples == 3
    assert account.devices[0].metered_s == pytest.approx(1)
    assert any("could not be read for 3.0 s" in w and "fell off the bus" in w for w in account.warnings)
    assert any("3.0 s is unknown" in warning for warning in account.warnings)
    assert np.isnan(account.power[0][2]).tolist() == [False, True, True, True, False]
    meter_fake(run, [FakeSensor("GPU-2", [*counter(100, 200), lost, lost, lost])], [5.0, 6.0, 7.0, 8.0, 9.0], node="n2")
    assert [device.metered_s for device in account_run(run).devices] == pytest.approx([1, 1])  # until it was lost


def test_after_a_crash_the_counter_s_growth_is_the_gap(run: RunFolder) -> None:
    meter_fake(run, [FakeSensor("GPU-1", counter(100, 200, 300))], [0.0, 1.0, 2.0], attempt=1, stop=False)
    meter_fake(run, [FakeSensor("GPU-1", counter(1300, 1400))], [12.0, 13.0], attempt=2)
    write_phases(run, [("train_step", 0, 2), ("train_step", 12, 13)])
    account = account_run(run)
    gap = account.phases["gap"]
    assert (gap["energy_j"], gap["seconds"]) == pytest.approx((1000, 10))
    assert account.phases["train_step"]["energy_j"] == pytest.approx(300)
    assert account.energy_j == pytest.approx(1300)
    assert [attempt["energy_j"] for attempt in account.attempts] == pytest.approx([1200, 100])
    assert (account.devices[0].gap_s, account.devices[0].metered_s) == pytest.approx((10, 13))
    assert account.cut_off == 1 and account.overhead["cpu_s"] >= 0
    assert_sums(account)


def test_an_orderly_stop_is_no_gap(run: RunFolder) -> None:
    meter_fake(run, [FakeSensor("GPU-1", counter(100, 200))], [0.0, 1.0])
    meter_fake(run, [FakeSensor("GPU-1", counter(9000, 9100))], [50.0, 51.0], attempt=2)
    account = account_run(run)
    assert "gap" not in account.phases and account.energy_j == pytest.approx(200)
    assert account.devices[0].metered_s == pytest.approx(2)  # and not the 51 s of the run


@pytest.mark.parametrize("boots", [("a", "b"), (None, None)])
def test_another_boot_s_counter_is_not_compared(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, boots: tuple[str | None, str | None]
) -> None:
    for attempt, boot in enumerate(boots, start=1):
        monkeypatch.setattr("energy.metering.meter.boot_id", lambda boot=boot: boot)
        sensor = FakeSensor("GPU-1", counter(100.0 * attempt, 100.0 * attempt + 10))
        meter_fake(run, [sensor], [10.0 * attempt, 10.0 * attempt + 1], attempt, stop=False)
    account = account_run(run)
    assert account.energy_j == pytest.approx(20)
    assert any("unknown and not in the total" in warning for warning in account.warnings)


def test_one_gpu_in_two_ledgers_at_different_times_adds_up(run: RunFolder) -> None:
    meter_fake(run, [FakeSensor("GPU-1", counter(0, 100))], [0.0, 1.0], machine="m1", stop=False)
    meter_fake(run, [FakeSensor("GPU-1", counter(500, 600))], [5.0, 6.0], attempt=2, node="n1-again", machine="m1")
    account = account_run(run)
    assert account.energy_j == pytest.approx(600) and len(account.devices) == 1
    assert account.phases["gap"]["energy_j"] == pytest.approx(400)
    assert_sums(account)


def test_a_clock_that_was_set_changes_no_energy(run: RunFolder) -> None:
    times = [(float(n) + (3600.0 if n > 5 else 0.0) - (7200.0 if n > 8 else 0.0), float(n)) for n in range(12)]
    held = [times[0]]
    sensors = [
        FakeSensor("GPU-1", [reading(energy_j=100.0 * n, power_w=100.0) for n in range(12)]),
        FakeSensor("GPU-2", watts(*[50.0] * 12), method="integrated"),
    ]
    meter = Meter(run.ledger_file("n1"), interval_s=1.0, sensors=sensors, discover_sensors=False, clock=lambda: held[0])
    for index, held[0] in enumerate(times):
        meter.sample(last=index == 11)
    account = account_run(run)
    assert [device.energy_j for device in account.devices] == pytest.approx([1100, 550])
    assert any("was set by +3600.0 s" in w for w in meter.warnings)
    assert any("was set by -7200.0 s" in w for w in meter.warnings)


@pytest.mark.parametrize(("set_at_s", "back_s"), [(50.0, 3600.0), (50.0, 10.0), (0.5, 3600.0)])
def test_a_clock_that_was_set_back_before_a_stop_loses_no_energy(
    run: RunFolder, set_at_s: float, back_s: float
) -> None:
    held = [0.0]
    sensor = FakeSensor("GPU-1", [reading(300.0 * t, 300.0) for t in (*range(101), 100.25)])
    meter = Meter(
        run.ledger_file("n1"), node="n1", sensors=[sensor], discover_sensors=False,
        clock=lambda: (1e6 + held[0] - (back_s if held[0] >= set_at_s else 0.0), held[0]),
    )  # fmt: skip
    for t in range(101):
        held[0] = float(t)
        meter.sample()
    meter._until_s, held[0] = 100.0, 100.25  # read on after the stop, until the counter has updated
    meter.sample(last=True)
    account = account_run(run)
    assert account.energy_j == pytest.approx(30_000, rel=1e-9)
    if back_s > 100:  # never made up for: counted by the time that passed
        assert (account.start_unix_s, account.end_unix_s) == pytest.approx((1e6, 1e6 + 100))
    assert_sums(account)


@pytest.mark.parametrize("back_s", [20.0, 3600.0])
def test_a_clock_that_was_set_back_before_a_restart_loses_no_energy(run: RunFolder, back_s: float) -> None:
    for first, last, behind_s in ((0, 60, 0.0), (70, 130, back_s)):  # killed, and begun again 10 s later
        sensors = [FakeSensor("GPU-1", [reading(100.0 * t, 100.0) for t in range(first, last + 1)])]
        held = [0.0]
        meter = Meter(
            run.ledger_file("n1"), node="n1", interval_s=1.0, sensors=sensors, discover_sensors=False,
            clock=lambda held=held, behind_s=behind_s: (1e6 + held[0] - behind_s, held[0]),
        )  # fmt: skip
        for t in range(first, last + 1):
            held[0] = float(t)
            meter.sample(last=t == 130)
        if last == 60 and meter._writer is not None:
            meter._writer._main.close()
            meter._writer._raw.close()
            meter._writer._seconds.close()
    account = account_run(run)
    assert account.energy_j == pytest.approx(13_000) and account.phases["gap"]["energy_j"] == pytest.approx(1000)
    assert (account.start_unix_s, account.end_unix_s) == pytest.approx((1e6, 1e6 + 130))
    assert any(f"set back: {back_s:.1f} s are added" in text for text in account.warnings)
    assert_sums(account)


def test_one_gpu_in_two_ledgers_counts_once(run: RunFolder) -> None:
    for node in ("n1", "n2"):
        meter_fake(run, [FakeSensor("GPU-1", counter(0, 100))], [0.0, 1.0], node=node)
    account = account_run(run)
    assert account.energy_j == pytest.approx(100) and len(account.devices) == 1
    assert any("counted once" in warning for warning in account.warnings)


def test_a_disagreement_of_counter_and_power_is_said(run: RunFolder) -> None:
    readings = [reading(energy_j=100.0 * n, power_w=150.0) for n in range(20)]
    meter_fake(run, [FakeSensor("GPU-1", readings)], [float(n) for n in range(20)])
    assert any("differ by more than 5 %" in warning for warning in account_run(run).warnings)


def test_random_runs_always_sum(run: RunFolder) -> None:
    random = np.random.default_rng(7)
    times = np.cumsum(random.uniform(0.1, 1, 400)).tolist()
    sensors = [FakeSensor(f"GPU-{n}", counter(*np.cumsum(random.uniform(0, 500, 400)))) for n in range(3)]
    sensors.append(FakeSensor("cpu@n1", watts(*random.uniform(5, 90, 400)), kind="cpu", method="modelled"))
    meter_fake(run, sensors, times)
    starts = random.uniform(-10, 250, 200)
    spans = [(str(random.choice(["train_step", "idle", "data_wait"])), s, s + random.uniform(0, 5)) for s in starts]
    write_phases(run, spans)
    account = account_run(run)
    assert_sums(account)
    assert all(phase["energy_j"] > -1e-6 and phase["seconds"] >= 0 for phase in account.phases.values())


def test_nothing_metered_is_said(run: RunFolder) -> None:
    account = account_run(run)
    assert account.energy_j == 0 and any("nothing was metered" in warning for warning in account.warnings)


def test_run_folder_reads_what_a_crash_left(run: RunFolder) -> None:
    run.write_run({"run_id": "a", "created_unix_s": 5.0})
    assert run.update_run(status="running") == run.read_run()
    write_phases(run, [("startup", 0, 1)])
    with open(run.metrics_file(0), "a") as file:
        file.write('{"event":"step","st')
    assert len(run.phases()) == 1 and run.steps() == []
    (run.path.parent / "no-run").mkdir()
    assert [found.path for found in list_runs(run.path.parent)] == [run.path]
    run.run_file.write_text("{")
    with pytest.raises(ValueError, match="run.json: not JSON"):
        run.read_run()


def test_devices_that_no_rank_trains_on_are_idle(run: RunFolder) -> None:
    meter_fake(run, [FakeSensor("GPU-1", counter(0, 100)), FakeSensor("GPU-2", counter(0, 30))], [0.0, 1.0])
    write_phases(run, [("train_step", 0, 1)])
    with open(run.metrics_file(0), "a") as file:
        file.write('{"event": "devices", "attempt": 1, "uuids": ["GPU-1"]}\n')
    account = account_run(run)
    assert account.phases["train_step"]["energy_j"] == pytest.approx(100)
    assert account.phases["idle_devices"]["energy_j"] == pytest.approx(30)
    assert account.useful_j == pytest.approx(100)
    assert_sums(account)


def test_compilation_is_told_by_name_and_is_not_useful(run: RunFolder) -> None:
    meter_fake(run, [FakeSensor("GPU-1", counter(*(100.0 * n for n in range(21))))], [float(n) for n in range(21)])
    write_phases(run, [("startup", 0, 2), ("compile", 2, 8), ("train_step", 8, 14), ("evaluation", 14, 20)])
    write_phases(run, [("compile", 15, 18)])  # of validation's first forward pass: inside, so that it has the time
    account = account_run(run)
    assert account.phases["compile"]["energy_j"] == pytest.approx(900)
    assert account.phases["evaluation"]["energy_j"] == pytest.approx(300)
    assert account.useful_j == account.phases["train_step"]["energy_j"] == pytest.approx(600)
    assert_sums(account)


def test_work_that_is_done_again_is_lost(run: RunFolder) -> None:
    meter_fake(run, [FakeSensor("GPU-1", counter(*(100.0 * n for n in range(21))))], [float(n) for n in range(21)])
    run.metrics_dir.mkdir(parents=True)
    steps = [(1, n, float(n)) for n in range(1, 9)] + [(2, n, 6.0 + n) for n in range(5, 13)]
    with open(run.metrics_file(0), "w") as file:
        for attempt, step, at in steps:
            file.write(json.dumps({"event": "step", "attempt": attempt, "step": step, "time_unix_s": at}) + "\n")
    write_phases(run, [("train_step", 0, 8)])
    write_phases(run, [("train_step", 10, 18)], attempt=2)
    account = account_run(run)
    assert account.phases["lost"]["energy_j"] == pytest.approx(400)  # steps 5 to 8 of the first attempt
    assert account.useful_j == pytest.approx(1200)
    assert_sums(account)


def test_work_that_the_attempt_after_next_does_again_is_lost_too(run: RunFolder) -> None:
    meter_fake(run, [FakeSensor("GPU-1", counter(*(100.0 * n for n in range(31))))], [float(n) for n in range(31)])
    run.metrics_dir.mkdir(parents=True)
    # Ended at steps 8 and 7; the third began at step 3, before the second's first.
    steps = [(1, n, float(n)) for n in range(1, 9)] + [(2, n, 6.0 + n) for n in range(6, 8)]
    steps += [(3, n, 13.0 + n) for n in range(3, 13)]
    with open(run.metrics_file(0), "w") as file:
        for attempt, step, at in steps:
            told = {"event": "step", "attempt": attempt, "step": step, "time_unix_s": at, "seconds": 1.0}
            file.write(json.dumps(told) + "\n")
    for attempt, start, end in ((1, 0, 8), (2, 11, 13), (3, 15, 25)):
        write_phases(run, [("train_step", start, end)], attempt=attempt)
    account = account_run(run)
    assert account.useful_j == pytest.approx(200 + 1000)  # steps 1 and 2 of the first, all of the third
    assert account.phases["lost"]["energy_j"] == pytest.approx(600 + 200)
    assert_sums(account)


def test_a_model_that_is_looked_up_late_has_its_power_from_the_beginning(run: RunFolder) -> None:
    model = Reading(power_w=100.0, covers_past=True)
    sensor = FakeSensor("cpu@n1", [Reading(pending=True), model, model, model], kind="cpu", method="modelled")
    meter_fake(run, [sensor], [float(n) for n in range(21)])  # models are asked every ten seconds once they are ready
    account = account_run(run)
    assert account.energy_j == pytest.approx(2000) and account.devices[0].gap_s == 0
    _, times, power_w = account.power[0]
    assert times[0] == 0 and times[1] == 1 and power_w[1] == pytest.approx(100) and power_w[-1] == pytest.approx(100)
    assert_sums(account)
