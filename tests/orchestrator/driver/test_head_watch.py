"""A head of a Ray cluster that is gone is noticed; one that is there, or a run that has ended, is not disturbed."""

import socket
import threading
from pathlib import Path

import pytest

from energy.runs import STOP_FILE, RunFolder
from orchestrator.driver import head_watch
from orchestrator.driver.head_watch import HeadWatch, let_ranks_end
from orchestrator.live.running import last_event, last_step
from orchestrator.ranks.loop import StepResult
from orchestrator.ranks.metrics import MetricsFile


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_watch, "ASK_EVERY_S", 0.02)
    monkeypatch.setattr(head_watch, "GONE_S", 0.3)
    monkeypatch.setattr(head_watch, "LOOK_S", 0.01)


def test_a_head_that_is_gone_is_told_once_and_holds_the_end_of_the_run() -> None:
    told, may_end = threading.Event(), threading.Event()
    said: list[str] = []

    def gone(text: str) -> None:
        said.append(text)
        told.set()
        may_end.wait(60)  # here the process ends

    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        watch = HeadWatch(address, gone)
        assert not told.wait(0.6)  # longer than it may be silent
    assert told.wait(60)
    assert said == [f"the head of the Ray cluster ({address}) is gone: no answer for 0.3 s"]
    closing = threading.Thread(target=watch.close)
    closing.start()
    closing.join(0.1)
    assert closing.is_alive()  # the main thread writes nothing meanwhile
    may_end.set()
    closing.join(60)
    assert not closing.is_alive()


def test_after_its_end_nobody_is_told() -> None:
    said: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as head:
        watch = HeadWatch(f"127.0.0.1:{head.getsockname()[1]}", said.append)
        watch.close()
    watch._thread.join(60)
    assert said == []


def test_the_ranks_are_asked_for_a_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(tmp_path)
    run.metrics_dir.mkdir()
    let_ranks_end(run)  # none has come to a step
    assert (run.path / STOP_FILE).exists()
    metrics = MetricsFile(run.metrics_file(0), attempt=1, rank=0, batch_tokens=8, started_unix_s=0.0)

    def end() -> None:
        for step in (12, 13):  # the second one sees the request
            metrics.phase("train_step", step)
            metrics.step(step, StepResult(loss=1.0, grad_norm=1.0, lr=0.1, stop=step == 13))
            metrics.phase("checkpoint", step)
        metrics.close()

    monkeypatch.setattr(head_watch, "CHECKPOINT_S", 60.0)
    metrics.phase("train_step", 11)
    threading.Timer(0.05, end).start()
    let_ranks_end(run)
    last, ended = last_step(run), last_event(run)
    assert last is not None and last["step"] == 13 and ended is not None and ended["phase"] == "checkpoint"
    monkeypatch.setattr(head_watch, "CHECKPOINT_S", 0.1)
    run.metrics_file(0).write_text('{"attempt": 1, "event": "step", "step": 13}\n')
    let_ranks_end(run)  # rank 0 is gone too: it does not wait for ever
    begun = run.path / "checkpoints" / ".step-00000013.partial"
    begun.mkdir(parents=True)
    monkeypatch.setattr(head_watch, "CHECKPOINT_S", 0.0)
    looks: list[float] = []

    def look(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 5:
            begun.rmdir()

    monkeypatch.setattr(head_watch.time, "sleep", look)
    let_ranks_end(run)  # a checkpoint that takes longer is waited for
    assert len(looks) == 5
