"""A stop that meets a lost worker, or machines that are missing, is a stop, and what was lost is told."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.train import WorkerGroupError
from supervised import Attempts, Clock, Supervised, killed
from supervised import cluster as cluster
from supervised import run as run
from supervised import supervision as supervision
from tiny import write_spec

from energy.runs import RESIZE_FILE, STOP_FILE, RunFolder
from orchestrator.driver import run as driver
from orchestrator.driver import supervise
from orchestrator.driver.run_watch import RunWatch
from orchestrator.driver.supervise import Supervision
from orchestrator.driver.training import Command
from orchestrator.ranks.job import Job
from orchestrator.screens.run import RunScreen
from orchestrator.spec.file import load_experiment

NO_ROOM = "the cluster had no room for the workers"
GONE = "the process of rank 1 (node-b, process 77) was killed, or the machine is gone"
FEW = "the spec wants 4 CPUs and the cluster has 3, 1 too few; set cluster.workers or min_workers"
TOO_FEW = f"waiting for machines to come back: {FEW}"
ENDS = "the run is to stop: no other attempt begins"


@pytest.fixture(autouse=True)
def long_waits(cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for machines in vain fails this test."""
    monkeypatch.setattr(supervise, "RETURN_S", 60.0)
    monkeypatch.setattr(supervise, "POLL_S", 0.001)


@pytest.mark.parametrize(
    ("at", "said", "befell"),
    [
        ("before the loss", [f"{GONE}; {ENDS}"], GONE),
        ("before the step's end", [f"{GONE}; {ENDS}"], GONE),
        ("while others have the machines", [f"{NO_ROOM}; {ENDS}"], NO_ROOM),
        ("while it waits for machines", [f"{GONE}; {TOO_FEW}", ENDS], f"{GONE}; {TOO_FEW}"),
        ("while it waits after an end in order", [TOO_FEW, ENDS], TOO_FEW),
        ("while it makes room", [], None),
        ("after one failure too many", [f"{GONE}; {ENDS}"], GONE),
    ],
)
def test_whenever_it_comes(
    at: str, said: list[str], befell: str | None, supervision: Supervised, run: RunFolder, monkeypatch: Any
) -> None:
    stop, resize = run.path / STOP_FILE, run.path / RESIZE_FILE
    ticks = iter(range(100))

    def few_machines() -> None:
        monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 3.0})
        supervision.tick = lambda: stop.touch() if next(ticks) == 3 else None

    def ended() -> Any:
        if at.startswith("while it waits"):
            few_machines()
        else:
            stop.touch()
        if at in ("while it waits after an end in order", "while it makes room"):
            resize.touch()
            return False
        return killed(1)

    def in_a_step() -> Iterator[Any]:
        stop.touch()
        yield None
        yield killed(1)

    def without_room() -> Iterator[Any]:
        stop.touch()
        yield from Clock(monkeypatch).without_room()

    most = 0 if at == "after one failure too many" else 3
    ends: dict[str, Callable[[], Any]] = {
        "before the step's end": in_a_step,
        "while others have the machines": without_room,
    }
    end = ends.get(at, ended)
    result, told, begun = supervision(end, overrides=(f"cluster.max_failures={most}",))
    assert (result, told, begun) == (False, said, [])
    assert ([None, *supervision.befell])[-1] == befell
    assert bool(supervision.waited_s) == (at.startswith("while it waits") or befell == NO_ROOM)
    assert not resize.exists()


def test_what_would_come_again_is_no_stop(supervision: Supervised, run: RunFolder) -> None:
    """A last checkpoint that the disk refuses is not to be taken for an end in order."""
    (run.path / STOP_FILE).touch()
    refused = WorkerGroupError("", {0: OSError(28, "No space left on device")})
    assert supervision(lambda: refused) == (refused, [], [])
    assert supervision.befell == ["No space left on device"]


