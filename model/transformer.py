"""LLaMA (Touvron et al. 2023): pre-norm blocks, RMSNorm, SwiGLU, rotary positions, no biases, untied output.

This file knows nothing of distribution; see `model.parallelize`.
Shapes: B batch, L positions, E dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from model.attention import Attention, KVCache
from model.config import LlamaConfig
from model.kernels import rms_norm, swiglu
from model.loss import linear_cross_entropy_sum
from model.rope import rope_tables


class RMSNorm(nn.Module):
    """Scale each position by the reciprocal of its root mean square, and each channel by a weight."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x_BLE: torch.Tensor) -> torch.Tensor:
        return rms_norm(x_BLE, self.weight, self.eps)


class FeedForward(nn.Module):
    """SwiGLU: w_down(silu(w_gate x) * w_up x)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w_gate = nn.Linear(dim, hidden, bias=False)
        self.w_up = nn.Linear(dim, hidden, bias=False)
        self.w_down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x_BLE: torch.Tensor) -> torch.Tensor:
        return self.w_down(swiglu(self.w_gate(x_BLE), self.w_up(x_BLE)))


class Block(nn.Module):
    """One layer: attention, then feed-forward, each on a normed copy of the residual stream."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn = FeedForward(config.dim, config.ffn_hidden)

    def forward(
        self, x_BLE: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, cache: KVCache | None = None
    ) -> torch.Tensor:
        x_BLE = x_BLE + self.attention(self.attention_norm(x_BLE), cos, sin, cache)
        return x_BLE + self.ffn(self.ffn_norm(x_BLE))


class Llama(nn.Module):
    """The whole model. Build it on meta or on a device, then call `model.init.init_weights`."""

    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
        # A function of the config, so not part of a checkpoint.
        cos, sin = rope_tables(config.head_dim, config.sequence_length, config.rope_theta)
        device = self.embedding.weight.device
        self.register_buffer("cos", cos.to(device), persistent=False)
        self.register_buffer("sin", sin.to(device), persistent=False)

    def reset_buffers(self) -> None:
        """Recompute the rotary tables, which `to_empty` leaves undefined."""
        config = self.config
        cos, sin = rope_tables(config.head_dim, config.sequence_length, config.rope_theta)
        self.cos.copy_(cos)
        self.sin.copy_(sin)

    def forward(
        self,
        tokens_BL: torch.Tensor,
        targets_BL: torch.Tensor | None = None,
        caches: Sequence[KVCache] | None = None,
    ) -> torch.Tensor:
        """Logits (B, L, V), or with `targets_BL` the summed loss in nats (see `linear_cross_entropy_sum`).

        With `caches`, one per layer, the tokens follow the positions already cached.
        """
        start = caches[0].length if caches else 0
        end = start + tokens_BL.shape[1]
        if end > self.config.sequence_length:
            raise ValueError(f"{end} tokens exceed sequence_length ({self.config.sequence_length})")
        cos, sin = self.cos[start:end], self.sin[start:end]
        x_BLE = self.embedding(tokens_BL)
        for layer, block in enumerate(self.blocks):
            x_BLE = block(x_BLE, cos, sin, caches[layer] if caches else None)
        x_BLE = self.norm(x_BLE)
        if targets_BL is None:
            return self.output(x_BLE)
        return linear_cross_entropy_sum(x_BLE, self.output.weight, targets_BL)
