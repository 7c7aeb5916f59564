"""Any grid of ranks trains alike: the same weights at the start, the same losses, norms and gradients after."""

import hashlib
import socket
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile

from model import loss
from model.config import LlamaConfig
from model.init import init_weights
from model.kernels import product
from model.loss import Words, linear_cross_entropy_sum
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


def build(layout: Layout | None, tied: bool = False, **options: object) -> Llama:
    with torch.device("meta"):
        model = Llama(replace(CONFIG, tie_embeddings=tied))
    mesh = None if layout is None else make_mesh("cpu", layout)
    parallelize(model, mesh, **options)  # type: ignore[arg-type]
    model.to_empty(device="cpu")
    init_weights(model, seed=5)
    return model


def curve(
    model: Llama,
    layout: Layout,
    rank: int,
    each_micro_batch: bool = False,
    packed: bool = False,
    gather_once: bool = False,
) -> dict:
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
                set_gradient_sync(model, micro == MICRO_BATCHES - 1, each_micro_batch, gather_once)
            inputs = tokens[mine][rows]
            packing = pack(inputs, BOS, "mask", torch.device("cpu"), torch.float32) if packed else None
            share = model(inputs, targets[mine][rows], packing=packing)
            (share * scale).backward()
            total += share.detach()
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
    "fsdp 2, gathered once": {"layout": GRIDS["fsdp 2"], "gather_once": True},
    "replicas 2 x fsdp 2, gathered once": {"layout": GRIDS["replicas 2 x fsdp 2"], "gather_once": True},
    "fsdp 2 x tensor 2, documents": {"layout": GRIDS["fsdp 2 x tensor 2"], "packed": True},
    "fsdp 2, tied": {"layout": GRIDS["fsdp 2"], "tied": True},
    "fsdp 2 x tensor 2, tied": {"layout": GRIDS["fsdp 2 x tensor 2"], "tied": True},
}

COUNTED = ("fsdp 2", "fsdp 2, gathered once")  # of these, how often weights are gathered


def words_of(rank: int) -> dict:
    """The loss over a vocabulary that the ranks share, and its gradients."""
    x, weight, targets = loss_inputs()
    words = Words(dist.group.WORLD, len(weight))
    usual, loss._CHUNK_BYTES["cpu"] = loss._CHUNK_BYTES["cpu"], 4 * 8 * words.most  # four positions at a time
    mine = weight.detach()[words.first : words.first + words.most].clone().requires_grad_()
    share = linear_cross_entropy_sum(x, mine, targets, words=words)
    with torch.no_grad():
        again = linear_cross_entropy_sum(x, mine, targets, words=words)
    grad_x, grad_mine = torch.autograd.grad(0.3 * share, (x, mine))
    loss._CHUNK_BYTES["cpu"] = usual
    for each in (share := share.detach(), again, grad_x):
        dist.all_reduce(each)
    return {"loss": share, "without gradients": again, "grad_x": grad_x, "rows": len(mine), "grad": grad_mine}


def loss_inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, weight = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((3, 11, 5), (97, 5))
    )
    targets = torch.randint(97, (3, 11), generator=generator)
    targets[0, 1] = targets[2, 4] = -100
    return x, weight, targets


