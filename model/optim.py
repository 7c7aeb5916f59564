"""AdamW and the learning-rate schedule of the LLaMA paper (section 2.3)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

_FUSED_DEVICES = ("cpu", "cuda")


def make_optimizer(
    model: nn.Module,
    lr: float,
    *,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
) -> torch.optim.AdamW:
    """AdamW over all parameters, fused where the device supports it. Call after sharding.

    Only matrices decay: pulling a norm's weight towards zero would shrink its layer, not regularise it.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    fused = all(p.device.type in _FUSED_DEVICES for p in parameters)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=fused)


def lr_at(step: int, *, peak_lr: float, warmup_steps: int, total_steps: int, final_fraction: float = 0.1) -> float:
    """Learning rate of `step`, counted from 0.

    Linear warm-up reaches `peak_lr` at step `warmup_steps - 1`; a cosine then falls to
    `final_fraction * peak_lr` at the last step, `total_steps - 1`, and stays there.
    """
    if step < warmup_steps:
        return peak_lr * (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps + 1) / max(1, total_steps - warmup_steps))
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
    return peak_lr * (final_fraction + (1.0 - final_fraction) * cosine)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group the learning rate `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr


@torch.no_grad()
def clip_gradients(parameters: Iterable[torch.Tensor], max_norm: float) -> torch.Tensor:
    """Scale all gradients by one factor so that their norm is at most `max_norm`; return the norm before, which is the
    same on all ranks.

    Each rank sums the squares of its own pieces, each divided by the number of ranks that hold it too, and one
    all-reduce of one number makes the whole: the pieces may lie on meshes of any shape. (`clip_grad_norm_` reduces
    each parameter's norm by itself, and refuses parameters of different meshes.)
    """
    pieces: dict[int, list[torch.Tensor]] = {}  # by the number of ranks that hold the same
    shared = False
    for parameter in parameters:
        grad = parameter.grad
        if isinstance(grad, DTensor):
            shared = True
            pieces.setdefault(_copies(grad), []).append(grad.to_local())
        elif grad is not None:
            pieces.setdefault(1, []).append(grad)
    if not pieces:
        return torch.zeros(())
    total = _sum_squares(pieces)
    if shared:
        dist.all_reduce(total)
    norm = total.sqrt()
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    # On a GPU, to ask whether there is anything to scale would take longer than to scale by one.
    if factor.device.type != "cpu" or factor < 1:
        torch._foreach_mul_([piece for group in pieces.values() for piece in group], factor)
    return norm


def _sum_squares(pieces: dict[int, list[torch.Tensor]]) -> torch.Tensor:
    """Sum of the squares of all elements, those of each group divided by its key."""
    groups = [torch.stack(torch._foreach_norm(group)).square().sum() / copies for copies, group in pieces.items()]
    return torch.stack(groups).sum()


def _copies(grad: DTensor) -> int:
    assert not any(placement.is_partial() for placement in grad.placements), "a gradient that was not reduced"
    sizes = [grad.device_mesh.size(axis) for axis in range(grad.device_mesh.ndim)]
    return math.prod(size for size, each in zip(sizes, grad.placements, strict=True) if each.is_replicate())
