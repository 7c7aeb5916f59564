"""The training path without Ray: any number of ranks gives the same losses, and a resume changes nothing."""

import shutil
from pathlib import Path

import pytest
from tiny import STEPS, train, write_spec

from energy.runs import RunFolder
from orchestrator.checkpoint import newest_complete


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunFolder]:
    folder = tmp_path_factory.mktemp("training")
    return write_spec(folder), train(write_spec(folder), folder / "whole")


def losses(run: RunFolder) -> dict[int, float]:
    return {step["step"]: step["loss"] for step in run.steps()}


def test_it_learns_and_leaves_a_checkpoint(whole: tuple[Path, RunFolder]) -> None:
    _, run = whole
    curve = losses(run)
    assert list(curve) == list(range(1, STEPS + 1))
    assert curve[STEPS] < curve[1] - 0.5
    assert newest_complete(run.path / "checkpoints").name == f"step-{STEPS:08d}"
    assert not list((run.path / "checkpoints").glob(".*partial"))
    assert {span["phase"] for span in run.phases()} == {"startup", "train_step", "evaluation", "checkpoint"}


def test_two_workers_equal_one(whole: tuple[Path, RunFolder]) -> None:
    spec, run = whole
    two = train(spec, run.path.parent / "two", world=2)
    assert losses(two) == pytest.approx(losses(run), abs=1e-4)
    one_loss, two_loss = (each.evaluations()[-1]["validation_loss"] for each in (run, two))
    assert two_loss == pytest.approx(one_loss, abs=1e-4)


def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(whole: tuple[Path, RunFolder]) -> None:
    spec, run = whole
    resumed = run.path.parent / "resumed"
    (resumed / "checkpoints").mkdir(parents=True)
    shutil.copytree(run.path / "checkpoints" / "step-00000008", resumed / "checkpoints" / "step-00000008")
    # What a kill in the middle of a save leaves behind is not a checkpoint.
    half = resumed / "checkpoints" / "step-00000016"
    half.mkdir()
    (half / "__0_0.distcp").write_bytes(b"half")
    after = losses(train(spec, resumed))
    before = losses(run)
    assert list(after) == list(range(9, STEPS + 1))
    assert all(after[step] == before[step] for step in after)


def test_the_stop_file_checkpoints_and_ends(whole: tuple[Path, RunFolder]) -> None:
    spec, run = whole
    stopped = run.path.parent / "stopped"
    stopped.mkdir()
    (stopped / "stop").touch()
    folder = train(spec, stopped)
    assert list(losses(folder)) == [1]
    assert newest_complete(stopped / "checkpoints").name == "step-00000001"
