"""FSDP does what it was told: bfloat16 beside float32 masters, and units gathered ahead as the plan says."""

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from model.config import LlamaConfig
from model.init import init_weights
from model.optim import clip_gradients, make_optimizer
from model.parallelize import loss_scale, make_mesh, parallelize
from model.sharding import Layout, sharding_plan
from model.transformer import Llama

CONFIG = LlamaConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_hidden=48, vocab_size=96, sequence_length=16)
GRIDS = {"fsdp 2": Layout(1, 2, 1), "tensor 2": Layout(1, 1, 2)}
STEPS = 6


def trained(layout: Layout, rank: int, dtype: torch.dtype) -> dict[str, Any]:
    """The losses of some steps, and the dtypes at work and at rest."""
    with torch.device("meta"):
        model = Llama(CONFIG)
    parallelize(model, make_mesh("cpu", layout) if layout.world > 1 else None, param_dtype=dtype)
    model.to_empty(device="cpu")
    init_weights(model, seed=5)
    worked_in = set()
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, out: worked_in.add(out.dtype))
    tokens = torch.randint(96, (8, 17), generator=torch.Generator().manual_seed(0))
    size = 8 // layout.data_ranks
    mine = tokens[layout.data_rank(rank) * size :][:size]
    optimizer = make_optimizer(model, lr=1e-2)
    losses, resting = [], set()
    for _ in range(STEPS):
        loss = model(mine[:, :-1], mine[:, 1:])
        (loss * loss_scale(layout.data_ranks, 8 * 16)).backward()
        total = loss.detach()
        if layout.world > 1:
            dist.all_reduce(total)
        clip_gradients(model.parameters(), 1.0)
        optimizer.step()
        resting |= {each.dtype for p in model.parameters() for each in (p, p.grad, optimizer.state[p]["exp_avg_sq"])}
        optimizer.zero_grad()
        losses.append(total.item() / (8 * 16))
    return {"losses": losses, "worked_in": worked_in, "resting": resting, "fused": optimizer.defaults["fused"]}


def gathered_ahead() -> dict[str, list[list[str]]]:
    """Of each unit, which ones FSDP was told to gather while it computes, in forward and backward."""
    with torch.device("meta"):
        model = Llama(CONFIG)
    parallelize(model, make_mesh("cpu", GRIDS["fsdp 2"]))
    units = {name: model.get_submodule(name)._get_fsdp_state() for name in sharding_plan(model, Layout(1, 2)).units}
    name_of = {id(state): name for name, state in units.items()}
    return {
        name: [
            [name_of[id(other)] for other in others]
            for others in (state._states_to_forward_prefetch, state._states_to_backward_prefetch)
        ]
        for name, state in units.items()
    }


def worker(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    found: dict[str, Any] = {name: trained(layout, rank, torch.bfloat16) for name, layout in GRIDS.items()}
    found["ahead"] = gathered_ahead()
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def on_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("half")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.start_processes(worker, (port, str(folder)), nprocs=2, start_method="forkserver")
    found: dict[str, Any] = torch.load(folder / "0.pt")
    return found


@pytest.mark.parametrize("name", GRIDS)
def test_ranks_in_half_precision_train_as_one_and_keep_float32_masters(name: str, on_two: dict[str, Any]) -> None:
    found = on_two[name]
    assert found["worked_in"] == {torch.bfloat16} and found["resting"] == {torch.float32} and found["fused"]
    alone, exact = (trained(Layout(), 0, dtype)["losses"] for dtype in (torch.bfloat16, torch.float32))
    assert found["losses"] == pytest.approx(alone, rel=2e-3)
    assert alone != exact and alone == pytest.approx(exact, rel=0.02)
    assert alone[-1] < 0.9 * alone[0]  # so that there is a curve to agree on


def test_what_the_plan_gathers_ahead_is_what_fsdp_was_told(on_two: dict[str, Any]) -> None:
    with torch.device("meta"):
        plan = sharding_plan(Llama(CONFIG), GRIDS["fsdp 2"])
    told = {name: [list(plan.ahead(name)), list(plan.behind(name))] for name in plan.units}
    assert on_two["ahead"] == told and told["blocks.0"] == [["blocks.1"], []]
