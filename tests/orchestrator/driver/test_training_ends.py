"""However a training ends, all that it had opened is ended, also where one of the endings fails."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny import write_spec

from energy.runs import RunFolder
from orchestrator.driver import training
from orchestrator.spec.file import load_experiment


@pytest.mark.parametrize("failing", [None, "choices", "skipped", "meters"])
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
    claim = SimpleNamespace(folder=folder, free_space=ends("space"))
    command: Any = SimpleNamespace(experiment=load_experiment(write_spec(tmp_path)), claim=claim, folder=folder)
    stops: Any = SimpleNamespace(install=lambda: None, finishing=ends("stops"))
    with pytest.raises(OSError if failing else RuntimeError, match=failing or "what made it fail") as raised:
        training.train(command, SimpleNamespace(attempt=1), SimpleNamespace(), stops, lambda said: None)  # type: ignore[arg-type]
    assert ended == ["head watch", "stops", "space", "choices", "skipped", "meters", "ray"]
    assert failing is None or "what made it fail" in str(raised.value.__context__)
