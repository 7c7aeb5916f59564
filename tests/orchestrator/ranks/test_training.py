"""The training path without Ray: any number of ranks gives the same losses, and a resume changes nothing."""

import errno
import json
import os
import resource
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.multiprocessing as mp
from tiny import STEPS, eager_rank, losses, plain_rank, train, write_spec

from energy.runs import STOP_FILE, RunFolder
from model.sharding import Layout
from orchestrator.checkpoints.saved import newest_complete
from orchestrator.plan.choices import choose
from orchestrator.ranks import loop
from orchestrator.ranks.job import Job
from orchestrator.ranks.loop import StepResult
from orchestrator.ranks.metrics import MetricsFile
from orchestrator.ranks.worker import Rank
from orchestrator.spec.file import load_experiment


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunFolder]:
    folder = tmp_path_factory.mktemp("training")
    return write_spec(folder), train(write_spec(folder), folder / "whole")


def test_it_learns_and_leaves_a_checkpoint(whole: tuple[Path, RunFolder]) -> None:
    _, run = whole
    curve = losses(run)
    assert list(curve) == list(range(1, STEPS + 1))
    assert curve[STEPS] < curve[1] - 0.5
    assert newest_complete(run.path / "checkpoints").name == f"step-{STEPS:08d}"
    assert not list((run.path / "checkpoints").glob(".*partial"))
    assert {span["phase"] for span in run.phases()} == {"startup", "train_step", "evaluation", "checkpoint"}


def test_compilation_is_a_phase_of_its_own_and_its_tokens_count(whole: tuple[Path, RunFolder]) -> None:
    spec, plain = whole
    run = train(spec, plain.path.parent / "compiled", overrides=["training.compile=true"], rank=eager_rank)
    spans = run.phases()
    step, validation = (span for span in spans if span["phase"] == "compile")
    first_evaluation = next(span for span in spans if span["phase"] == "evaluation")
    assert step["start_unix_s"] <= run.steps()[0]["time_unix_s"] <= step["end_unix_s"] < run.steps()[1]["time_unix_s"]
    assert first_evaluation["start_unix_s"] <= validation["start_unix_s"] < validation["end_unix_s"]
    assert validation["end_unix_s"] <= first_evaluation["end_unix_s"]
    assert [step["tokens"] for step in run.steps()] == [256 * number for number in range(1, STEPS + 1)]
    assert losses(run) == pytest.approx(losses(plain), abs=1e-3)


