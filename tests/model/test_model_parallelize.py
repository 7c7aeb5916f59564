"""Any grid of ranks trains alike: the same weights at the start, the same losses, norms and gradients after."""

import hashlib
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.tensor import DTensor

from model.config import LlamaConfig
from model.init import init_weights
from model.optim import clip_gradients, make_optimizer
from model.packing import pack
from model.parallelize import loss_scale, make_mesh, parallelize, set_gradient_sync
from model.sharding import Layout, sharding_plan
from model.transformer import Llama

# Uneven on purpose: 97 rows do not split in two, nor 33 (34 / 2 = 17 of tensor parallelism) into shards.
CONFIG = LlamaConfig(dim=24, n_layers=2, n_heads=4, n_kv_heads=2, ffn_hidden=34, vocab_size=97, sequence_length=16)
GRIDS = {
    "fsdp 2": Layout(1, 2, 1),
    "tensor 2": Layout(1, 1, 2),
    "fsdp 2 x tensor 2": Layout(1, 2, 2),
    "replicas 2 x fsdp 2": Layout(2, 2, 1),
    "replicas 2 x tensor 2": Layout(2, 1, 2),
}
STEPS, MICRO_BATCHES, CLIP, BOS = 4, 2, 0.5, 3


def digest(model: Llama) -> str:
    hashed = hashlib.sha256()
    for _, parameter in sorted(model.named_parameters()):
        full = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        hashed.update(full.detach().numpy().tobytes())
    return hashed.hexdigest()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Eight sequences, of which the ranks and micro-batches have different numbers of valid targets."""
    tokens = torch.randint(0, 97, (8, 17), generator=torch.Generator().manual_seed(0))
    tokens[1::2, 6] = tokens[:, 11] = BOS
    targets = tokens[:, 1:].clone()
    targets[0, :5] = -100
    targets[5, 7:] = -100
    return tokens[:, :-1], targets


def build(layout: Layout | None, **options: object) -> Llama:
    with torch.device("meta"):
        model = Llama(CONFIG)
    mesh = None if layout is None else make_mesh("cpu", layout)
    parallelize(model, mesh, **options)  # type: ignore[arg-type]
    model.to_empty(device="cpu")
    init_weights(model, seed=5)
    return model


def curve(model: Llama, layout: Layout, rank: int, each_micro_batch: bool = False, packed: bool = False) -> dict:
    """Loss and gradient norm of some clipped steps of AdamW, and the first gradients, whole."""
    result: dict = {"losses": [], "norms": [], "grads": {}}
    optimizer = make_optimizer(model, lr=1e-2)
    for step in range(STEPS):
        tokens, targets = batch()
        scale = loss_scale(layout.data_ranks, int((targets != -100).sum()))
        mine = slice(layout.data_rank(rank) * 8 // layout.data_ranks, None)
        size = 8 // layout.data_ranks // MICRO_BATCHES
        total = torch.zeros(())
        for micro in range(MICRO_BATCHES):
            rows = slice(micro * size, (micro + 1) * size)
            if layout.world > 1:
                set_gradient_sync(model, micro == MICRO_BATCHES - 1, each_micro_batch)
            inputs = tokens[mine][rows]
            packing = pack(inputs, BOS, "mask", torch.device("cpu"), torch.float32) if packed else None
            loss = model(inputs, targets[mine][rows], packing=packing)
            (loss * scale).backward()
            total += loss.detach()
        if layout.world > 1:
            dist.all_reduce(total)
        if step == 0:
            for name, parameter in model.named_parameters():
                grad = parameter.grad
                result["grads"][name] = (grad.full_tensor() if isinstance(grad, DTensor) else grad).clone()
        result["losses"].append(total.item())
        result["norms"].append(clip_gradients(model.parameters(), CLIP).item())
        optimizer.step()
        optimizer.zero_grad()
    return result


CASES: dict[str, dict] = {
    **{name: {"layout": layout} for name, layout in GRIDS.items()},
    "fsdp 2, full checkpointing": {"layout": GRIDS["fsdp 2"], "checkpointing": "full"},
    "tensor 2, selective": {"layout": GRIDS["tensor 2"], "checkpointing": "selective"},
    "replicas 2 x fsdp 2, each micro-batch": {"layout": GRIDS["replicas 2 x fsdp 2"], "each_micro_batch": True},
    "fsdp 2 x tensor 2, each micro-batch": {"layout": GRIDS["fsdp 2 x tensor 2"], "each_micro_batch": True},
    "fsdp 2 x tensor 2, documents": {"layout": GRIDS["fsdp 2 x tensor 2"], "packed": True},
}


def worker(rank: int, world: int, port: int, folder: str) -> None:
    """All cases of `world` ranks in one set of processes: to start them takes longest."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    results = {}
    for name, case in CASES.items():
        layout = case["layout"]
        if layout.world != world:
            continue
        model = build(layout, checkpointing=case.get("checkpointing", "none"))
        first = digest(model)
        with torch.no_grad():
            logits = model(batch()[0])
        model.reshard()  # without a backward the root stays gathered, and the optimizer wants what rests on the rank
        trained = curve(model, layout, rank, case.get("each_micro_batch", False), case.get("packed", False))
        pieces = {n: tuple(p.to_local().shape) for n, p in model.named_parameters()}
        results[name] = trained | {"digest": first, "logits": logits, "pieces": pieces}
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """What rank 0 of each case found."""
    results: dict[str, dict] = {}
    for world in (2, 4):
        folder = tmp_path_factory.mktemp(f"world-{world}")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        mp.start_processes(worker, (world, port, str(folder)), nprocs=world, start_method="forkserver")
        results |= torch.load(folder / "0.pt")
    return results


