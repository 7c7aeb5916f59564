"""Rotary position embedding (Su et al. 2021), in the half-split layout.

Channel i is paired with channel i + D/2, as in Hugging Face's LLaMA; Meta's release pairs 2i with 2i + 1. The
two differ by a fixed permutation of the rows of wq and wk: a model trained from scratch cannot tell.
"""

from __future__ import annotations

import torch


def rope_tables(head_dim: int, length: int, theta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines, each (length, 1, head_dim / 2) in float32, to broadcast over heads."""
    # On the CPU whatever the ambient device: a model built on meta still needs the true values.
    frequency = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim)
    angle = torch.outer(torch.arange(length, dtype=torch.float32, device="cpu"), frequency).unsqueeze(1)
    return angle.cos(), angle.sin()