class Drives:
    """The driver of a run around the real supervision, watch and run.json, without Ray: its ranks are `Attempts`."""

    def __init__(self, tmp_path: Path, patch: pytest.MonkeyPatch):
        self._path, self._patch = tmp_path, patch
        self.folder = RunFolder(tmp_path / "runs" / "one")

    def meter(self, energy_j: float) -> None:
        """The reading of a node, as its meter leaves it."""
        live = self.folder.path / "live" / "n1.json"
        live.parent.mkdir(exist_ok=True)
        figures = {"node": "n1", "meter_pid": 1, "time_unix_s": time.time(), "power_w": 1.0, "energy_j": energy_j}
        live.write_text(json.dumps(figures | {"boot_id": None, "began_monotonic_s": 0.0, "missing": [], "devices": []}))

    def step(self, number: int) -> None:
        marks: list[dict[str, Any]] = [
            {"event": "enter", "phase": "train_step", "time_unix_s": time.time()},
            {"event": "step", "step": number, "loss": 3.0, "seconds": 0.1, "time_unix_s": time.time()},
        ]
        with self.folder.metrics_file(0).open("a") as file:
            file.writelines(json.dumps({"attempt": 1, "tokens": 256, "lr": 0.1, **mark}) + "\n" for mark in marks)

    def __call__(self, *ends: Callable[[], Any], overrides: tuple[str, ...] = ()) -> tuple[RunFolder, int]:
        def train(command: Command, ending: Any, screen: Any, *_: Any) -> Any:
            experiment, folder = command.experiment, command.folder
            folder.metrics_dir.mkdir()
            run = folder.update_run(device_type="cpu", **ending.held(4))
            watch = RunWatch(experiment, folder, run, screen.note, False)

            def again(error: str | None, workers: int) -> float:
                begun: float = ending.again(error, workers)
                watch.restarted(ending.attempt, workers)
                return begun

            job = Job(str(folder.path), "", {}, command.started_unix_s)
            waited = watch.budget.waited
            supervised = Supervision(experiment, folder, job, again, ending.befell, waited, watch.look, screen.note)
            complete = supervised.run(4, "cpu")
            if not complete:
                watch.ended()
            return complete

        self._patch.setattr(driver, "train", train)
        self._patch.setattr(supervise, "Training", Attempts(*ends))
        experiment = load_experiment(write_spec(self._path, workers=4), overrides)
        return driver.run_experiment(experiment, self._path / "runs", RunScreen(), "one", spec=self._path / "spec.yaml")


@pytest.mark.parametrize("waits", [False, True], ids=["lost worker", "missing machines"])
@pytest.mark.parametrize("budget", [True, False], ids=["budget", "asked"])
def test_the_run_ends_as_stopped_with_what_befell_it(
    budget: bool, waits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    drive = Drives(tmp_path, monkeypatch)
    stop = drive.folder.path / STOP_FILE

    def to_stop() -> None:
        if budget:
            drive.meter(4000.0)
        else:
            stop.touch()

    def trains() -> Iterator[Any]:
        drive.step(1)
        yield None
        if waits:
            monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 3.0})
            monkeypatch.setattr("orchestrator.driver.supervise.time.sleep", lambda _: to_stop())
            yield killed(1)
        to_stop()
        yield None
        assert stop.exists()
        yield killed(1)

    folder, code = drive(trains, overrides=("energy.budget.energy=1 Wh",))
    run, said = folder.read_run(), capfd.readouterr().err
    status = "budget" if budget else "stopped"
    assert (code, run["status"], run["error"]) == (3 if budget else 130, status, None)
    [attempt] = run["attempts"]
    assert attempt["status"] == status and attempt["error"].startswith("the process of rank 1 was killed")
    assert attempt["error"] in said
    assert ("waiting for machines to come back" in attempt["error"]) == waits
    [go_on] = [line for line in said.splitlines() if "--resume" in line]
    assert ("--set 'energy.budget.energy=" in go_on) == budget
    if budget:
        assert "the budget of 1.00 Wh (IT energy) stopped the run after step 1" in said and run["budget"]["step"] == 1
    record = json.loads((folder.path / "footprint.json").read_text())
    assert record["run"]["status"] == status
    assert record["run"]["attempts"][0]["error"] == attempt["error"]


def test_a_budget_that_is_due_while_a_worker_lost_at_the_start_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    drive = Drives(tmp_path, monkeypatch)

    def starts() -> Exception:
        monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 3.0})
        drive.meter(4000.0)
        return killed(1)

    folder, code = drive(starts, overrides=("energy.budget.energy=1 Wh",))
    run, said = folder.read_run(), capfd.readouterr().err
    assert (code, run["status"], run["budget"]["startup"]) == (3, "budget", True)
    assert run["attempts"][0]["error"].startswith("the process of rank 1 was killed")
    assert run["attempts"][0]["error"] in said
