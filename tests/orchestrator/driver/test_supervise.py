"""Which failures are followed by another attempt, how many, and what is noted of the attempt that failed."""

import errno
import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, OutOfMemoryError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from supervised import ECHO, killed, save
from supervised import cluster as cluster
from supervised import run as run
from supervised import supervision as supervision

from energy.accounting.account import lost_windows
from energy.runs import RESIZE_FILE, RunFolder
from orchestrator.cluster import capacity
from orchestrator.driver import notices, supervise
from orchestrator.driver.failures import Failure, TrainingLost

SILENCE = "A worker health check has been hanging for 600.52 seconds. Marking the worker as dead.\nWorker info: ..."
LOW = "Task was killed due to the node running low on memory.\nPID MEM(GB) COMMAND\nRefer to the documentation"  # Ray's


@pytest.mark.parametrize(
    ("error", "said", "transient"),
    [
        (killed(1), "the process of rank 1 (node-b, process 77) was killed, or the machine is gone", True),
        (killed(0, 1), "the processes of ranks 0, 1 (node-b, process 77) were killed, or the machine is gone", True),
        (
            WorkerGroupError("gone", {0: ECHO, 1: WorkerHealthCheckFailedError("gone", OutOfMemoryError(LOW))}),
            "the process of rank 1 (node-b, process 77) was killed by Ray, because the machine ran low on memory",
            True,
        ),
        (
            WorkerGroupError("", {0: ECHO, 1: WorkerHealthCheckTimeoutError(SILENCE)}),
            "the process of rank 1 (node-b, process 77) did not answer Ray for 601 s: stopped, or on a machine that",
            True,
        ),
        (ActorDiedError(), "the controller of Ray Train was killed, or its machine is gone", True),
        (WorkerGroupError("", {0: ECHO}), "RuntimeError: " + str(ECHO), True),
        (WorkerGroupError("", {0: ECHO, 1: FloatingPointError("the loss is nan")}), "the loss is nan", False),
        (WorkerGroupError("", {1: RuntimeError("CUDA error: uncorrectable ECC error encountered")}), "ECC", True),
        (
            WorkerGroupError("", {1: RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")}),
            "out of memory",
            False,
        ),
    ],
    ids=[
        "one killed",
        "all killed",
        "low on memory",
        "stopped",
        "controller",
        "echo alone",
        "nan",
        "broken device",
        "out of memory",
    ],
)
def test_what_would_come_again_is_told_from_what_would_not(
    run: RunFolder, error: Exception, said: str, transient: bool
) -> None:
    failure = Failure.of(error, run, 1)
    assert failure.transient == transient
    assert said in f"RuntimeError: {failure.said}"


def test_a_killed_worker_is_followed_by_another_attempt(supervision: Any, run: RunFolder) -> None:
    result, said, begun = supervision(lambda: save(run, 8, killed(1)), lambda: True)
    assert result is True
    [(error, workers)] = begun
    assert "rank 1" in error and workers == 4
    assert said == [f"attempt 2 begins: {error}"]


def test_what_would_come_again_ends_the_run_at_once(supervision: Any) -> None:
    error = WorkerGroupError("", {0: FloatingPointError("the loss is nan")})
    assert supervision(lambda: error) == (error, [], [])


def test_failures_without_a_new_checkpoint_are_limited_and_others_are_not(supervision: Any, run: RunFolder) -> None:
    result, _, begun = supervision(
        lambda: killed(1),
        lambda: killed(1),
        lambda: save(run, 8, killed(1)),
        lambda: killed(0),
        lambda: save(run, 16, killed(0)),
        lambda: killed(0),
        lambda: killed(0),
        overrides=("cluster.max_failures=2",),
    )
    assert isinstance(result, TrainingLost)
    assert str(result).endswith("3 times without a new checkpoint (cluster.max_failures is 2)")
    assert len(begun) == 6


def test_a_checkpoint_that_cannot_be_read_does_not_hide_that_others_are_written(
    supervision: Any, run: RunFolder
) -> None:
    """The training goes on from an older one, and may be lost again before it is where the newest was."""
    result, _, begun = supervision(
        lambda: save(run, 1000, killed(1)),
        lambda: save(run, 900, killed(1)),
        lambda: save(run, 950, killed(1)),
        lambda: True,
        overrides=("cluster.max_failures=1",),
    )
    assert result is True and len(begun) == 3


def test_it_goes_on_with_the_workers_that_are_left(
    supervision: Any, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def node_lost() -> Exception:
        monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 3.0})
        return killed(1)

    result, said, begun = supervision(node_lost, lambda: True, overrides=("cluster.min_workers=2",))
    assert result is True
    assert begun[0][1] == 2  # 3 do not divide the batch of 8 sequences
    assert "attempt 2 begins with 2 workers instead of 4" in said[0]


def test_when_machines_come_back_it_makes_a_checkpoint_and_goes_on_with_more(
    supervision: Any, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "LOOK_S", 0.0)
    resize = run.path / RESIZE_FILE

    def node_lost() -> Exception:
        monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
        return killed(1)

    def with_two() -> Iterator[bool | None]:
        yield None
        assert not resize.exists()
        monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0})
        yield None
        yield None
        assert resize.exists()
        save(run, 9, ECHO)
        yield False  # as the trainer answers a stop, or this

    def with_four() -> bool:
        assert not resize.exists()
        return True

    result, said, begun = supervision(node_lost, with_two, with_four, overrides=("cluster.min_workers=2",))
    assert result is True
    assert [workers for _, workers in begun] == [2, 4] and begun[1][0] is None
    assert said[1:] == [
        "there is room for 4 workers again: a checkpoint, and on with them",
        "attempt 3 begins with 4 workers instead of 2",
    ]