@pytest.mark.parametrize(("compiled", "kernel"), [("false", "compiled for this processor"), ("true", "flash")])
def test_what_a_run_says_of_attention_is_what_its_blocks_run(
    compiled: str, kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.attention.takes", lambda q, k: not torch.compiler.is_compiling())
    rank = object.__new__(Rank)
    rank.spec = load_experiment(write_spec(tmp_path), [f"training.compile={compiled}"])
    config = rank.spec.llama_config(400)
    rank.choices = choose(rank.spec, config, 1, "cpu", None)
    rank.model, rank.stream = SimpleNamespace(config=config), SimpleNamespace(sequence_length=config.sequence_length)
    rank.layout, rank.device, rank.dtype = Layout.of(1), torch.device("cpu"), torch.float32
    assert rank.in_use()["attention"] == kernel


def test_every_attempt_compiles_anew(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for attempt, first in ((1, 1), (2, 5)):
        metrics = MetricsFile(run.metrics_file(0), attempt, 0, 256, 0.0, compiles=True)
        step = StepResult(loss=3.0, grad_norm=1.0, lr=0.1, stop=False)
        loop.train(
            loop.Schedule(first + 3, 2, 4), first, lambda number, step=step: step, lambda: 3.0, lambda _: None, metrics
        )
        metrics.close()
    names = ["startup", "compile", "train_step", "evaluation", "train_step", "evaluation", "checkpoint"]
    assert [span["phase"] for span in run.phases()] == 2 * names


def test_two_workers_equal_one_and_the_first_is_profiled(whole: tuple[Path, RunFolder]) -> None:
    spec, run = whole
    two = train(spec, run.path.parent / "two", world=2, profile_steps=2)
    assert {path.name for path in (two.path / "profile").iterdir()} == {"profile.json", "profile.txt", "trace.json.gz"}
    profile = json.loads((two.path / "profile" / "profile.json").read_text())
    assert (profile["first_step"], profile["steps"]) == (3, 2) and profile["shares"]["exposed communication"] > 0
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
    (resumed / "profile").mkdir()  # of an attempt that was profiled, as this one is not
    folder = train(spec, resumed)
    after = losses(folder)
    assert [event["step"] for event in folder.events() if event.get("event") == "resumed"] == [8]
    assert (resumed / "profile").exists()
    before = losses(run)
    assert list(after) == list(range(9, STEPS + 1))
    assert all(after[step] == before[step] for step in after)


def _rank_whose_folder_is_away_at_first(rank: int, world: int, port: int, job: Job) -> None:
    exists, looks = Path.exists, list[Path]()

    def away_at_first(path: Path) -> bool:
        if path.name == STOP_FILE and len(looks) < 2:
            looks.append(path)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return exists(path)

    Path.exists = away_at_first  # type: ignore[method-assign, assignment]
    plain_rank(rank, world, port, job)


def test_the_stop_file_checkpoints_and_ends_once_it_can_be_seen(whole: tuple[Path, RunFolder]) -> None:
    spec, run = whole
    stopped = run.path.parent / "stopped"
    stopped.mkdir()
    (stopped / "stop").touch()
    folder = train(spec, stopped, rank=_rank_whose_folder_is_away_at_first)
    assert list(losses(folder)) == [1, 2, 3]
    assert newest_complete(stopped / "checkpoints").name == "step-00000003"
    [said] = [event["said"] for event in folder.events() if event.get("event") == "warning"]
    assert said == "whether the run is to stop cannot be seen (Stale file handle): each step looks again"


def test_a_checkpoint_that_finds_no_room_leaves_the_one_before(whole: tuple[Path, RunFolder]) -> None:
    spec, run = whole
    full = run.path.parent / "full"
    shutil.copytree(run.path / "checkpoints" / "step-00000008", full / "checkpoints" / "step-00000008")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))  # the ranks inherit it: room for metrics, not for more
    try:
        with pytest.raises(mp.ProcessRaisedException, match="File too large: the checkpoint of step 16 was not writ"):
            train(spec, full, start="spawn")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in (full / "checkpoints").iterdir()] == ["step-00000008"]
    assert 16 <= list(losses(RunFolder(full)))[-1] < STEPS  # what was trained after it is in the metrics


def test_metrics_wait_for_room_and_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "metrics" / "rank-0.jsonl"
    metrics = MetricsFile(path, 1, 0, 256, 0.0)
    metrics.step(1, StepResult(5.0, 1.0, 0.1, False))
    disk = metrics._file
    with open("/dev/full", "ab", buffering=0) as full:
        metrics._file = full
        for step in (2, 3):
            metrics.step(step, StepResult(4.0, 1.0, 0.1, False))
        metrics._file = disk
    metrics.step(4, StepResult(3.0, 1.0, 0.1, False))
    metrics.close()
    events = [json.loads(line) for line in path.read_text().splitlines()]
    assert [event.get("step") for event in events] == [1, 2, 3, 4, None]


def test_metrics_that_never_found_room_are_a_failure(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "rank-0.jsonl", 1, 0, 256, 0.0)
    metrics._file.close()
    metrics._file = open("/dev/full", "ab", buffering=0)
    metrics.step(1, StepResult(5.0, 1.0, 0.1, False))
    with pytest.raises(OSError, match="No space left on device: the last metrics were not written"):
        metrics.close()
