"""A failure is told by its cause, and Ctrl-C does what the stage of the run asks for."""

import os
import signal
from pathlib import Path

import pytest
from tiny import write_spec

from energy.runs import RunFolder
from orchestrator.driver.attempts import has_trained, resumable
from orchestrator.driver.endings import advice, cause
from orchestrator.driver.stops import Stops
from orchestrator.ranks.loop import StepResult
from orchestrator.ranks.metrics import MetricsFile
from orchestrator.spec.file import dump_experiment, load_experiment


class RanksFailed(Exception):
    """As Ray's WorkerGroupError: the texts of the ranks."""

    def __init__(self, failures: dict[int, object]):
        super().__init__("Training failed due to worker errors:\n" + "\n".join(map(str, failures.values())))
        self.worker_failures = failures


TRACE = 'Traceback (most recent call last):\n  File "worker.py", line 1, in save\n'


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device", "/runs/x"), "No space left on device: '/runs/x'"),
        (RuntimeError("Ray could not be started"), "Ray could not be started"),
        (
            RanksFailed(
                {0: TRACE + "orchestrator.checkpoints.state.CheckpointNotSaved: No space left on device: step 8"}
            ),
            "No space left on device: step 8",
        ),
        (
            RanksFailed(
                {
                    0: TRACE + "RuntimeError: [gloo/transport/tcp/pair.cc:1] Connection closed by peer",
                    1: TRACE + "KeyError: 'text'\n\n",
                }
            ),
            "KeyError: 'text'",
        ),
        (ValueError(""), "ValueError('')"),
        # Only a value: without its kind it says nothing.
        (KeyError(type), "KeyError: <class 'type'>"),
        (ValueError("3"), "ValueError: 3"),
        (IndexError("list index out of range"), "IndexError: list index out of range"),
        (RanksFailed({0: KeyError(type)}), "KeyError: <class 'type'>"),
        (RanksFailed({0: TRACE + "ValueError: 3"}), "ValueError: 3"),
        (RanksFailed({0: FloatingPointError("at step 3 the loss is nan")}), "at step 3 the loss is nan"),
        (RanksFailed({1: MemoryError()}), "MemoryError()"),
    ],
)
def test_the_cause_in_one_line(error: Exception, said: str) -> None:
    assert cause(error) == said


def test_the_advice_names_the_checkpoint_and_the_command(tmp_path: Path) -> None:
    assert "no whole checkpoint" in advice("x", tmp_path, None)[0]
    (tmp_path / "experiment.yaml").write_text("checkpoint: {copy_to: s3://bucket/a}")
    assert "go on from its newest copy, or from the start" in advice("x", tmp_path, None)[0]
    for name, whole in (("step-00000024", True), ("step-00000032", False), (".step-00000040.partial", True)):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        if whole:
            (tmp_path / "checkpoints" / name / ".metadata").write_bytes(bytes(3_000_000))
    full = advice("No space left on device: the checkpoint of step 32", tmp_path, Path("my spec.yaml"))
    assert full == [
        f"free space under {tmp_path}: a checkpoint takes 3 MB",
        f"go on from step 24: hoofprint run 'my spec.yaml' --resume {tmp_path}",
    ]


