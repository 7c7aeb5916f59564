"""The meter's thread and its windows, on sensors whose truth is known at every moment."""

import os
import threading
import time
from pathlib import Path

import pytest

from energy import Meter
from energy.accounting.account import account_run
from energy.ledger.readings import read_sessions
from energy.metering.live import PROCESS, THREADS, OwnCpu
from energy.metering.readers import system_clock
from energy.runs import RunFolder
from energy.sensors import Reading

UPDATE_S = 0.02


class Board:
    """A GPU of constant power whose counter updates every 20 ms; it can fail, be lost or hang."""

    def __init__(self, uuid: str, power_w: float = 200.0, method: str = "counter", kind: str = "gpu") -> None:
        self.about = dict(uuid=uuid, name=f"board {uuid}", node="n1", kind=kind, method=method, boundary="gpu")
        self.power_w, self.reads = power_w, 0
        self.error: Exception | None = None
        self.answer = threading.Event()
        self.answer.set()
        self._zero_s = time.time() // UPDATE_S * UPDATE_S  # on the grid of the updates

    def describe(self) -> dict[str, str]:
        return dict(self.about)

    def read(self) -> Reading:
        self.reads += 1
        self.answer.wait()
        if self.error is not None:
            raise self.error
        updated_s = time.time() // UPDATE_S * UPDATE_S
        energy_mj = round((updated_s - self._zero_s) * self.power_w * 1e3)
        counter = energy_mj if self.about["method"] == "counter" else None
        return Reading(counter, self.power_w, updated_s, updated_s)


def meter_of(*boards: Board, ledger: Path | None = None, interval_s: float = 0.05) -> Meter:
    return Meter(ledger, node="n1", interval_s=interval_s, sensors=boards, discover_sensors=False)


def test_windows_nest_overlap_and_have_the_true_energy() -> None:
    with meter_of(Board("GPU-1"), Board("GPU-2", 50.0, "integrated")) as meter:
        meter.begin("epoch")
        with meter.window("step") as step:
            time.sleep(0.15)
        meter.begin("overlapping")
        time.sleep(0.1)
        epoch = meter.end("epoch")
        time.sleep(0.05)
        overlapping = meter.end("overlapping")
        for window in (step, epoch, overlapping):
            first, second = window.devices
            assert first.energy_j == pytest.approx(200 * window.duration_s, rel=1e-3)
            assert second.energy_j == pytest.approx(50 * window.duration_s, rel=1e-3)
            assert first.low_j < first.energy_j < first.high_j
            assert window.energy_j == pytest.approx(250 * window.duration_s, rel=1e-3)
            assert window.low_j < window.energy_j < window.high_j
        assert epoch.duration_s > step.duration_s + overlapping.duration_s - 0.2
        assert epoch.energy_kwh == epoch.energy_j / 3.6e6


