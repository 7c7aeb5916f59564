"""AdamW and the learning-rate schedule of the LLaMA paper (section 2.3)."""

from __future__ import annotations

import math

import torch
from torch import nn

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
