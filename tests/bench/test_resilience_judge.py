"""What the benchmark of kills and meters lets pass, and what its page says of results of before."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.report import RESULTS
from benchmarks.resilience import judge, kills, meters
from benchmarks.resilience.judge import Kill, Reference
from benchmarks.resilience.table import markdown
from energy.runs import RunFolder

RESULT: dict[str, Any] = json.loads((RESULTS / "resilience.json").read_text())


def folder(path: Path, *attempts: tuple[range, float]) -> RunFolder:
    """Of each attempt its steps, and when it trained the first of them; one step takes a hundredth of a second."""
    run = RunFolder(path / "run")
    run.write_run({"attempts": [{"status": "lost"}] * (len(attempts) - 1) + [{"status": "completed"}]})
    run.metrics_dir.mkdir(parents=True, exist_ok=True)
    with run.metrics_file(0).open("w") as file:
        for number, (steps, begun_s) in enumerate(attempts, start=1):
            for index, step in enumerate(steps):
                told = {"event": "step", "attempt": number, "step": step, "loss": 1.0}
                file.write(json.dumps(told | {"time_unix_s": begun_s + index / 100}) + "\n")
    return run


@pytest.mark.parametrize(
    ("last", "step", "whole_step", "partial", "resumed", "wrong"),
    [
        (60, 60, 50, False, 51, []),
        (
            60,
            60,
            50,
            False,
            26,
            ["attempt 2 began at step 26, though checkpoint step-50 was whole", "attempt 1 lost 35 steps"],
        ),
        (60, 60, 50, True, 26, ["attempt 2 began at step 26, though checkpoint step-50 was whole"]),
        (75, 75, 50, False, 51, []),  # the next checkpoint had not begun
        (76, 76, 50, False, 51, ["attempt 1 lost 26 steps"]),
        (76, 76, 50, True, 51, []),
        (76, 70, 50, False, 51, []),  # the ranks trained on after their driver's death
        (49, 49, 0, False, 1, ["attempt 1 lost 49 steps"]),
        (99, 99, 50, True, 51, []),
        (100, 100, 50, True, 51, ["attempt 1 lost 50 steps"]),
        (60, 60, 50, False, 62, ["attempt 1 lost -1 steps"]),
    ],
)
def test_no_attempt_may_overlook_a_checkpoint_that_was_whole_or_lose_more_than_an_interval(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    last: int,
    step: int,
    whole_step: int,
    partial: bool,
    resumed: int,
    wrong: list[str],
) -> None:
    run = folder(tmp_path, (range(1, last + 1), 100.0), (range(resumed, 150), 110.0))
    killed = [
        Kill("meter", "checkpoint", 100.1, 10, 0, True),  # ends nothing
        Kill("driver", "training", 101.0, step, whole_step, partial),
        Kill("worker", "starting", 109.0, step, whole_step, True),  # when the attempt had ended
    ]
    monkeypatch.setattr(judge, "percent_of_truth", lambda run, nodes: {})
    monkeypatch.setattr(judge, "verify_run", lambda run: SimpleNamespace(checks=[], ok=True))
    monkeypatch.setattr(judge, "_went_on", lambda run, kill: True)
    reference = Reference(tmp_path, {number: 1.0 for number in {*range(1, last + 1), *range(resumed, 150)}})
    judged = judge.judge(run, killed, reference, [])
    assert judged["wrong"] == wrong
    assert judged["steps_lost"][0]["writing"] is partial


@pytest.mark.parametrize("kind", ["driver", "worker", "node"])
def test_a_kill_keeps_what_was_seen_of_the_checkpoints_just_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    run = RunFolder(tmp_path)
    saved = tmp_path / "checkpoints"

    def struck() -> None:  # what comes afterwards is not seen
        (saved / ".step-75.partial").rename(saved / "step-75")

    for name in ("step-25", "step-50", ".step-75.partial"):
        (saved / name).mkdir(parents=True)
        (saved / name / ".metadata").touch()

    class Nodes:
        def kill_second(self) -> None:
            struck()

        def add_second(self) -> None: ...

    monkeypatch.setattr(kills, "TwoNodes", Nodes)
    monkeypatch.setattr(kills, "BACK_S", 0.0)
    process = SimpleNamespace(pid=1, send_signal=lambda number: struck())
    fake: Any = SimpleNamespace(
        folder=run,
        place=Nodes(),
        exit_code=None,
        newest_step=lambda: (1, 76),
        kill_driver=struck,
        start=lambda: None,
        processes=lambda title: [process],
    )
    kill = kills.Victim(fake).kill(kills.Planned(kind, "training", 0.0, 0.0))
    assert kill is not None
    assert (kill.kind, kill.step, kill.whole_step, kill.partial) == (kind, 76, 50, True)


def few_nodes(result: dict[str, Any]) -> None:
    result["driver"]["nodes_seen"] = [63, 64]


def a_fault(result: dict[str, Any]) -> None:
    result["driver"]["faults"] = ["node-001: its meter did not end"]


def a_damaged_ledger(result: dict[str, Any]) -> None:
    result["readings"]["damaged"] = ["node-001.ledger: a row cannot be read"]


@pytest.mark.parametrize("change", [few_nodes, a_fault, a_damaged_ledger])
def test_meters_that_were_not_all_seen_or_had_faults_do_not_meet_their_target(
    change: Callable[[dict[str, Any]], None],
) -> None:
    result = json.loads(json.dumps(RESULT["meters"]))
    assert meters.met(result, 64)
    change(result)
    assert not meters.met(result, 64)


def test_the_page_says_what_was_looked_at_and_what_was_not() -> None:
    old = {"kind": "worker", "moment": "checkpoint", "at_unix_s": 1.0, "step": 76}
    new = old | {"whole_step": 50, "partial": True}
    part = RESULT["kills"] | {"most_steps_lost": 26}

    def page(*killed: dict[str, Any]) -> str:
        run = {"run": 0, "place": "here", "kills": list(killed), "wrong": []}
        return markdown({"kills": part | {"runs": [run]}, "meters": RESULT["meters"]})

    assert "at most 26 of 25 steps lost (what is trained while a checkpoint is written comes on top)" in page(new)
    assert "no whole checkpoint overlooked" in page(new)
    assert "1 of the kills came inside a checkpoint" in page(new, new | {"kind": "meter"})
    before = page(old, old | {"kind": "meter"})
    assert "at most 26 of 25 steps lost (" in before and "whole was not looked at in 2 of the kills" in before
    assert "overlooked" not in before and "inside a checkpoint" not in before
    assert "1 of those that were to come in a checkpoint were of a meter" in before
    assert "as it does in a run" not in before
