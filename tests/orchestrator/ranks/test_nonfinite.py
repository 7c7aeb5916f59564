"""A loss or a gradient that is not finite: the run ends with what one needs to know, or the step is thrown away."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from tiny import STEPS, losses, plain_rank, train, write_spec

from energy.runs import RunFolder
from orchestrator.checkpoints.saved import complete, step_of
from orchestrator.driver.skipped import keep_skipped
from orchestrator.ranks import worker
from orchestrator.ranks.worker import Job, Rank

SKIP = ["training.nonfinite_loss=skip"]


def _rank(harm: Callable[[int, torch.Tensor], torch.Tensor], rank: int, world: int, port: int, job: Job) -> None:
    """A rank whose last half-batch has `harm` done to its loss: `harm(step, loss)`."""
    real_step, real_loss = Rank.step, Rank._loss_sum
    at = [0]

    def step(self: Rank, number: int) -> Any:
        at[0] = number
        return real_step(self, number)

    def loss_sum(self: Rank, batch: np.ndarray) -> torch.Tensor:
        loss = real_loss(self, batch)
        return harm(at[0], loss) if self.rank == world - 1 and loss.requires_grad else loss

    Rank.step, Rank._loss_sum = step, loss_sum  # type: ignore[method-assign, assignment]
    plain_rank(rank, world, port, job)


def nan_at_11(step: int, loss: torch.Tensor) -> torch.Tensor:
    return loss * float("nan") if step == 11 else loss


class _Steep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor) -> torch.Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * float("inf")


def steep_at_11(step: int, loss: torch.Tensor) -> torch.Tensor:
    """The loss stays what it is, and its gradient is infinite."""
    return _Steep.apply(loss) if step == 11 else loss


def nan_from_11_on(step: int, loss: torch.Tensor) -> torch.Tensor:
    return loss * float("nan") if step >= 11 else loss


def test_stop_names_step_sequences_and_last_finite_loss_and_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, workers=2)
    with pytest.raises(mp.ProcessRaisedException) as raised:
        train(spec, tmp_path / "run", world=2, rank=partial(_rank, nan_at_11))
    run = RunFolder(tmp_path / "run")
    last = losses(run)[10]
    assert f"at step 11 the loss is nan; the last finite loss was {last:.4f}, at step 10:" in str(raised.value)
    assert "inspect sequences 80 to 87 of the data" in str(raised.value)
    assert [step_of(path) for path in complete(run.path / "checkpoints")] == [8]
    again = train(spec, tmp_path / "run", world=2)  # without what made it fail
    assert losses(again) == losses(train(spec, tmp_path / "never failed", world=2))


@pytest.mark.parametrize(
    ("harm", "reason"), [(nan_at_11, "the loss is nan"), (steep_at_11, "the gradient's norm is ")], ids=["loss", "norm"]
)
def test_skip_throws_the_step_away_on_all_ranks_and_says_so(
    tmp_path: Path, harm: Callable[[int, torch.Tensor], torch.Tensor], reason: str
) -> None:
    spec = write_spec(tmp_path, workers=2)
    run = train(spec, tmp_path / "run", world=2, overrides=SKIP, rank=partial(_rank, harm))
    [skipped] = [event for event in run.events() if event.get("event") == "skipped"]
    assert skipped["reason"].startswith(reason)
    assert (skipped["step"], skipped["first_sequence"], skipped["last_sequence"]) == (11, 80, 87)
    assert skipped["tokens"] == 256
    curve, plain = losses(run), losses(train(spec, tmp_path / "plain", world=2))
    assert list(curve) == [step for step in range(1, STEPS + 1) if step != 11]
    assert all(curve[step] == plain[step] for step in range(1, 11))
    assert curve[12] != plain[12]  # it did not learn from the batch of step 11
    assert curve[20] == pytest.approx(plain[20], abs=0.1)


def test_without_a_bad_loss_both_policies_are_the_same_training(tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    assert losses(train(spec, tmp_path / "skip", overrides=SKIP)) == losses(train(spec, tmp_path / "stop"))


def test_a_model_that_is_lost_is_not_skipped_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = write_spec(tmp_path, steps=40)
    with pytest.raises(mp.ProcessRaisedException, match="at step 20 the loss is nan, as in the 9 steps before"):
        train(spec, tmp_path / "run", overrides=SKIP, rank=partial(_rank, nan_from_11_on))
    assert worker.SKIPS_IN_A_ROW == 10
    run = RunFolder(tmp_path / "run")
    assert max(losses(run)) == 10
    assert [step_of(path) for path in complete(run.path / "checkpoints")] == [16, 8]


def test_the_record_names_what_was_skipped_and_forgets_what_was_done_again(tmp_path: Path) -> None:
    def skip(step: int, attempt: int) -> str:
        first = 8 * (step - 1)
        why = {"reason": "the loss is nan", "first_sequence": first, "last_sequence": first + 7, "tokens": 256}
        return json.dumps({"attempt": attempt, "event": "skipped", "step": step, **why}) + "\n"

    def trained(step: int, attempt: int) -> str:
        return json.dumps({"attempt": attempt, "event": "step", "step": step}) + "\n"

    run = RunFolder(tmp_path)
    run.write_run({"data": {"train_tokens": 9000}})
    run.metrics_dir.mkdir()
    metrics = run.metrics_file(0)
    metrics.write_text(trained(1, 1) + skip(2, 1) + skip(3, 1) + trained(4, 1) + skip(5, 1) + trained(6, 1))
    keep_skipped(run)
    data = run.read_run()["data"]
    assert (data["train_tokens"], data["steps_skipped"], data["tokens_skipped"]) == (9000, 3, 768)
    assert data["skipped"][0] == {"step": 2, "reason": "the loss is nan", "first_sequence": 8, "last_sequence": 15}
    with metrics.open("a") as file:
        file.write(trained(3, 2) + trained(4, 2))  # after a crash, with a finite loss, and not yet at step 5
    keep_skipped(run)
    assert [each["step"] for each in run.read_run()["data"]["skipped"]] == [2]
