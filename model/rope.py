"""Rotary position embedding (Su et al. 2021), in the half-split layout.

Channel i is paired with channel i + D/2, as in Hugging Face's LLaMA; Meta's release pairs 2i with 2i + 1. The
two differ by a fixed permutation of the rows of wq and wk: a model trained from scratch cannot tell.
"""

from __future__ import annotations

import math

import torch

from model.config import RopeScaling


def rope_tables(
    head_dim: int, length: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines, each (length, 1, head_dim / 2) in float32, to broadcast over heads."""
    # On the CPU whatever the ambient device: a model built on meta still needs the true values.
    # 1 / theta^x and not theta^-x: bit for bit what the released models were trained with.
    frequency = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim)
    if scaling is not None:
        frequency = _slowed(frequency, scaling)
    angle = torch.outer(torch.arange(length, dtype=torch.float32, device="cpu"), frequency).unsqueeze(1)
    return angle.cos(), angle.sin()


def _slowed(frequency: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    slow = frequency / scaling.factor
    if scaling.kind == "linear":
        return slow
    turns = scaling.original_length * frequency / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - kept) * slow + kept * frequency
