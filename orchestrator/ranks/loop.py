"""The training loop, pure: it takes callables and knows neither Ray nor NVML nor files.

The same function runs under Ray Train, under torchrun and in pytest.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Skipped:
    """Why a step changed nothing, and the sequences of the data that it would have learnt from, the last included."""

    reason: str
    first_sequence: int
    last_sequence: int


@dataclass(frozen=True)
class StepResult:
    """One optimiser step over the global batch; `stop` is rank 0's wish, `data_wait_s` what this rank waited for data.

    All but `data_wait_s` are the same on every rank.
    """

    loss: float
    grad_norm: float
    lr: float
    stop: bool
    data_wait_s: float = 0.0
    skipped: Skipped | None = None


@dataclass(frozen=True)
class Schedule:
    """When to do what, in steps counted from 1."""

    total_steps: int
    evaluate_every_steps: int
    checkpoint_every_steps: int


class Recorder(Protocol):
    """What the loop tells the outside: spans of time by phase, steps, evaluations."""

    def phase(self, name: str, step: int) -> None: ...
    def step(self, step: int, result: StepResult) -> None: ...
    def evaluation(self, step: int, validation_loss: float) -> None: ...


def train(
    schedule: Schedule,
    first_step: int,
    train_step: Callable[[int], StepResult],
    evaluate: Callable[[], float],
    checkpoint: Callable[[int], None],
    recorder: Recorder,
) -> bool:
    """Trains from `first_step` (1 for a fresh run) to the end; True when it got there, False when asked to stop.

    Either way the last thing done is a checkpoint, so that nothing trained is lost.
    """
    step = first_step - 1
    saved, stopped = step, False
    while step < schedule.total_steps and not stopped:
        step += 1
        recorder.phase("train_step", step)
        result = train_step(step)
        recorder.step(step, result)
        stopped = result.stop
        last = step == schedule.total_steps
        if last or (step % schedule.evaluate_every_steps == 0 and not stopped):
            recorder.phase("evaluation", step)
            recorder.evaluation(step, evaluate())
        if last or stopped or step % schedule.checkpoint_every_steps == 0:
            recorder.phase("checkpoint", step)
            checkpoint(step)
            saved = step
    assert saved == step
    return step == schedule.total_steps