def test_windows_of_many_threads_do_not_mix() -> None:
    with meter_of(Board("GPU-1")) as meter:
        found = {}

        def measure(name: str, duration_s: float) -> None:
            with meter.window(name) as window:
                time.sleep(duration_s)
            found[name] = window

        threads = [threading.Thread(target=measure, args=(f"w{n}", 0.02 * n)) for n in range(1, 8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for window in found.values():
            assert window.energy_j == pytest.approx(200 * window.duration_s, rel=2e-3)


def test_a_window_s_mistakes_are_named() -> None:
    with meter_of(Board("GPU-1")) as meter:
        window = meter.begin("a")
        with pytest.raises(ValueError, match="open already"):
            meter.begin("a")
        with pytest.raises(ValueError, match="still open"):
            _ = window.devices
        with pytest.raises(ValueError, match="'b' is open .'a'."):
            meter.end("b")
        forgotten = meter.begin("forgotten")
        meter.end(window)
        again = meter.begin("a")
        with pytest.raises(ValueError, match="it has ended"):  # not the new one of that name
            meter.end(window)
        with pytest.raises(RuntimeError, match="mine"), meter.window("broken") as broken:
            raise RuntimeError("mine")
        with meter.window("early") as early:
            meter.end("early")
        assert not broken.is_open and not early.is_open and again.is_open
        assert meter.start() is meter and sum(t.name.startswith("meter-watch") for t in threading.enumerate()) == 1
        time.sleep(0.3)
    assert any("'forgotten' was still open" in warning for warning in meter.warnings)
    assert forgotten.energy_j == pytest.approx(200 * forgotten.duration_s, rel=0.02)  # up to the meter's stop
    for misused in (lambda: meter.begin("late"), lambda: meter.end("late"), meter.start):
        with pytest.raises(ValueError, match="was stopped: make another"):
            misused()


def test_a_forked_child_leaves_its_parent_s_meter_alone(tmp_path: Path) -> None:
    ledger = tmp_path / "n1.ledger"
    with meter_of(Board("GPU-1"), ledger=ledger) as meter, meter.window("whole") as window:
        child = os.fork()
        if child == 0:
            try:
                meter.begin("in the child")
            except ValueError as error:
                meter.stop()
                os._exit(str(os.getppid()) not in str(error))
            os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
        time.sleep(0.2)
    assert window.energy_j == pytest.approx(200 * window.duration_s, rel=0.02) and meter.warnings == []
    [session], damaged = read_sessions(ledger)
    assert session.ended and damaged == []


def test_beginning_and_ending_never_wait_for_a_sensor() -> None:
    stuck = Board("GPU-1")
    meter = meter_of(stuck).start()
    stuck.answer.clear()
    reads = stuck.reads
    while stuck.reads == reads:  # until the meter's own thread waits for the answer
        time.sleep(0.01)
    reads = stuck.reads
    for n in range(50):
        meter.end(meter.begin(f"w{n}"))
    assert stuck.reads == reads  # the caller read nothing itself; a call that waited would never have returned
    stuck.answer.set()
    meter.stop()


def test_a_sensor_that_hangs_is_marked_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("energy.metering.meter.HANG_S", 0.2)
    run = RunFolder(tmp_path / "run")
    stuck, fine = Board("GPU-1"), Board("GPU-2")
    meter = meter_of(stuck, fine, ledger=run.ledger_file("n1")).start()
    meter.begin("all")
    time.sleep(0.1)
    stuck.answer.clear()
    time.sleep(0.8)
    during = fine.reads
    time.sleep(0.3)
    assert fine.reads > during
    window = meter.end("all")
    first, second = window.devices
    assert "does not answer" in first.note and first.gap_s > 0.3
    assert second.energy_j == pytest.approx(200 * window.duration_s, rel=2e-3)
    stuck.answer.set()  # the call that hung returns: the device comes back, and its counter tells what it used
    time.sleep(0.3)
    meter.stop()
    account = account_run(run)
    by_uuid = {device.uuid: device for device in account.devices}
    assert by_uuid["GPU-1"].energy_j == pytest.approx(by_uuid["GPU-2"].energy_j, rel=0.05)
    assert by_uuid["GPU-1"].gap_s > 0.3 and by_uuid["GPU-2"].gap_s == 0
    assert any("does not answer" in warning for warning in meter.warnings)


def test_stopping_while_a_sensor_hangs_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("energy.metering.meter.HANG_S", 0.2)
    run = RunFolder(tmp_path / "run")
    stuck, fine = Board("GPU-1"), Board("GPU-2")
    meter = meter_of(stuck, fine, ledger=run.ledger_file("n1")).start()
    time.sleep(0.1)
    stuck.answer.clear()
    meter.stop()
    assert meter._closed
    assert {device.uuid for device in account_run(run).devices} == {"GPU-1", "GPU-2"}
    stuck.answer.set()


def test_a_lost_gpu_is_missing_and_not_zero() -> None:
    lost, never = Board("GPU-1"), Board("GPU-2")
    never.error = RuntimeError("GPU is lost")
    with meter_of(lost, never) as meter:
        meter.begin("w")
        time.sleep(0.15)
        lost.error = RuntimeError("GPU is lost")
        time.sleep(0.2)
        window = meter.end("w")
        first, second = window.devices
    assert 0 < first.energy_j < 200 * window.duration_s
    assert "GPU is lost" in first.note and first.gap_s > 0.1
    assert second.energy_j is None and "missing: RuntimeError: GPU is lost" in second.note
    assert window.energy_j == first.energy_j


def test_a_node_s_own_sensor_counts_instead_of_its_parts() -> None:
    node = Board("node@n1", 900.0, "integrated", kind="node")
    with meter_of(Board("GPU-1"), node) as meter:
        with meter.window("w") as window:
            time.sleep(0.1)
        assert window.energy_j == pytest.approx(900 * window.duration_s, rel=2e-3)
        assert meter.live()["power_w"] == 900.0


def test_a_node_s_sensor_that_says_0_w_is_not_believed() -> None:
    with meter_of(Board("GPU-1"), Board("node@n1", 0.0, "integrated", "node")) as meter:
        with meter.window("w") as window:
            time.sleep(0.2)
        assert window.energy_j == pytest.approx(200 * window.duration_s, rel=0.05)
        assert [device.kind for device in window.counted] == ["gpu"] and meter.live()["power_w"] == 200


def test_a_window_that_ends_before_a_model_is_looked_up_has_its_energy_soon_after() -> None:
    class Model(Board):
        def read(self) -> Reading:
            self.reads += 1
            return Reading(pending=True) if self.reads < 20 else Reading(power_w=self.power_w, covers_past=True)

    with meter_of(Model("cpu@n1", 50.0, "modelled", "cpu")) as meter:
        with meter.window("short") as window:
            time.sleep(0.05)
        assert window.energy_j == pytest.approx(50 * window.duration_s, rel=0.05)


def test_a_meter_without_anything_to_read_says_so() -> None:
    with Meter(sensors=(), discover_sensors=False) as meter, meter.window("w") as window:
        pass
    assert window.energy_j is None and window.devices == []


def test_power_without_a_counter_is_read_faster_than_the_interval() -> None:
    counted, integrated = Board("GPU-1"), Board("GPU-2", method="integrated")
    with meter_of(counted, integrated, interval_s=10.0):
        time.sleep(0.6)
    assert integrated.reads > 2 * counted.reads  # every 50 ms, where a counter is looked at every 200


def by_hand(readings: list[Reading], times: list[float], method: str = "counter") -> float:
    """The curve's end in J after the readings at those times."""
    from energy.metering.track import Track

    track = Track(method == "counter")
    for reading, now_s in zip(readings, times, strict=True):
        track.update(reading, now_s, now_s)
    return track.energy_mj / 1e3


def test_a_counter_that_kept_counting_across_failures_leaves_no_doubt() -> None:
    from energy.metering.track import Track

    track = Track(True)
    for n in range(31):
        failed = n % 3 == 1
        track.update(Reading(error="timeout") if failed else Reading(300_000 * n, 300.0), float(n), float(n))
    assert track.energy_mj == 9_000_000 and track.doubt_mj == 0


def test_of_a_device_that_was_lost_and_reset_what_it_counted_since_is_known() -> None:
    lost = Reading(error="lost")
    readings = [Reading(5_000_000, 300.0), Reading(5_300_000, 300.0), lost, lost, Reading(510_000, 300.0)]
    # 300 J before, half a reading's distance held, and the 510 J of the new counter.
    assert by_hand(readings, [0.0, 1.0, 2.0, 3.0, 4.0]) == pytest.approx(300 + 150 + 510)


def test_power_is_not_held_over_a_silence(tmp_path: Path) -> None:
    run, now = RunFolder(tmp_path / "run"), [0.0]
    board = Board("GPU-1", method="integrated")
    board.read = lambda: Reading(power_w=300.0)  # type: ignore[method-assign]
    meter = Meter(
        run.ledger_file("n1"), sensors=[board], discover_sensors=False, interval_s=1.0, clock=lambda: (now[0], now[0])
    )
    for now[0] in [*map(float, range(11)), *map(float, range(40, 51))]:
        meter.sample(last=now[0] == 50.0)
    account = account_run(run)
    assert account.energy_j == pytest.approx(6000)
    assert account.devices[0].gap_s == pytest.approx(30)
    assert any("30.0 s is unknown" in warning for warning in account.warnings)


@pytest.mark.parametrize(("back_s", "end_unix_s"), [(0.0, 1100.0), (-60.0, 1160.0), (3600.0, 1100.0), (80.0, 1100.0)])
def test_a_window_in_which_the_clock_is_set_back_ends_after_its_start(back_s: float, end_unix_s: float) -> None:
    now = [0.0]
    meter = Meter(
        sensors=[Board("GPU-1")],
        discover_sensors=False,
        clock=lambda: (1000.0 + now[0] - (back_s if now[0] > 50 else 0.0), now[0]),
    )
    window = meter.begin("command")
    now[0] = 100.0
    meter.end(window)
    assert (window.start_unix_s, window.end_unix_s, window.duration_s) == (1000.0, end_unix_s, 100.0)


def test_both_clocks_are_of_one_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clocks:
        """The wall clock is 1000 s ahead; the process is put aside for 5 s after its first looks at it."""

        now_s, pauses = 10.0, 3

        def monotonic(self) -> float:
            return self.now_s

        def time(self) -> float:
            shown_s = self.now_s + 1000.0
            if self.pauses:
                self.pauses -= 1
                self.now_s += 5.0
            return shown_s

    monkeypatch.setattr("energy.metering.readers.time", Clocks())
    unix_s, monotonic_s = system_clock()
    assert unix_s - monotonic_s == 1000.0


def test_its_cost_is_that_of_the_process_or_of_its_own_threads() -> None:
    def spend(seconds: float) -> None:
        began_s = time.process_time()
        while time.process_time() - began_s < seconds:
            sum(range(1000))

    told = {}
    for whole in (True, False):
        meter = Meter(None, node="n1", sensors=[Board("GPU-1")], discover_sensors=False, whole_process=whole)
        with meter:
            spend(0.3)
        told[whole] = meter.describe()["overhead"]
    assert told[True]["cpu_s"] >= 0.3 and told[True]["cpu_s"] > told[False]["cpu_s"] > 0
    assert (told[True]["cpu_counts"], told[False]["cpu_counts"]) == (PROCESS, THREADS)


def test_a_forked_child_does_not_change_what_the_meter_has_cost() -> None:
    cost = OwnCpu(whole_process=True)
    cost._before_s -= 5.0
    cost.note()
    before_s = cost.total_s([(1.0, 2.0)])  # of the process already, and the programs that were asked
    child = os.fork()
    if child == 0:
        cost.note()  # the process clock of the child begins at zero
        os._exit(cost.total_s([(1.0, 2.0)]) != before_s)
    assert os.waitpid(child, 0)[1] == 0
    assert before_s == cost.total_s([]) + 2.0 >= 7.0


def test_readings_are_at_most_the_interval_apart_and_in_step_with_nothing() -> None:
    meter = meter_of(Board("GPU-1"))
    spaces_s = [meter._spaced(1.0) for _ in range(1000)]
    assert max(spaces_s) <= 1.0 and 0.8 <= min(spaces_s) < 0.85 < max(spaces_s) - 0.1