def test_what_ray_does_not_say_costs_no_training_and_is_told_once(
    supervision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "LOOK_S", 0.0)

    def changed() -> int:
        raise AttributeError("actors\nhas no attribute 'get'")

    monkeypatch.setattr(supervise, "ranks_to_lose", changed)

    def trains() -> Iterator[bool | None]:
        yield None
        yield None
        yield True

    result, said, _ = supervision(trains)
    silence = "Ray does not say which machines are to be taken away (AttributeError: has no attribute 'get')"
    assert (result, said) == (True, [silence])


def test_a_machine_that_is_announced_to_go_costs_no_step(
    supervision: Any, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "LOOK_S", 0.0)
    node = {"NodeID": "b", "Alive": True, "Resources": {"CPU": 2.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": "a", "Alive": True, "Resources": {"CPU": 2.0}}, node])

    def noticed() -> Iterator[bool | None]:
        monkeypatch.setattr(capacity, "draining", lambda: {"b"})
        monkeypatch.setattr(supervise, "ranks_to_lose", lambda: 2)
        yield None
        yield None
        assert (run.path / RESIZE_FILE).exists()
        monkeypatch.setattr(supervise, "ranks_to_lose", lambda: 0)
        save(run, 9, ECHO)
        yield False

    result, said, begun = supervision(noticed, lambda: True, overrides=("cluster.min_workers=2",))
    assert (result, begun) == (True, [(None, 2)])
    assert said == [
        "the machine of 2 of 4 ranks is to be taken away: a checkpoint, and on elsewhere",
        "attempt 2 begins with 2 workers instead of 4",
    ]


def test_storage_that_is_away_for_a_moment_ends_no_training(
    supervision: Any, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "LOOK_S", 0.0)
    monkeypatch.setattr(supervise, "ranks_to_lose", lambda: 2)
    resize, away = run.path / RESIZE_FILE, set[str]()

    def while_it_is_there(work: Any) -> Any:
        def asked(path: Path, *arguments: Any, **more: Any) -> Any:
            if work.__name__ in away and path.parent == run.path:
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
            return work(path, *arguments, **more)

        return asked

    for work in (Path.exists, Path.touch, Path.glob):
        monkeypatch.setattr(Path, work.__name__, while_it_is_there(work))

    def killed_meanwhile() -> Iterator[Any]:
        away.add("glob")  # of checkpoints
        yield killed(1)

    def trains() -> Iterator[Any]:
        away.add("exists")
        yield None
        away.remove("exists")
        away.add("touch")
        yield None
        yield None
        away.remove("touch")
        yield None
        assert resize.exists()
        away.add("exists")
        yield False

    def with_others() -> bool:
        away.clear()
        return True

    result, said, _ = supervision(killed_meanwhile, trains, with_others)
    assert result is True
    refused = "cannot be seen or changed (Input/output error): tried again, and the training goes on"
    assert sum(refused in text for text in said) == 3  # once for each file


def test_ranks_that_are_told_to_end_are_named_and_the_first_of_them_only(
    supervision: Any, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:

        def noticed() -> bool:
            for rank in ("1", "0"):  # as two processes would
                monkeypatch.setenv("RANK", rank)
                notices.listen(str(run.path))
                signal.raise_signal(signal.SIGTERM)
                with pytest.raises(KeyboardInterrupt):  # whoever repeats it means it
                    signal.raise_signal(signal.SIGTERM)
            save(run, 9, ECHO)
            return False

        result, said, begun = supervision(noticed, lambda: True)
        assert (result, begun) == (True, [(None, 4)])
        assert said == [
            f"rank 1 ({socket.gethostname()}, process {os.getpid()}) was asked to end (SIGTERM), as before its machine "
            "is taken away",
            "attempt 2 begins",
        ]
        notices.listen(str(run.path))
        notices.be_deaf()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        assert not (run.path / RESIZE_FILE).exists()
        notices.listen(str(run.path / "gone"))
        with pytest.raises(KeyboardInterrupt):  # nobody can be asked: it ends as it would have
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_notice_that_nobody_could_answer_any_more_is_forgotten(supervision: Any, run: RunFolder) -> None:
    def noticed_and_killed() -> Exception:
        notices.leave(run.path, "rank 1 was asked to end")
        return killed(1)

    def trained() -> bool:
        assert not (run.path / RESIZE_FILE).exists()  # else it would end at its first step
        return True

    result, said, _ = supervision(noticed_and_killed, trained)
    assert result is True and len(said) == 1 and "was killed" in said[0]


@pytest.mark.parametrize(
    "gone",
    [
        WorkerGroupStartupFailedError("At least one of the worker actors failed to initialize."),
        ActorDiedError(),
        WorkerGroupStartupFailedError(
            "One of the worker actors failed: ... raised in its creation task\nOSError: no disk"
        ),
    ],
)
def test_a_worker_that_is_killed_while_it_starts_is_started_again(supervision: Any, gone: Exception) -> None:
    result, said, begun = supervision(lambda: ControllerError(gone), lambda: True)
    assert result is True and len(begun) == 1
    assert "a worker was gone before the training began: killed, or its machine is lost" in said[0]
    assert ("(no disk)" in said[0]) == ("creation task" in str(gone))


@pytest.mark.parametrize(
    ("device", "left", "said"),
    [
        ("cpu", {"CPU": 3.0}, "the spec wants 4 CPUs and the cluster has 3"),
        ("cuda", {"CPU": 16.0}, "the spec wants 4 GPUs and the cluster has 0, 4 too few; the attempts before trained"),
        ("cuda", {"CPU": 16.0, "GPU": 2.0}, "the spec wants 4 GPUs and the cluster has 2"),
    ],
)
def test_too_few_machines_are_waited_for_and_named(
    device: str, left: dict[str, float], said: str, supervision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def node_lost() -> Exception:
        monkeypatch.setattr(ray, "cluster_resources", lambda: left)
        return killed(1)

    result, told, begun = supervision(node_lost, overrides=("cluster.device=auto",), device=device)
    assert isinstance(result, TrainingLost) and said in str(result)
    assert "waiting for machines to come back" in told[0] and begun == []


def test_what_rank_0_notes_is_said(supervision: Any, run: RunFolder) -> None:
    events: list[dict[str, Any]] = [
        {"event": "resumed", "step": 0},  # of a new run: there is nothing to say
        {"event": "resumed", "step": 0, "attempt": 2},
        {"event": "resumed", "step": 16, "attempt": 3},
        {"event": "warning", "said": "the checkpoint step-8 is damaged"},
        {"event": "skipped", "step": 12, "reason": "the loss is nan", "first_sequence": 88, "last_sequence": 95},
    ]

    def trained() -> bool:
        run.metrics_file(0).write_text("".join(json.dumps({"attempt": 1, **event}) + "\n" for event in events))
        return True

    assert supervision(trained)[1] == [
        "attempt 2 goes on from the start, for want of a checkpoint",
        "attempt 3 goes on from step 16",
        "the checkpoint step-8 is damaged",
        "step 12 was skipped: the loss is nan (sequences 88 to 95)",
    ]


def test_the_end_of_a_dead_attempt_is_lost_time(run: RunFolder) -> None:
    marks: list[dict[str, Any]] = [
        {"attempt": 1, "event": "phase", "phase": "train_step", "start_unix_s": 10.0, "end_unix_s": 15.0},
        {"attempt": 1, "event": "step", "step": 9, "time_unix_s": 17.0, "seconds": 1.0},
    ]
    torn = '{"attempt": 1, "event": "ph'
    run.metrics_file(0).write_text("".join(json.dumps(mark) + "\n" for mark in marks) + torn)
    supervise.close_attempt(run, 1, 20.0)
    assert run.phases()[-1] == {
        "attempt": 1,
        "event": "phase",
        "phase": "lost",
        "start_unix_s": 17.0,
        "end_unix_s": 20.0,
    }
    with run.metrics_file(0).open("a") as file:
        file.write('{"attempt": 2, "event": "step", "step": 9, "time_unix_s": 31.0, "seconds": 1.0}\n')
    [(start, end)] = lost_windows(run.steps(), run.phases())
    assert (start, end) == (16.0, 20.0)  # from the beginning of the step that was done again