def worker(rank: int, world: int, port: int, folder: str) -> None:
    """All cases of `world` ranks in one set of processes: to start them takes longest."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    results = {}
    for name, case in CASES.items():
        layout = case["layout"]
        if layout.world != world:
            continue
        options = {key: case[key] for key in ("checkpointing", "gather_once") if key in case}
        model = build(layout, case.get("tied", False), **options)
        first = digest(model)
        with torch.no_grad():
            logits = model(batch()[0])
        for unit in (
            model,
            *model.blocks,
        ):  # what is gathered stays so without a backward; the optimizer wants the rest
            unit.reshard()
        widths: list[int] = []

        def watched(x: torch.Tensor, weight: torch.Tensor, widths: list[int] = widths) -> torch.Tensor:
            out = product(x, weight)
            widths.append(out.shape[-1])
            return out

        loss.product = watched
        micro = {key: case[key] for key in ("each_micro_batch", "packed", "gather_once") if key in case}
        with profile(activities=[ProfilerActivity.CPU]) if name in COUNTED else nullcontext() as counted:
            trained = curve(model, layout, rank, **micro)
        loss.product = product
        if counted is not None:
            trained["gathers"] = sum(event.name == "c10d::_allgather_base_" for event in counted.events())
        pieces = {n: tuple(p.to_local().shape) for n, p in model.named_parameters()}
        results[name] = trained | {"digest": first, "logits": logits, "pieces": pieces, "widest": max(widths)}
    results[f"words on {world}"] = words_of(rank)
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """What rank 0 of each case found; of the words what all did."""
    results: dict[str, dict] = {}
    for world in (2, 4):
        folder = tmp_path_factory.mktemp(f"world-{world}")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        mp.start_processes(worker, (world, port, str(folder)), nprocs=world, start_method="forkserver")
        results |= torch.load(folder / "0.pt")
        key = f"words on {world}"
        results[key] = {rank: torch.load(folder / f"{rank}.pt")[key] for rank in range(world)}
    return results


@pytest.fixture(scope="module")
def alone() -> dict[str, dict]:
    """The same on one rank, without any distribution; with documents, and with one matrix for both ends."""
    found = {}
    for kind in ("plain", "packed", "tied"):
        model = build(None, tied=kind == "tied")
        found[kind] = {"digest": digest(model), "logits": model(batch()[0]).detach()}
        found[kind] |= curve(model, Layout(), 0, packed=kind == "packed")
    return found


@pytest.mark.parametrize("name", CASES)
def test_any_grid_trains_as_one_rank(name: str, trained: dict[str, dict], alone: dict[str, dict]) -> None:
    found = trained[name]
    expected = alone[next((kind for kind in ("packed", "tied") if CASES[name].get(kind)), "plain")]
    assert found["digest"] == expected["digest"]  # bit for bit, whatever the grid
    torch.testing.assert_close(found["logits"], expected["logits"], atol=1e-5, rtol=1e-4)
    for parameter, grad in expected["grads"].items():
        torch.testing.assert_close(found["grads"][parameter], grad, atol=1e-6, rtol=1e-4)
    assert found["norms"] == pytest.approx(expected["norms"], rel=1e-3)
    assert min(expected["norms"]) > CLIP  # so that clipping is at work
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-4)
    assert expected["losses"][-1] < 0.99 * expected["losses"][0]  # so that there is a curve to agree on


def test_weights_are_gathered_for_each_use_or_once_a_step(trained: dict[str, dict]) -> None:
    each_use, once = (trained[name]["gathers"] for name in COUNTED)
    assert each_use == STEPS * MICRO_BATCHES * (2 * CONFIG.n_layers + 1)  # the root stays from forward to backward
    assert once == STEPS * (CONFIG.n_layers + 1)


@pytest.mark.parametrize("name", GRIDS)
def test_what_a_rank_holds_is_what_the_plan_says(name: str, trained: dict[str, dict]) -> None:
    plan = sharding_plan(build(None), GRIDS[name])
    assert trained[name]["pieces"] == {each.name: each.rank_shape for each in plan.parameters}


@pytest.mark.parametrize("world", [2, 4])
def test_a_vocabulary_cut_over_ranks_has_the_loss_and_the_gradients_of_the_whole(world: int, trained: dict) -> None:
    x, weight, targets = loss_inputs()
    expected = linear_cross_entropy_sum(x, weight, targets)
    grad_x, grad_weight = torch.autograd.grad(0.3 * expected, (x, weight))
    found = trained[f"words on {world}"]
    assert [found[rank]["rows"] for rank in found] == {2: [49, 48], 4: [25, 25, 25, 22]}[world]
    torch.testing.assert_close(found[0]["loss"], expected.detach())
    torch.testing.assert_close(found[0]["without gradients"], expected.detach())
    torch.testing.assert_close(found[0]["grad_x"], grad_x)
    torch.testing.assert_close(torch.cat([found[rank]["grad"] for rank in found]), grad_weight)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case["layout"].tensor > 1])
def test_no_rank_makes_logits_of_the_whole_vocabulary(name: str, trained: dict[str, dict]) -> None:
    assert trained[name]["widest"] == 49  # of 97


@pytest.mark.parametrize("kind", ["packed", "tied"])
def test_documents_and_one_matrix_for_both_ends_make_a_difference(kind: str, alone: dict[str, dict]) -> None:
    assert alone[kind]["losses"][-1] != pytest.approx(alone["plain"]["losses"][-1], rel=1e-4)


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
    found = model(tokens, tokens)
    found.backward()
    cast = Llama(CONFIG)
    init_weights(cast, seed=5)
    cast = cast.to(torch.bfloat16)
    cast.reset_buffers()
    expected = cast(tokens, tokens)
    expected.backward()
    assert found.item() == expected.item()
    for parameter, rounded in zip(model.parameters(), cast.parameters(), strict=True):
        assert parameter.dtype == parameter.grad.dtype == torch.float32
        scale = rounded.grad.float().abs().max().item()
        torch.testing.assert_close(parameter.grad, rounded.grad.float(), atol=0.01 * scale, rtol=0.01)
