"""A run that its budget stopped, from the driver's side: exit code, run.json, record, and the way on."""

import errno
import json
import os
import shlex
import time
from pathlib import Path
from typing import Any

import pytest
from driven import start as start
from energy_fakes import FakeSensor, meter_fake, reading
from tiny import write_spec

from energy.records.record import write_record
from energy.runs import RunFolder
from orchestrator.budget.before import spent_before
from orchestrator.budget.watch import BudgetSpent, Pace, Spending, State, Watch
from orchestrator.driver.attempts import Claim
from orchestrator.driver.run_status import RunStatus
from orchestrator.driver.run_watch import RunWatch
from orchestrator.screens.run import RunScreen
from orchestrator.spec.file import BadInput, load_experiment

KWH = 3.6e6
NOW = 1_760_000_000.0


def state_of(spec: Path, limit: str, spent_j: float, pace: Pace) -> State:
    watch = Watch(load_experiment(spec, [f"energy.budget.energy={limit}"]), Spending(), 1, NOW)
    watch.feed(1_000.0, NOW + 1, NOW + 1)
    if pace.step:
        watch.first_step()
    watch.feed(spent_j, NOW + 1, NOW + 1)
    return watch.states(pace, NOW + 1)[0]


def metered(power_w: float, seconds: int, error: BaseException | None, stepped: bool = True) -> Any:
    """A training that used so much power for so long, and then raised; without a step where it never got to one."""

    def training(command: Any, *rest: Any) -> bool:
        times = [NOW + 1000 * len(command.folder.read_run()["attempts"]) + second for second in range(seconds + 1)]
        values = [reading(power_w * second, power_w) for second in range(seconds + 1)]
        attempt = len(command.folder.read_run()["attempts"])
        meter_fake(command.folder, [FakeSensor("GPU-1", values)], times, attempt=attempt)
        mark = {"event": "step", "attempt": attempt, "step": 12, "loss": 3.0, "seconds": 1.0, "time_unix_s": times[-1]}
        mark |= {"tokens": 12 * 256, "lr": 0.1, "grad_norm": 1.0}
        command.folder.metrics_dir.mkdir(exist_ok=True)
        with command.folder.metrics_file(0).open("a") as file:
            file.write((json.dumps(mark) + "\n") if stepped else "")
        if error is not None:
            raise error
        return True

    return training


