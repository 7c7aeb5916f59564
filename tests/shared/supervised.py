"""The supervision of a training whose attempts come to what a test says, without Ray."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError, WorkerHealthCheckFailedError
from tiny import write_spec

from energy.runs import RunFolder
from orchestrator.cluster import capacity
from orchestrator.driver import places, supervise
from orchestrator.ranks.worker import Job
from orchestrator.spec.file import load_experiment

ECHO = RuntimeError("[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234")
NOT_ASKED, NO_ROOM = "not asked", "no room"  # what an attempt may yield while it goes on, and held is
Result = tuple[Any, list[str], list[tuple[str | None, int]]]


def killed(*ranks: int) -> WorkerGroupError:
    """What Ray Train raises when the processes of `ranks` are gone and the others say so."""
    failures: dict[int, Exception] = {rank: WorkerHealthCheckFailedError("gone", ActorDiedError()) for rank in ranks}
    return WorkerGroupError("gone", failures | {rank: ECHO for rank in range(2) if rank not in ranks})


class EndedAtOnce(Exception):
    """As a budget or Ctrl-C in the start-up: it leaves from the middle of an attempt."""


class Clock:
    """The time that waiting goes by; it passes in what waits alone."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.now_s = 1000.0
        patch.setattr(places, "time", self)

    def monotonic(self) -> float:
        return self.now_s

    def without_room(self) -> Iterator[Any]:
        """A try in vain: 2 s of Ray Train's own start, and 20 without room."""
        for room in (NOT_ASKED, *[NO_ROOM] * 10):
            yield room
            self.now_s += 2.0
        yield ControllerError(WorkerGroupStartupTimeoutError(4))


def save(run: RunFolder, step: int, error: Exception) -> Exception:
    path = run.path / "checkpoints" / f"step-{step:08d}"
    path.mkdir(parents=True)
    (path / ".metadata").touch()
    return error


class Attempts:
    """In place of Ray Train: what each attempt comes to, an error or whether all was trained."""

    def __init__(self, *ends: Callable[[], Any]):
        self.ends, self.workers = list(ends), list[int]()
        self.holding = 0  # attempts that have not given their machines back

    def __call__(self, job: Job, workers: int, device: str, storage: str) -> "Attempts":
        self.job = job
        self.workers.append(workers)
        self.complete: Any = None
        self.error: Exception | None = None
        self._room: bool | None = True
        return self

    def start(self) -> None:
        self.holding += 1
        self._became(self.ends.pop(0)())

    def _became(self, end: Any) -> None:
        self.error, self.complete = (end, None) if isinstance(end, Exception) else (None, end)

    def is_alive(self) -> bool:
        """An end that is a generator is one that takes its time, and says meanwhile what room there is."""
        if isinstance(self.complete, Iterator):
            step = next(self.complete)
            if step is None or isinstance(step, str):
                self._room = {NOT_ASKED: None, NO_ROOM: False}.get(step, True)
            else:
                self._became(step)
        return isinstance(self.complete, Iterator)

    def has_room(self) -> bool | None:
        return self._room

    def give_back(self) -> None:
        assert not self.is_alive()
        self.holding -= 1

    def join(self, timeout: float) -> None:
        pass

    def abandon(self) -> None:
        pass


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.write_run({"attempts": [{"attempt": 1, "started_unix_s": 100.0}]})
    folder.metrics_dir.mkdir()
    folder.metrics_file(1).write_text('{"attempt": 1, "event": "process", "host": "node-b", "pid": 77}\n')
    return folder


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four CPUs that nobody else uses."""
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0})
    monkeypatch.setattr(ray, "nodes", list)
    monkeypatch.setattr(capacity, "free_by_node", lambda: {"a": ray.cluster_resources()})
    monkeypatch.setattr(capacity, "_ranks_by_node", dict)
    monkeypatch.setattr(capacity, "draining", set)
    monkeypatch.setattr(supervise, "ranks_to_lose", lambda: 0)
    monkeypatch.setattr(supervise, "RETURN_S", 0.0)


class Supervised:
    """Runs the ends of attempts; (result or error, texts said, attempts begun)."""

    def __init__(self, folder: RunFolder, spec: Path, patch: pytest.MonkeyPatch):
        self._folder, self._spec, self._patch = folder, spec, patch
        self.said: list[str] = []
        self.begun: list[tuple[str | None, int]] = []
        self.befell: list[str | None] = []
        self.waited_s: list[float] = []
        self.waited: Callable[[float], None] = self.waited_s.append
        self.tick: Callable[[], None] = lambda: None

    def _again(self, error: str | None, workers: int) -> float:
        self.begun.append((error, workers))
        return 200.0

    def __call__(self, *ends: Callable[[], Any], overrides: tuple[str, ...] = (), device: str = "cpu") -> Result:
        attempts = Attempts(*ends)
        self._patch.setattr(supervise, "Training", attempts)
        supervised = supervise.Supervision(
            load_experiment(self._spec, overrides),
            self._folder,
            Job(str(self._folder.path), "", {}, 100.0),
            self._again,
            self.befell.append,
            self.waited,
            lambda: self.tick(),
            self.said.append,
        )
        try:
            result: Any = supervised.run(4, device)
        except Exception as error:
            result = error
        assert attempts.ends == []
        assert isinstance(result, EndedAtOnce) or attempts.holding == 0
        assert attempts.job.started_unix_s == (200.0 if self.begun else 100.0)
        return result, self.said, self.begun


@pytest.fixture
def supervision(run: RunFolder, cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Supervised:
    return Supervised(run, write_spec(tmp_path, workers=4), monkeypatch)