@pytest.fixture(scope="module")
def alone() -> dict[bool, dict]:
    """The same on one rank, without any distribution; with documents and without."""
    found = {}
    for packed in (False, True):
        model = build(None)
        found[packed] = {"digest": digest(model), "logits": model(batch()[0]).detach()}
        found[packed] |= curve(model, Layout(), 0, packed=packed)
    return found


@pytest.mark.parametrize("name", CASES)
def test_any_grid_trains_as_one_rank(name: str, trained: dict[str, dict], alone: dict[bool, dict]) -> None:
    found, expected = trained[name], alone[CASES[name].get("packed", False)]
    assert found["digest"] == expected["digest"]  # bit for bit, whatever the grid
    torch.testing.assert_close(found["logits"], expected["logits"], atol=1e-5, rtol=1e-4)
    for parameter, grad in expected["grads"].items():
        torch.testing.assert_close(found["grads"][parameter], grad, atol=1e-6, rtol=1e-4)
    assert found["norms"] == pytest.approx(expected["norms"], rel=1e-3)
    assert min(expected["norms"]) > CLIP  # so that clipping is at work
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-4)
    assert expected["losses"][-1] < 0.99 * expected["losses"][0]  # so that there is a curve to agree on


@pytest.mark.parametrize("name", GRIDS)
def test_what_a_rank_holds_is_what_the_plan_says(name: str, trained: dict[str, dict]) -> None:
    plan = sharding_plan(build(None), GRIDS[name])
    assert trained[name]["pieces"] == {each.name: each.rank_shape for each in plan.parameters}


def test_documents_make_a_difference(alone: dict[bool, dict]) -> None:
    assert alone[True]["losses"][-1] != pytest.approx(alone[False]["losses"][-1], rel=1e-4)


def test_the_initial_weights_follow_the_seed() -> None:
    model = Llama(CONFIG)
    init_weights(model, seed=5)
    other = Llama(CONFIG)
    init_weights(other, seed=6)
    assert digest(model) != digest(other)
    assert model.output.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_half_precision_of_one_rank_keeps_its_masters_and_their_gradients_in_float32() -> None:
    """And computes what weights that were cast beforehand give, but for the rounding of their gradients."""
    tokens = torch.randint(CONFIG.vocab_size, (2, 16), generator=torch.Generator().manual_seed(1))
    model = parallelize(Llama(CONFIG), None, param_dtype=torch.bfloat16)
    init_weights(model, seed=5)
    loss = model(tokens, tokens)
    loss.backward()
    cast = Llama(CONFIG)
    init_weights(cast, seed=5)
    cast = cast.to(torch.bfloat16)
    cast.reset_buffers()
    expected = cast(tokens, tokens)
    expected.backward()
    assert loss.item() == expected.item()
    for parameter, rounded in zip(model.parameters(), cast.parameters(), strict=True):
        assert parameter.dtype == parameter.grad.dtype == torch.float32
        scale = rounded.grad.float().abs().max().item()
        torch.testing.assert_close(parameter.grad, rounded.grad.float(), atol=0.01 * scale, rtol=0.01)
