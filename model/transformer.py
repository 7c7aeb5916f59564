"""LLaMA (Touvron et al. 2023): pre-norm blocks, RMSNorm, SwiGLU, rotary positions, no biases.

This file knows nothing of distribution; see `model.parallelize`.
Shapes: B batch, L positions, E dim, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from model.attention import Attention, Mask
from model.cache import Cache, LayerCache
from model.config import LlamaConfig
from model.kernels import rms_norm, swiglu
from model.linear import Linear
from model.loss import Words, linear_cross_entropy_sum
from model.packing import Packing
from model.rope import rope_tables


class RMSNorm(nn.Module):
    """Scale each position by the reciprocal of its root mean square, and each channel by a weight."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x_BLE: torch.Tensor) -> torch.Tensor:
        return rms_norm(x_BLE, self.weight.to(x_BLE.dtype), self.eps)


class FeedForward(nn.Module):
    """SwiGLU: w_down(silu(w_gate x) * w_up x)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w_gate = Linear(dim, hidden)
        self.w_up = Linear(dim, hidden)
        self.w_down = Linear(hidden, dim)

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
        self,
        x_BLE: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        cache: LayerCache | None = None,
        mask: Mask = None,
    ) -> torch.Tensor:
        x_BLE = x_BLE + self.attention(self.attention_norm(x_BLE), cos, sin, cache, mask)
        return x_BLE + self.ffn(self.ffn_norm(x_BLE))


class Head(nn.Module):
    """Logits of the last norm's output, or the loss computed along with them. The matrix is handed in: it may be the
    embedding's, and so this module has no weights and no names in a checkpoint. `compiled`, `words`: see the loss."""

    compiled = False
    words: Words | None = None

    def forward(
        self, x_BLE: torch.Tensor, weight_VE: torch.Tensor, targets_BL: torch.Tensor | None = None
    ) -> torch.Tensor:
        if targets_BL is None:
            return F.linear(x_BLE, weight_VE.to(x_BLE.dtype))
        return linear_cross_entropy_sum(x_BLE, weight_VE, targets_BL, compiled=self.compiled, words=self.words)


class Llama(nn.Module):
    """The whole model. Build it on meta or on a device, then call `model.init.init_weights`.

    compute_dtype: what forward and backward compute in where the weights are kept in another dtype (masters in
    float32); None where they have it, or where FSDP casts them as it gathers them.
    """

    compute_dtype: torch.dtype | None = None
    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        # Tied, there is no second name for the embedding: `to_empty` and a checkpoint would make two weights of it.
        self.output = None if config.tie_embeddings else Linear(config.dim, config.vocab_size)
        self.head = Head()
        # A function of the config, so not part of a checkpoint.
        self.register_buffer("cos", None, persistent=False)
        self.register_buffer("sin", None, persistent=False)
        self.reset_buffers()

    def reset_buffers(self) -> None:
        """Compute the rotary tables, which `to_empty` leaves undefined, where the weights are."""
        config, device = self.config, self.embedding.weight.device
        cos, sin = rope_tables(config.head_dim, config.sequence_length, config.rope_theta, config.rope_scaling)
        self.cos, self.sin = cos.to(device), sin.to(device)

    def forward(
        self,
        tokens_BL: torch.Tensor,
        targets_BL: torch.Tensor | None = None,
        cache: Cache | None = None,
        packing: Packing | None = None,
    ) -> torch.Tensor:
        """Logits (B, L, V), or with `targets_BL` the summed loss in nats (see `linear_cross_entropy_sum`).

        With `cache` the tokens go on with the texts in it, and the logits are those of each text's last position,
        (B, 1, V). With `packing` (not both), the sequences are made of documents that do not see each other.
        """
        length = tokens_BL.shape[1]
        if length > self.config.sequence_length:
            raise ValueError(f"{length} tokens exceed sequence_length ({self.config.sequence_length})")
        cos, sin = self.cos[:length], self.sin[:length]
        mask: Mask = None
        if packing is not None:
            assert cache is None, "a cache holds whole texts, not documents packed together"
            cos, sin, mask = self.cos[packing.positions_BL], self.sin[packing.positions_BL], packing.mask
        x_BLE = self.embedding(tokens_BL)
        if self.compute_dtype is not None:
            x_BLE = x_BLE.to(self.compute_dtype)  # and with it all that follows: each weight is cast where it is used
        if cache is not None:
            cos, sin = cache.turns(self.cos, length), cache.turns(self.sin, length)
            mask = cache.mask(x_BLE.dtype)
        for layer, block in enumerate(self.blocks):
            x_BLE = block(x_BLE, cos, sin, cache.layers[layer] if cache else None, mask)
        if cache is not None:
            x_BLE = cache.last(x_BLE)
        x_BLE = self.norm(x_BLE)
        weight_VE = self.embedding.weight if self.output is None else self.output.weight
        return self.head(x_BLE, weight_VE, targets_BL)
