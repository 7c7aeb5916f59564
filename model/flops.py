"""Parameters and training FLOP of a LLaMA, by arithmetic alone.

The convention is PaLM's (Chowdhery et al. 2022, appendix B): 6 N + 12 L d s per token, where N counts the
weights that multiply every token. Attention is charged in full although half of it is masked. Recomputed
activations are not charged, nor is the embedding look-up, which multiplies nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model.config import LlamaConfig


def matmul_params(config: LlamaConfig) -> int:
    """Weights of the matrix products of one forward pass, the output projection included."""
    kv_dim = config.n_kv_heads * config.head_dim
    attention = 2 * config.dim * config.dim + 2 * config.dim * kv_dim
    feed_forward = 3 * config.dim * config.ffn_hidden
    return config.n_layers * (attention + feed_forward) + config.vocab_size * config.dim


def params(config: LlamaConfig) -> int:
    """All trained parameters: the matrix products, the embedding table and the norm weights.

    A tied embedding is the output projection, which is counted among the products already.
    """
    embedding = 0 if config.tie_embeddings else config.vocab_size * config.dim
    norms = (2 * config.n_layers + 1) * config.dim
    return matmul_params(config) + embedding + norms


def flop_per_token(config: LlamaConfig, sequence_length: int) -> int:
    """Training FLOP (forward and backward) per token of a sequence of `sequence_length` tokens."""
    return 6 * matmul_params(config) + 12 * config.n_layers * config.dim * sequence_length
