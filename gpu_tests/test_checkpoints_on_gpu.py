"""Checkpoints that are written while the training goes on, from a copy in pinned memory."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from orchestrator.checkpoints.state import TrainState, load
from orchestrator.checkpoints.writer import CheckpointWriter

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(autouse=True)
def group(tmp_path: Path) -> Iterator[None]:
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("cpu:gloo,cuda:nccl", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def trained() -> tuple[TrainState, torch.nn.Linear, torch.optim.Optimizer]:
    model = torch.nn.Linear(512, 512, device="cuda")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    model(torch.ones(1, 512, device="cuda")).sum().backward()
    optimizer.step()
    return TrainState(model, optimizer, {"step": 0, "data": {"seed": 1, "position": 0}}), model, optimizer


def test_each_holds_the_state_of_its_step_whatever_is_trained_meanwhile(tmp_path: Path) -> None:
    state, model, optimizer = trained()
    writer = CheckpointWriter(tmp_path / "checkpoints", asynchronous=True, on_gpu=True)
    weights = {}
    for step in (1, 2, 3):
        state.progress |= {"step": step, "data": {"seed": 1, "position": 8 * step}}
        weights[step] = model.weight.detach().clone()
        writer.save(state, step)
        optimizer.step()
    writer.finish()
    assert [cost["step"] for cost in writer.written()] == [1, 2, 3]
    for step in (3, 1, 2):
        found, filled, _ = trained()
        load(found, tmp_path / "checkpoints" / f"step-{step:08d}")
        assert torch.equal(filled.weight, weights[step])
        assert found.progress == {"step": step, "data": {"seed": 1, "position": 8 * step}}
    assert not torch.equal(weights[1], weights[2])
