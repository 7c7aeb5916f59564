"""The memory of a step is what was measured: saved tensors, the allocator on the CPU, and a GPU's peak."""

import json
from pathlib import Path

import pytest
import torch
from tiny import spawn
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.compare import PEERS
from model import loss
from model.activation import Checkpointing
from model.config import LlamaConfig
from model.init import init_weights
from model.memory import CHUNK_BYTES, EACH_USE, ONCE, Batch, Compute, activation_bytes_per_token, memory_gb
from model.optim import make_optimizer
from model.parallelize import make_mesh, parallelize, set_gradient_sync
from model.sharding import Layout, sharding_plan
from model.transformer import Llama

BLOCK = LlamaConfig(dim=64, n_layers=1, n_heads=4, n_kv_heads=2, ffn_hidden=192, vocab_size=97, sequence_length=64)
DEEP = LlamaConfig(dim=64, n_layers=4, n_heads=4, n_kv_heads=2, vocab_size=300, sequence_length=64)
WIDE = LlamaConfig(dim=128, n_layers=4, n_heads=4, vocab_size=1024, sequence_length=64)
WORDY = LlamaConfig(dim=64, n_layers=4, n_heads=4, vocab_size=4096, sequence_length=64)
GPU = json.loads((Path(__file__).parents[2] / "benchmarks" / "results" / "gpu.json").read_text(encoding="utf-8"))


def seven_b(layers: int) -> LlamaConfig:
    return LlamaConfig(dim=4096, n_layers=layers, n_heads=32, vocab_size=32000)


def saved_bytes_per_token(compute: Compute, checkpointing: Checkpointing) -> float:
    """What autograd saves in one block on the CPU, its weights, their copies and the rotary tables apart."""
    model = Llama(BLOCK)
    init_weights(model, 1)
    dtype = getattr(torch, compute.dtype)
    parallelize(model, None, param_dtype=dtype, checkpointing=checkpointing)
    if compute.compiled:
        torch._dynamo.reset()
        model.blocks[0].compile(
            backend="aot_eager_decomp_partition", fullgraph=True
        )  # inductor's choice of what to keep
    weights = [*model.parameters(), model.cos, model.sin]
    theirs = {each.untyped_storage().data_ptr() for each in weights}
    shapes = {tuple(shape) for each in weights for shape in (each.shape, each.shape[::-1])}
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in theirs and tuple(tensor.shape) not in shapes:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = torch.randn(2, 64, BLOCK.dim).to(dtype).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model.blocks[0](x, model.cos, model.sin)
    assert out.requires_grad
    return sum(saved.values()) / (2 * 64)


@pytest.mark.parametrize(
    ("dtype", "compiled", "checkpointing"),
    [
        ("float32", False, "none"),
        ("bfloat16", False, "none"),
        ("bfloat16", True, "none"),
        ("bfloat16", True, "selective"),
    ],
)
def test_a_block_keeps_what_the_formula_says(dtype: str, compiled: bool, checkpointing: Checkpointing) -> None:
    compute = Compute(dtype, cpu=True, compiled=compiled)
    expected = activation_bytes_per_token(BLOCK, checkpointing, compute)
    assert saved_bytes_per_token(compute, checkpointing) == expected


