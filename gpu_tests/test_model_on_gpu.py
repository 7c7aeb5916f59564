"""What only a GPU can show of the model: run by hand on one, `pytest gpu_tests` (no Ray, no internet, torch >= 2.11).

Not among `tests/`, whose run fails where a test is skipped.
"""

import gc
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from model.activation import Checkpointing
from model.attention import Backend, attend, backend_in_use, sdpa_backends
from model.config import LlamaConfig
from model.init import init_weights
from model.packing import Form, pack
from model.parallelize import _fully_shard, make_mesh, parallelize, set_gradient_sync
from model.sharding import Layout, sharding_plan
from model.transformer import Llama

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
BOS, LENGTH = 1, 512
CONFIG = LlamaConfig(dim=1024, n_layers=4, n_heads=8, n_kv_heads=4, vocab_size=8192, sequence_length=LENGTH)
GPU, CPU = torch.device("cuda"), torch.device("cpu")


def documents(rows: int = 2) -> torch.Tensor:
    draw = random.Random(1)
    made = []
    for _ in range(rows):
        row = [draw.randrange(3, 8192) for _ in range(20)]
        while len(row) < LENGTH:
            row += [BOS, *(draw.randrange(3, 8192) for _ in range(draw.choice((0, 3, 60, 200))))]
        made.append(row[:LENGTH])
    return torch.tensor(made)


def draw_qkv(device: torch.device, dtype: torch.dtype, kv_heads: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, heads, LENGTH, 128) for heads in (8, kv_heads, kv_heads)]
    drawn = [torch.randn(shape, generator=generator) for shape in shapes]
    return [each.to(device, dtype).requires_grad_() for each in drawn]


@pytest.mark.parametrize("form", ["mask", "flex", "varlen"])
def test_documents_equal_the_float64_reference(form: Form) -> None:
    tokens = documents()
    exact = draw_qkv(CPU, torch.float64)
    expected = attend(*exact, pack(tokens, BOS, "mask", CPU, torch.float64).mask)
    expected_grads = torch.autograd.grad(expected.sin().sum(), exact)
    inputs = draw_qkv(GPU, torch.bfloat16)
    out = attend(*inputs, pack(tokens, BOS, form, GPU, torch.bfloat16).mask)
    torch.testing.assert_close(out.cpu().double(), expected, atol=0.03, rtol=0.03)
    grads = torch.autograd.grad(out.float().sin().sum(), inputs)
    for grad, each in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad.cpu().double(), each, atol=0.1, rtol=0.05)


@pytest.mark.parametrize("backend", ["flash", "cudnn", "efficient", "math"])
def test_whole_sequences_equal_the_float64_reference(backend: Backend) -> None:
    heads = 8 if backend == "efficient" else 4  # of keys: that one cannot share them
    expected = attend(*draw_qkv(CPU, torch.float64, heads))
    with sdpa_backends(backend, GPU):
        out = attend(*draw_qkv(GPU, torch.bfloat16, heads))
    torch.testing.assert_close(out.cpu().double(), expected, atol=0.03, rtol=0.03)


def test_the_backend_is_named() -> None:
    like = torch.empty(0, device=GPU, dtype=torch.bfloat16)
    fastest = "cudnn" if torch.cuda.get_device_capability() >= (9, 0) else "flash"
    assert backend_in_use(CONFIG, 2, None, "auto", like) == fastest
    assert backend_in_use(CONFIG, 2, None, "flash", like) == "flash"


def test_shared_heads_in_float32_write_no_matrix_of_scores() -> None:
    assert backend_in_use(CONFIG, 2, None, "auto", torch.empty(0, device=GPU)) == "efficient"
    expected = attend(*draw_qkv(CPU, torch.float64))
    with sdpa_backends("auto", GPU):
        out = attend(*draw_qkv(GPU, torch.float32))
    torch.testing.assert_close(out.cpu().double(), expected, atol=1e-3, rtol=1e-3)


def step(mode: Checkpointing, compile: bool, packed: bool) -> tuple[float, list[torch.Tensor], int]:
    """(loss, gradients, bytes at the peak above those before) of one bfloat16 step."""
    torch._dynamo.reset()
    gc.collect()
    before = torch.cuda.memory_allocated()
    with torch.device("meta"):
        model = Llama(CONFIG)
    parallelize(model, None, param_dtype=torch.bfloat16, checkpointing=mode, compile=compile)
    model.to_empty(device=GPU)
    init_weights(model, seed=5)
    tokens = documents(8)
    packing = pack(tokens, BOS, "varlen", GPU, torch.bfloat16) if packed else None
    torch.cuda.reset_peak_memory_stats()
    with sdpa_backends("auto", GPU):
        loss = model(tokens.to(GPU), tokens.to(GPU), packing=packing)
        loss.backward()
    grads = [p.grad.cpu() for p in model.parameters()]
    return loss.item(), grads, torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("compile", [False, True])
def test_checkpointing_changes_memory_and_nothing_else(compile: bool, packed: bool) -> None:
    plain, selective, full = (step(mode, compile, packed) for mode in ("none", "selective", "full"))
    assert plain[2] > selective[2] > full[2]
    for other in (selective, full):
        assert other[0] == pytest.approx(plain[0], rel=1e-3)
        for grad, expected in zip(other[1], plain[1], strict=True):
            torch.testing.assert_close(grad, expected, atol=0.05 * expected.abs().max().item(), rtol=0.05)


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[DeviceMesh]:
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("nccl", store=store, rank=0, world_size=1, device_id=torch.device("cuda", 0))
    yield make_mesh("cuda", Layout())
    dist.destroy_process_group()


@pytest.mark.parametrize("gather_once", [False, True])
def test_shards_on_nccl_give_the_gradients_of_the_whole_model(mesh: DeviceMesh, gather_once: bool) -> None:
    """One rank stays whole in a run; here it goes through FSDP all the same, gathers ahead and reduces over NCCL."""
    tokens = documents(4).to(GPU)
    found = []
    for sharded in (False, True):
        with torch.device("meta"):
            model = Llama(CONFIG)
        if sharded:
            _fully_shard(model, mesh, sharding_plan(model, Layout()), torch.bfloat16, gather_once)
        else:
            parallelize(model, None, param_dtype=torch.bfloat16)
        model.to_empty(device=GPU)
        init_weights(model, seed=5)
        for last in (False, True):
            set_gradient_sync(model, last, each_micro_batch=False, gather_once=gather_once)
            half = tokens[2 * last : 2 * last + 2]
            model(half, half).backward()
        found.append([getattr(p.grad, "full_tensor", lambda p=p: p.grad)().cpu() for p in model.parameters()])
    for whole, of_shards in zip(*found, strict=True):
        torch.testing.assert_close(of_shards, whole, atol=0.05 * whole.abs().max().item(), rtol=0.05)
