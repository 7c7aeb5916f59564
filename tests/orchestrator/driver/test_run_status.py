"""What run.json says of a run whose driver lost it, or was ended by a second signal, or whose clock was set."""

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from driven import start as start

from energy.runs import LOCK, RunFolder
from orchestrator.driver import run_status
from orchestrator.driver.run_lock import RunTaken
from orchestrator.screens.run import RunScreen


@pytest.mark.parametrize("fails", [False, True])
def test_who_lost_the_run_to_another_writes_no_more_of_it(fails: bool, start: Any, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "one")
    other = {"host": "elsewhere", "pid": 4711, "started_unix_s": 0.0, "job": None, "token": "t"}

    def files() -> dict[str, bytes]:
        found = (path for path in folder.path.rglob("*") if path.is_file() and path.name != "ray.log")
        return {path.name: path.read_bytes() for path in found}

    def training(*_: Any) -> bool:
        (folder.path / LOCK).write_text(json.dumps(other))
        left.update(files())
        if fails:
            raise RuntimeError("no rank is left")
        return True

    left: dict[str, bytes] = {}
    with pytest.raises(RunTaken, match="host elsewhere, process 4711"):
        start(training)
    assert ".reserve" in left and files() == left


def test_a_second_signal_while_the_ending_is_written_does_not_lose_it(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Left(BaseException):
        """As the end of the process, after which nothing of it goes on."""

    said = []

    def training(command: Any, ending: Any, screen: Any, stops: Any, *_: Any) -> bool:
        def leave(code: int) -> None:
            said.append((code, command.folder.read_run()["status"]))
            raise Left

        def interrupted(descriptor: int) -> None:
            monkeypatch.setattr(os, "fsync", lambda descriptor: None)
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)

        monkeypatch.setattr(os, "_exit", leave)
        monkeypatch.setattr(os, "fsync", interrupted)
        stops.finishing()
        return True

    with pytest.raises(Left):
        start(training)
    assert said == [(130, "completed")]


def test_a_clock_that_is_set_makes_no_device_hours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = SimpleNamespace(unix_s=1000.0, steady_s=5.0)

    def passes(seconds: float, set_s: float) -> None:
        now.steady_s += seconds
        now.unix_s += seconds + set_s

    clocks = SimpleNamespace(time=lambda: now.unix_s, monotonic=lambda: now.steady_s)
    monkeypatch.setattr(run_status, "time", clocks)
    folder = RunFolder(tmp_path)
    claim: Any = SimpleNamespace(folder=folder, require_held=lambda: None, free_space=lambda: None)
    status = run_status.RunStatus(claim, [{"attempt": 1, "started_unix_s": 1000.0}], RunScreen(quiet=True))
    passes(60.0, set_s=3600.0)
    assert status.again("lost", 2) == 4660.0  # by the clock as it is now, as ranks and meters write
    passes(30.0, set_s=-7200.0)
    status.write("stopped")
    run = folder.read_run()
    assert [each["ended_unix_s"] - each["started_unix_s"] for each in run["attempts"]] == [60.0, 30.0]
    assert run["ended_unix_s"] == now.unix_s
