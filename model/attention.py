"""Causal self-attention with an optional key/value cache.

Shapes: B batch, L positions, E dim, H query heads, K key/value heads, D head channels, S cached positions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from model.config import LlamaConfig
from model.kernels import rotate


class KVCache:
    """Keys and values of the positions one layer has seen, in buffers allocated once."""

    def __init__(self, batch: int, length: int, config: LlamaConfig, like: torch.Tensor) -> None:
        shape = (batch, config.n_kv_heads, length, config.head_dim)
        self.k_BKSD = like.new_empty(shape)
        self.v_BKSD = like.new_empty(shape)
        self.length = 0

    def append(self, k_BKLD: torch.Tensor, v_BKLD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the new positions and return all positions so far."""
        end = self.length + k_BKLD.shape[2]
        self.k_BKSD[:, :, self.length : end] = k_BKLD
        self.v_BKSD[:, :, self.length : end] = v_BKLD
        self.length = end
        return self.k_BKSD[:, :, :end], self.v_BKSD[:, :, :end]


class Attention(nn.Module):
    """Multi-head attention with rotary positions; grouped-query where n_kv_heads < n_heads."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.grouped = config.n_kv_heads < config.n_heads
        kv_dim = config.n_kv_heads * config.head_dim
        self.wq = nn.Linear(config.dim, config.dim, bias=False)
        self.wk = nn.Linear(config.dim, kv_dim, bias=False)
        self.wv = nn.Linear(config.dim, kv_dim, bias=False)
        self.wo = nn.Linear(config.dim, config.dim, bias=False)

    def forward(
        self, x_BLE: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, cache: KVCache | None = None
    ) -> torch.Tensor:
        heads = (*x_BLE.shape[:2], -1, self.head_dim)
        q_BHLD = rotate(self.wq(x_BLE).view(heads), cos, sin).transpose(1, 2)
        k_BKLD = rotate(self.wk(x_BLE).view(heads), cos, sin).transpose(1, 2)
        v_BKLD = self.wv(x_BLE).view(heads).transpose(1, 2)
        if cache is not None:
            # `is_causal` aligns its mask with the first key, so it is right only for a prompt into an empty
            # cache; a single new position sees everything before it and needs no mask.
            assert cache.length == 0 or x_BLE.shape[1] == 1, "after the prompt, feed one position at a time"
            k_BKLD, v_BKLD = cache.append(k_BKLD, v_BKLD)
        out_BHLD = F.scaled_dot_product_attention(
            q_BHLD, k_BKLD, v_BKLD, is_causal=x_BLE.shape[1] > 1, enable_gqa=self.grouped
        )
        return self.wo(out_BHLD.transpose(1, 2).flatten(2))