def test_exit_code_3_a_record_and_the_command_to_go_on(
    start: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    state = state_of(tmp_path / "spec.yaml", "3 Wh", 10_000.0, Pace(12, 20, 100.0, 10.0, 15.0))
    assert state.due
    folder, code = start(metered(100.0, 100, BudgetSpent(state, 12)), "energy.budget.energy=3 Wh")
    assert code == 3
    run = folder.read_run()
    assert (run["status"], run["error"], run["attempts"][0]["status"]) == ("budget", None, "budget")
    assert (run["budget"]["step"], run["budget"]["key"]) == (12, "energy")
    record = json.loads((folder.path / "footprint.json").read_text())
    assert record["run"]["status"] == "budget" and record["run"]["partial"]
    assert (folder.path / "report.html").exists()
    said = capfd.readouterr().err
    assert "the budget of 3.00 Wh (IT energy) stopped the run after step 12" in said
    [command] = [line.partition(": ")[2] for line in said.splitlines() if "--resume" in line]
    words = shlex.split(command)
    # 18,000 J is the forecast, 1,000 J a start-up, 1,500 J are held back for the end; and a twentieth more.
    assert words[-3:] == [str(folder.path), "--set", "energy.budget.energy=5.98 Wh"]

    with pytest.raises(BadInput, match="have taken 2.78 Wh .IT energy., and the budget is 2.00 Wh: nothing is left"):
        start(lambda *_: True, "energy.budget.energy=2 Wh", resume=folder.path)
    assert folder.read_run() == run  # a refusal leaves the run as it was
    folder, code = start(metered(100.0, 10, None), words[-1], resume=folder.path)
    run = folder.read_run()
    assert (code, run["status"], run["budget"]) == (0, "completed", None)
    assert [attempt["status"] for attempt in run["attempts"]] == ["budget", "completed"]


def test_a_budget_smaller_than_the_start_up_is_named(
    start: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    state = state_of(tmp_path / "spec.yaml", "1 Wh", 3_500.0, Pace(0, 20, 100.0, None, 4.5))
    _, code = start(metered(100.0, 35, BudgetSpent(state, 0, starting=1), stepped=False), "energy.budget.energy=1 Wh")
    assert code == 3
    said = capfd.readouterr().err
    assert "the budget of 1.00 Wh (IT energy) does not hold the start-up, which has taken 0.972 Wh before" in said
    assert "--set 'energy.budget.energy=10 Wh'" in said
    with pytest.raises(BadInput, match="of 1.20 Wh .* taken 0.972 Wh, and a start-up alone takes 0.972 Wh"):
        start(lambda *_: True, "energy.budget.energy=1.2 Wh", resume=tmp_path / "runs" / "one")


@pytest.mark.parametrize("stopped", [True, False], ids=["in order", "killed"])
def test_a_resumed_run_counts_what_was_spent_before(
    stopped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unread(*asked: Any) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    spec, folder = write_spec(tmp_path), RunFolder(tmp_path / "run")
    values = [reading(100.0 * second, 100.0) for second in range(200)]
    meter_fake(folder, [FakeSensor("GPU-1", values[:101])], [NOW + n for n in range(101)], stop=stopped)
    attempts = [
        {"attempt": 1, "started_unix_s": NOW, "ended_unix_s": NOW + 100, "status": "stopped" if stopped else "lost"},
        {"attempt": 2, "started_unix_s": NOW + 140, "status": "running"},
    ]
    run: dict[str, Any] = {"world_size": 1, "device_type": "cpu", "attempts": attempts, "meters": []}
    run["model"] = {"flop_per_token": 1e6}
    folder.write_run(run)
    experiment = load_experiment(spec, ["energy.budget.energy=10 Wh"])
    watch = RunWatch(experiment, folder, run, lambda text: None, False)
    watch.look(NOW + 141)
    assert watch.budget.spending.energy_j == pytest.approx(10_000.0)
    # The counter went on from 100 to 150 s, while nobody was there to read it, if nobody ended the first attempt.
    moments = [NOW + n for n in range(150, 200)]
    meter_fake(folder, [FakeSensor("GPU-1", values[150:])], moments, attempt=2)
    mark = {"event": "step", "attempt": 2, "step": 9, "loss": 3.0, "seconds": 1.0, "time_unix_s": NOW + 200}
    folder.metrics_dir.mkdir()
    folder.metrics_file(0).write_text(json.dumps(mark) + "\n")
    with monkeypatch.context() as broken:  # storage that does not answer for a moment
        broken.setattr("orchestrator.driver.run_watch.spent_before", unread)
        watch.look(NOW + 199)
    watch.look(NOW + 200)
    assert watch.budget.spending.energy_j == pytest.approx(10_000.0 if stopped else 15_000.0)


@pytest.mark.parametrize("resumed", [False, True], ids=["started again", "resumed"])
@pytest.mark.parametrize("trained", [False, True], ids=["without a step", "after steps"])
def test_a_budget_that_falls_into_a_later_start_up_is_not_blamed_on_it(
    resumed: bool, trained: bool, tmp_path: Path
) -> None:
    spec, folder = write_spec(tmp_path), RunFolder(tmp_path / "run")
    meter_fake(
        folder, [FakeSensor("GPU-1", [reading(35.0 * n, 35.0) for n in range(101)])], [NOW + n for n in range(101)]
    )
    first = {"attempt": 1, "started_unix_s": NOW, "ended_unix_s": NOW + 100, "status": "failed"}
    second = {"attempt": 2, "started_unix_s": NOW + 100, "status": "running"}
    run: dict[str, Any] = {"world_size": 1, "device_type": "cpu", "attempts": [first, second], "meters": []}
    run["model"] = {"flop_per_token": 1e6}
    if not resumed:
        run["attempts"] = [first]
    folder.write_run(run)
    folder.metrics_dir.mkdir()
    marks: list[dict[str, Any]] = [{"event": "enter", "phase": "train_step", "time_unix_s": NOW + 1}]
    marks += [{"event": "step", "step": 4200, "loss": 3.0, "seconds": 1.0, "time_unix_s": NOW + 2}]

    def train() -> None:
        lines = "".join(json.dumps({"attempt": 1, **mark}) + "\n" for mark in marks if trained)
        folder.metrics_file(0).write_text(lines)

    if resumed:
        train()
    watch = RunWatch(load_experiment(spec, ["energy.budget.energy=1 Wh"]), folder, run, lambda text: None, False)
    if not resumed:
        train()
        watch.look(NOW + 3)
        watch.restarted(2, 1)
    live = folder.path / "live" / "n1.json"
    live.parent.mkdir(exist_ok=True)
    told = {"node": "n1", "meter_pid": 2, "time_unix_s": NOW + 150, "power_w": 10.0, "energy_j": 3590.0}
    device = {"uuid": "GPU-1", "name": "a GPU", "kind": "gpu", "missing": None, "counted": True, "power_w": 10.0}
    live.write_text(json.dumps(told | {"missing": [], "devices": [device | {"energy_j": 3590.0}]}))
    with pytest.raises(BudgetSpent) as spent:
        watch.look(NOW + 150)
    where = "after step 4,200" if trained else "before the run's first step"
    assert str(spent.value) == f"the budget of 1.00 Wh (IT energy) was reached while attempt 2 started, {where}"
    document = spent.value.document
    assert (document["step"], document["startup"]) == (4200 if trained else 0, False)
    assert not (folder.path / "stop").exists()


@pytest.mark.parametrize("cuda", [True, False])
def test_what_others_draw_on_a_shared_cluster_is_not_spent_before_a_rank_has_a_gpu(cuda: bool, tmp_path: Path) -> None:
    """Nor by a run on CPUs ever. A line that a rank of a dead attempt still wrote does not end the start-up."""
    folder = RunFolder(tmp_path / "run")
    run: dict[str, Any] = {"world_size": 1, "device_type": "cuda" if cuda else "cpu", "meters": []}
    run |= {"attempts": [{"attempt": 1, "started_unix_s": NOW, "status": "running"}], "model": {"flop_per_token": 1e6}}
    folder.write_run(run)
    folder.metrics_dir.mkdir()
    live = folder.path / "live" / "n1.json"
    live.parent.mkdir()
    about = {"kind": "gpu", "missing": None, "counted": True, "power_w": 100.0, "energy_j": 7200.0}
    devices = [about | {"uuid": f"GPU-{n}", "name": "a GPU"} for n in (1, 2)]
    devices += [about | {"kind": "cpu", "uuid": "CPU-1", "name": "a CPU", "power_w": 10.0, "energy_j": 100.0}]
    told = {"node": "n1", "meter_pid": 2, "boot_id": "one", "began_monotonic_s": 1.0, "time_unix_s": NOW + 150}
    told |= {"power_w": 210.0, "energy_j": 14_500.0, "missing": [], "devices": devices}
    live.write_text(json.dumps(told))
    options = ["energy.budget.energy=1 Wh"]
    watch = RunWatch(load_experiment(write_spec(tmp_path), options), folder, run, lambda text: None, True)
    watch.look(NOW + 150)
    assert watch.budget.spending.energy_j == pytest.approx(100.0)  # of its CPUs
    watch.restarted(2, 1)
    marks: list[dict[str, Any]] = [{"attempt": 1, "event": "enter", "phase": "train_step", "time_unix_s": NOW + 150}]
    marks += [{"attempt": 2, "event": "devices", "uuids": ["GPU-2"]}] if cuda else []
    folder.metrics_file(0).write_text("".join(json.dumps(mark) + "\n" for mark in marks))
    live.write_text(json.dumps(told, indent=1))  # as it is replaced every second
    if cuda:
        with pytest.raises(BudgetSpent) as spent:
            watch.look(NOW + 151)
        assert spent.value.starting == 2
    else:
        watch.look(NOW + 151)
        assert watch.budget.spending.energy_j == pytest.approx(100.0) and watch.progress.phase == "startup"


def test_workers_that_nobody_held_while_it_waited_are_no_device_hours(tmp_path: Path) -> None:
    """Neither for the budget while the run goes on, nor when it goes on later, nor in its record."""
    options = ["energy.budget.gpu_hours=100", "cluster.device=auto", "cluster.gpu_hour_price=2.50 EUR"]
    experiment, folder = load_experiment(write_spec(tmp_path), options), RunFolder(tmp_path / "run")
    seen = Watch(experiment, Spending(device_hours=5.0), 4, NOW)
    seen.feed(None, NOW + 7200, NOW + 7200)
    seen.waited(5400.0)
    assert seen.spending.device_hours == pytest.approx(5.0 + 4 * 0.5)
    seen.waited(5400.0)  # two clocks: what was spent before is never given back
    assert seen.spending.device_hours == pytest.approx(5.0)

    meter_fake(
        folder, [FakeSensor("GPU-1", [reading(100.0 * n, 100.0) for n in range(11)])], [NOW + n for n in range(11)]
    )
    folder.write_run({"run_id": "run", "world_size": 4, "device_type": "cuda", "created_unix_s": NOW})
    claim = Claim(folder)
    try:
        status = RunStatus(
            claim, [{"attempt": 1, "started_unix_s": time.time() - 7200, "status": "running"}], RunScreen()
        )
        folder.update_run(**status.held(4))
        status.befell("the cluster had no room for the workers")
        status.befell(None)
        for _ in range(10):
            status.waited(540.0)
        assert "error" not in folder.read_run()["attempts"][0]
        assert folder.read_run()["attempts"][0]["waited_s"] == 5400.0  # a driver that is killed now has said it
        status.again("the cluster had no room for the workers", 2)
        status.write("stopped")
    finally:
        claim.release()
    assert spent_before(folder, experiment, 4, attempt=2).device_hours == pytest.approx(4 * 0.5, rel=0.01)
    write_record(folder)
    record = json.loads((folder.path / "footprint.json").read_text())
    assert record["time"]["gpu_hours"] == pytest.approx(4 * 0.5, rel=0.01)
    assert record["run"]["attempts"][0]["error"] == "the cluster had no room for the workers"
