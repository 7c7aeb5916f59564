"""A step that does not end: which rank stood where is written down, and the process ends."""

import json
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest

from energy.runs import RunFolder
from orchestrator.ranks import watchdog
from orchestrator.ranks.watchdog import EXIT_CODE, HANGS, LEAST_S, UNKNOWN_S, Watchdog, hang_of, where

LONG_S = 60.0  # that nothing of a test comes near to


class Ended:
    """In place of the end of the process."""

    def __init__(self) -> None:
        self.codes: list[int] = []
        self.seen = threading.Event()

    def __call__(self, code: int) -> None:
        self.codes.append(code)
        self.seen.set()


@pytest.fixture
def ended() -> Ended:
    return Ended()


@pytest.fixture
def watched(tmp_path: Path, ended: Ended) -> Iterator[Watchdog]:
    watch = Watchdog(tmp_path, 2, 1, 0.3, end=ended, grace_s=0.1)
    yield watch
    watch.close()


def reads_from_a_disk_that_hangs(until: threading.Event) -> None:
    until.wait(LONG_S)


def test_a_step_past_its_deadline_is_told_with_its_place_and_ended(
    tmp_path: Path, watched: Watchdog, ended: Ended
) -> None:
    watched.enter("train_step", 1)  # the first one may take long
    watched.enter("train_step", 2)
    reads_from_a_disk_that_hangs(ended.seen)
    assert ended.codes == [EXIT_CODE]
    told = json.loads((tmp_path / HANGS / "attempt-2-rank-1.json").read_text())
    assert (told["rank"], told["phase"], told["step"], told["deadline_s"]) == (1, "train_step", 2, 0.3)
    assert told["waited_s"] > 0.3
    assert "wait (" in told["where"]
    stacks = (tmp_path / HANGS / "attempt-2-rank-1.txt").read_text()
    assert "reads_from_a_disk_that_hangs" in stacks and "_watch" in stacks


def test_what_was_told_stays_when_another_rank_ends_first_and_goes_when_all_is_well(
    tmp_path: Path, ended: Ended
) -> None:
    for well in (False, True):
        watch = Watchdog(tmp_path, 1, 0, 0.2, end=ended, grace_s=LONG_S)
        watch.enter("train_step", 1)
        watch.enter("train_step", 2)
        told = tmp_path / HANGS / "attempt-1-rank-0.json"
        until = time.monotonic() + LONG_S
        while not told.exists():
            assert time.monotonic() < until
            time.sleep(0.01)
        watch.close(well)
        assert told.exists() != well and told.with_suffix(".txt").exists() != well
        told.unlink(missing_ok=True)
    assert ended.codes == []


def test_steps_that_go_on_and_phases_without_a_usual_time_are_left_alone(
    tmp_path: Path, watched: Watchdog, ended: Ended
) -> None:
    for step in range(1, 6):
        watched.enter("train_step", step)
        time.sleep(0.15)
    watched.enter("checkpoint", 5)  # the first one
    time.sleep(0.6)
    assert ended.codes == []
    watched.close()
    assert list((tmp_path / HANGS).iterdir()) == []


def test_a_long_evaluation_that_beats_lives_and_a_silent_one_does_not(
    watched: Watchdog, ended: Ended, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "UNKNOWN_S", 0.3)
    watched.enter("evaluation", 5)
    for _ in range(6):
        time.sleep(0.1)
        watched.beat()
    assert ended.codes == []
    watched.enter("train_step", 6)
    watched.enter("evaluation", 6)  # its deadline is now that of a step
    assert ended.seen.wait(LONG_S)


def test_auto_follows_what_steps_take(tmp_path: Path) -> None:
    watch = Watchdog(tmp_path, 1, 0, None, end=lambda code: None)
    try:
        assert watch._limit("train_step") == UNKNOWN_S  # it compiles, connects and allocates
        watch._usual["train_step"] = deque([1.0, 1.2, 90.0])
        assert watch._limit("train_step") == LEAST_S
        watch._usual["train_step"].extend([100.0] * 10)
        assert watch._limit("train_step") == 1000.0
        assert watch._limit("evaluation") == UNKNOWN_S
        watch._deadline_s = 60.0
        watch._usual["checkpoint"] = deque([20.0])
        assert watch._limit("train_step") == 60.0
        assert watch._limit("checkpoint") == 200.0  # a deadline of steps does not hurry what takes longer
    finally:
        watch.close()


def test_the_place_is_the_call_and_who_of_ours_called_it() -> None:
    frame = sys._getframe()
    assert where(frame).startswith("test_the_place_is_the_call_and_who_of_ours_called_it (ranks/test_watchdog.py:")


def test_a_hang_is_told_in_one_line_with_the_rank_that_is_silent(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for rank in range(3):
        run.metrics_file(rank).parent.mkdir(exist_ok=True)
        process = {"attempt": 4, "event": "process", "host": f"node-{rank}", "pid": 100 + rank}
        run.metrics_file(rank).write_text(json.dumps(process) + "\n")
    # A rank of an earlier attempt, with more workers, is not missed.
    run.metrics_file(3).write_text('{"attempt": 3, "event": "process", "host": "node-3", "pid": 103}\n')
    assert hang_of(run, 4) is None
    (tmp_path / HANGS).mkdir(parents=True)
    for rank in (0, 2):
        told = {"rank": rank, "phase": "train_step", "step": 57, "deadline_s": 60.0, "where": "all_reduce (x.py:1)"}
        (tmp_path / HANGS / f"attempt-4-rank-{rank}.json").write_text(json.dumps(told))
    said = hang_of(run, 4)
    assert said is not None
    assert said.startswith(
        "a hang: step 57 was not done after 60 s; ranks 0, 2 in all_reduce (x.py:1); rank 1 (node-1, "
    )
    assert "process 101) without a word" in said and "rank 3" not in said
    assert hang_of(run, 3) is None
