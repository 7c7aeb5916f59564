import hashlib
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from model.config import LlamaConfig
from model.init import init_weights
from model.optim import make_optimizer
from model.parallelize import loss_scale, parallelize
from model.transformer import Llama

# Uneven on purpose: 97 rows do not split in two.
CONFIG = LlamaConfig(dim=24, n_layers=2, n_heads=2, ffn_hidden=33, vocab_size=97, sequence_length=16)


def digest(model: Llama) -> str:
    hashed = hashlib.sha256()
    for _, parameter in sorted(model.named_parameters()):
        full = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        hashed.update(full.detach().numpy().tobytes())
    return hashed.hexdigest()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(0, 97, (2, 17), generator=torch.Generator().manual_seed(0))
    targets = tokens[:, 1:].clone()
    targets[0, :5] = -100  # the ranks have different numbers of valid targets
    return tokens[:, :-1], targets


def train_step(model: Llama, tokens: torch.Tensor, targets: torch.Tensor, scale: float) -> dict:
    (model(tokens, targets) * scale).backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    return {name: g.full_tensor() if isinstance(g, DTensor) else g for name, g in grads.items()}


def worker(rank: int, world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    with torch.device("meta"):
        model = Llama(CONFIG)
    parallelize(model, init_device_mesh("cpu", (world_size,)), param_dtype=torch.float32)
    model.to_empty(device="cpu")
    init_weights(model, seed=5)
    first = digest(model)
    tokens, targets = batch()
    scale = loss_scale(world_size, int((targets != -100).sum()))
    grads = train_step(model, tokens[rank : rank + 1], targets[rank : rank + 1], scale)
    make_optimizer(model, lr=1e-3).step()
    if rank == 0:
        torch.save({"digest": first, "grads": grads}, Path(folder) / "result.pt")
    digest(model)  # a collective: keeps the ranks together to the end
    dist.destroy_process_group()


def test_two_ranks_equal_one(tmp_path: Path) -> None:
    mp.spawn(worker, args=(2, str(tmp_path)), nprocs=2)
    result = torch.load(tmp_path / "result.pt")
    model = Llama(CONFIG)
    init_weights(model, seed=5)
    assert result["digest"] == digest(model)
    tokens, targets = batch()
    grads = train_step(model, tokens, targets, loss_scale(1, int((targets != -100).sum())))
    for name, grad in grads.items():
        torch.testing.assert_close(result["grads"][name], grad, atol=1e-6, rtol=1e-4)


def test_the_initial_weights_follow_the_seed() -> None:
    model = Llama(CONFIG)
    init_weights(model, seed=5)
    other = Llama(CONFIG)
    init_weights(other, seed=6)
    assert digest(model) != digest(other)
    assert model.output.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_half_precision_needs_a_mesh() -> None:
    with pytest.raises(ValueError, match="param_dtype"):
        parallelize(Llama(CONFIG), None, param_dtype=torch.bfloat16)
