"""Loading a checkpoint fills model, optimiser and progress, and runs nothing that lies in its files."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from orchestrator.checkpoints.state import TrainState, load


class _Runs:
    """Its pickle makes a folder where it is read."""

    def __init__(self, proof: Path):
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.proof),)


def _state(**progress: Any) -> TrainState:
    model = torch.nn.Linear(2, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.25, betas=(0.8, 0.9))
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return TrainState(model, optimizer, progress)


@pytest.mark.filterwarnings("ignore:torch.distributed is")
def test_what_was_saved_is_loaded_and_what_would_run_is_refused(tmp_path: Path) -> None:
    saved = _state(step=7, data={"seed": 3, "order": [1, 2]}, text="a", none=None)
    dcp.save({"app": saved}, checkpoint_id=tmp_path / "good")
    found = _state(step=0, data={"seed": 0, "order": [0, 0]}, text="", none=None)
    load(found, tmp_path / "good")
    assert found.progress == saved.progress
    assert all(map(torch.equal, found.model.parameters(), saved.model.parameters()))
    for state, expected in zip(found.optimizer.state.values(), saved.optimizer.state.values(), strict=True):
        assert all(torch.equal(state[key], expected[key]) for key in ("step", "exp_avg", "exp_avg_sq"))

    proof = tmp_path / "it-ran"
    dcp.save({"app": _state(step=_Runs(proof))}, checkpoint_id=tmp_path / "bad")
    assert not proof.exists()
    with pytest.raises(CheckpointException, match="mkdir"):
        load(_state(step=0), tmp_path / "bad")
    assert not proof.exists()