def test_a_run_without_memory_is_told_how_to_go_on_with_less(tmp_path: Path) -> None:
    cuda = "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.2 GiB"
    killed = "the process of rank 1 (n, process 7) was killed, or the machine is gone, 4 times without a new checkpoint"
    resume = f"hoofprint run SPEC --resume {tmp_path}"
    assert advice(cuda, tmp_path, None)[-1].endswith(resume)  # its spec cannot be read
    spec = write_spec(tmp_path / "spec")
    experiment = load_experiment(spec, ["training.micro_batch_sequences=4"])
    (tmp_path / "experiment.yaml").write_text(dump_experiment(experiment))
    options = "--set training.micro_batch_sequences=2 --set training.activation_checkpointing=full"
    [first, last] = advice(cuda, tmp_path, None)
    assert first.startswith("below it goes on with less memory a step; of more workers each holds less of the model")
    assert last.endswith(f"{resume} {options}")
    low = (
        "the process of rank 1 (n, process 7) was killed by Ray, because the machine ran low on memory, 4 times without"
    )
    assert advice(low, tmp_path, None) == [first, last]
    [first, last] = advice(killed, tmp_path, None)
    assert "`dmesg`" in first and first.endswith(options) and last.endswith(resume)
    (tmp_path / "run.json").write_text("{}")
    settings = options.replace("--set ", "").split()
    _, changed = resumable(load_experiment(spec, settings), tmp_path)  # a run may be resumed so
    assert len(changed) == 2

    least = load_experiment(spec, ["training.micro_batch_sequences=1", "training.activation_checkpointing=full"])
    (tmp_path / "experiment.yaml").write_text(dump_experiment(least))
    assert advice(cuda, tmp_path, None)[0].startswith("of more workers each holds less")
    assert advice(cuda, tmp_path, None)[-1].endswith(resume)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("Ray did not start on this machine (it needs some twenty free ports ...): timed out", "`ray stop` ends"),
        ("Ray at 10.0.0.1:6379 could not be joined: Failed to connect", "ray status --address"),
    ],
)
def test_without_a_ray_it_is_said_what_may_help(tmp_path: Path, error: str, said: str) -> None:
    assert said in advice(error, tmp_path, None)[0]


class Screen:
    def __init__(self) -> None:
        self.said: list[str] = []

    def blurt(self, text: str) -> None:
        self.said.append(text)

    def release(self) -> None:
        self.said.append("released")


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    return codes


def test_before_the_first_step_it_ends_at_once(tmp_path: Path, exits: list[int]) -> None:
    with pytest.raises(KeyboardInterrupt), Stops(tmp_path / "stop", Screen(), lambda: None):
        signal.raise_signal(signal.SIGTERM)
    assert not exits and not (tmp_path / "stop").exists()


def test_a_first_step_that_the_driver_has_not_seen_yet_is_kept(tmp_path: Path, exits: list[int]) -> None:
    folder = RunFolder(tmp_path)
    assert not has_trained(folder, 2)
    metrics = MetricsFile(tmp_path / "metrics" / "rank-0.jsonl", attempt=2, rank=0, batch_tokens=8, started_unix_s=0.0)
    metrics.step(1, StepResult(loss=1.0, grad_norm=1.0, lr=0.1, stop=False))
    assert has_trained(folder, 2) and not has_trained(folder, 1) and not has_trained(folder, 3)
    with Stops(tmp_path / "stop", Screen(), lambda: None, lambda: has_trained(folder, 2)):
        signal.raise_signal(signal.SIGTERM)
    assert (tmp_path / "stop").exists() and not exits


def test_while_it_trains_once_asks_and_twice_ends(tmp_path: Path, exits: list[int]) -> None:
    before = signal.getsignal(signal.SIGINT)
    endings: list[str] = []
    screen = Screen()
    with Stops(tmp_path / "stop", screen, lambda: endings.append("stopped")) as stops:
        stops.gently()
        signal.raise_signal(signal.SIGINT)
        assert (tmp_path / "stop").exists() and not exits and not screen.said
        assert "checkpoint and report first" in stops.notes()[0] and not stops.notes()
        signal.raise_signal(signal.SIGINT)
        assert (endings, exits, screen.said) == (["stopped"], [130], ["released"])
    assert signal.getsignal(signal.SIGINT) is before


def test_a_full_disk_cannot_be_asked_and_that_is_said(tmp_path: Path) -> None:
    with Stops(tmp_path / "gone" / "stop", Screen(), lambda: None) as stops:
        stops.gently()
        signal.raise_signal(signal.SIGINT)
        assert "cannot be asked" in stops.notes()[0]


def test_while_the_report_is_written_it_changes_nothing(tmp_path: Path, exits: list[int]) -> None:
    screen = Screen()
    with Stops(tmp_path / "stop", screen, lambda: None) as stops:
        stops.finishing()
        signal.raise_signal(signal.SIGINT)
    assert "writing the report" in screen.said[0] and not exits and not (tmp_path / "stop").exists()