def measured_gb(
    config: LlamaConfig,
    layout: Layout,
    dtype: str,
    checkpointing: Checkpointing,
    batch: Batch,
    gather_once: bool = False,
) -> float:
    """The peak of the second step, which has its weights and moments already, by what the allocator did here."""
    mesh = make_mesh("cpu", layout) if layout.world > 1 else None
    with torch.device("meta"):
        model = Llama(config)
    plan = sharding_plan(model, layout)
    kept = {"checkpointing": checkpointing, "gather_once": gather_once}
    parallelize(model, mesh, plan=plan, param_dtype=getattr(torch, dtype), **kept)  # type: ignore[arg-type]
    init_weights(model.to_empty(device="cpu"), 1)
    optimizer = make_optimizer(model, 1e-3)
    tokens = torch.randint(config.vocab_size, (batch.micro_tokens // config.sequence_length, config.sequence_length))

    def step() -> None:
        for micro in range(batch.micro_batches):
            set_gradient_sync(model, micro == batch.micro_batches - 1, False, gather_once)
            model(tokens, tokens).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    found = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(found, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    assert layout.world > 1 or now == 0  # nothing is left over from the step, or was there before and went
    return (12 * config.params / layout.shards + peak) / 1e9


TWO_RANKS: list[tuple[Checkpointing, Batch, bool]] = [  # the last: weights are gathered once a step
    ("none", Batch(1024, 1), False),
    ("full", Batch(1024, 1), False),
    ("none", Batch(512, 2), True),
]


def two_ranks(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    found = [measured_gb(WIDE, Layout(shards=2), "bfloat16", *case) for case in TWO_RANKS]
    if rank == 0:
        (Path(folder) / "found.json").write_text(json.dumps(found))


def test_a_step_of_two_ranks_takes_what_the_formula_says(tmp_path: Path) -> None:
    spawn(two_ranks, 2, str(tmp_path))
    compute = Compute(cpu=True, compiled=False)
    planned = [
        memory_gb(WIDE, Layout(shards=2), batch, each, compute, ONCE, ONCE if gather_once else EACH_USE)
        for each, batch, gather_once in TWO_RANKS
    ]
    measured = json.loads((tmp_path / "found.json").read_text())
    # One block's backward, which is most of it in `full`, works in less where the routines in C need no copies.
    assert all(0.95 <= each["total"] / found <= 1.12 for each, found in zip(planned, measured, strict=True))


@pytest.mark.parametrize(
    ("config", "dtype", "checkpointing", "batch"),
    [
        (DEEP, "float32", "none", Batch(512, 2)),
        (DEEP, "bfloat16", "none", Batch(512, 1)),
        (DEEP, "bfloat16", "selective", Batch(512, 1)),
        (DEEP, "bfloat16", "full", Batch(512, 2)),
        (WORDY, "bfloat16", "none", Batch(256, 1)),
        (WORDY, "float32", "full", Batch(1024, 1)),
    ],
)
def test_a_step_on_the_cpu_takes_what_the_formula_says(
    config: LlamaConfig, dtype: str, checkpointing: Checkpointing, batch: Batch
) -> None:
    planned = memory_gb(config, Layout(), batch, checkpointing, Compute(dtype, cpu=True, compiled=False))
    measured = measured_gb(config, Layout(), dtype, checkpointing, batch)
    assert planned["total"] == pytest.approx(measured, rel=0.05)  # what products work in is not planned


def test_a_step_on_an_h200_takes_what_the_formula_says() -> None:
    """Every peak of our training in benchmarks/results/gpu.json, and those of an earlier run of the suite on the same
    GPU."""
    seen = [
        (cell["layers"], cell["sequences"] * int(length), cell["dtype"], cell["checkpointing"], cell["peak_memory_gb"])
        for name, part in GPU["parts"].items()
        if name.startswith("training ") and name.removeprefix("training ") not in PEERS
        for length, cell in part["found"].items()
        if "peak_memory_gb" in cell
    ]
    assert len(seen) >= 3
    seen += [(16, 16384, "bfloat16", "none", 85.84), (16, 16384, "float8", "none", 69.30)]
    for layers, tokens, dtype, checkpointing, peak_gb in seen:
        planned = memory_gb(seven_b(layers), Layout(), Batch(tokens, 1), checkpointing, Compute(dtype))
        assert planned["total"] == pytest.approx(peak_gb, rel=0.012), (layers, tokens, dtype, checkpointing)


def test_the_loss_takes_no_larger_chunks_than_planned() -> None:
    assert loss._CHUNK_BYTES["cpu"] <= CHUNK_BYTES["cpu"] and loss._CHUNK_BYTES_ELSEWHERE <= CHUNK_BYTES["cuda"]
