"""However a training ends, all that it had opened is ended, also where one of the endings fails."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from tiny import write_spec

from energy.runs import RunFolder
from orchestrator.driver import training
from orchestrator.driver.run_lock import RunTaken
from orchestrator.spec.file import load_experiment


@pytest.mark.parametrize("failing", [None, "choices", "skipped", "meters", "taken"])
def test_each_is_ended_whatever_befalls_another(
    failing: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []

    def ends(name: str, result: Any = None) -> Any:
        def end(*_: Any) -> Any:
            ended.append(name)
            if name == failing:
                raise OSError(f"no room for the {name}")
            return result

        return end

    def too_few(*_: Any) -> Any:
        raise RuntimeError("what made it fail")

    monkeypatch.setattr("orchestrator.driver.launch.start_ray", lambda experiment: None)
    monkeypatch.setattr("orchestrator.driver.launch.head_address", lambda: "127.0.0.1:1")
    monkeypatch.setattr("orchestrator.cluster.capacity.choose_workers", too_few)
    monkeypatch.setattr("orchestrator.cluster.meters.stop_meters", ends("meters", ([], {})))
    monkeypatch.setattr("orchestrator.driver.own_ray.leave_ray", ends("ray"))
    monkeypatch.setattr(training, "HeadWatch", lambda *_: SimpleNamespace(close=ends("head watch")))
    monkeypatch.setattr(training, "keep_choices", ends("choices"))
    monkeypatch.setattr(training, "keep_skipped", ends("skipped"))
    folder = RunFolder(tmp_path / "run")
    folder.write_run({"attempts": []})

    def require_held() -> None:
        if failing == "taken":
            raise RunTaken("another has it")

    monkeypatch.setattr(os, "_exit", lambda code: ended.append(f"left with {code}"))
    process = SimpleNamespace(children=lambda recursive: [SimpleNamespace(kill=ends("rank"))])
    monkeypatch.setattr(psutil, "Process", lambda: process)
    claim = SimpleNamespace(folder=folder, free_space=ends("space"), require_held=require_held)
    command: Any = SimpleNamespace(experiment=load_experiment(write_spec(tmp_path)), claim=claim, folder=folder)
    stops: Any = SimpleNamespace(install=lambda: None, finishing=ends("stops"))
    screen: Any = SimpleNamespace(failed=lambda lines: ended.extend(lines), release=ends("screen"))
    fault = None if failing == "taken" else failing
    with pytest.raises(OSError if fault else RuntimeError, match=fault or "what made it fail") as raised:
        training.train(command, SimpleNamespace(attempt=1), screen, stops, lambda said: None)  # type: ignore[arg-type]
    if failing == "taken":  # before all that would be written into another's folder
        left = ["rank", "another has it", "screen", "left with 1"]
        assert ended[: len(left)] == left
        ended = ended[len(left) :]
    assert ended == ["head watch", "stops", "space", "choices", "skipped", "meters", "ray"]
    assert fault is None or "what made it fail" in str(raised.value.__context__)


@pytest.mark.parametrize("does", ["tick", "again"])
def test_a_run_that_another_has_is_left_before_anything_is_written(does: str) -> None:
    class Left(Exception):
        pass

    def leave() -> None:
        raise Left

    nothing: Any = None  # would be an error of another kind
    beside = training._Beside(nothing, "cpu", nothing, [], nothing, nothing, nothing, nothing, leave)
    with pytest.raises(Left):
        beside.tick() if does == "tick" else beside.again("lost", 2)
