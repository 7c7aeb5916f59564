"""Training FLOP of a LLaMA under the three conventions in use, by the structure of the model alone.

They differ by up to 15 % for the same training, so no figure is given without the name of its convention.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.config import LlamaConfig

PALM = "PaLM: 6 N_matmul + 12 L d s per token, embedding look-up excluded"
CAUSAL = "causal: 6 N_matmul + 6 L d s per token, the masked half of attention not counted"
SIX_N = "6ND: 6 x all parameters per token, attention not counted"


@dataclass(frozen=True)
class Flop:
    """Training FLOP per token, forward and backward, without recomputation."""

    palm: int
    causal: int
    six_n: int


def flop_per_token(config: LlamaConfig) -> Flop:
    """FLOP per token at the model's own sequence length, tokens.

    palm: Chowdhery et al. 2022, appendix B. causal: the same with half the attention, as FlashAttention counts
    (Dao 2023). six_n: Kaplan et al. 2020 with all parameters, which is what regulators and most tables use.
    """
    attention = 12 * config.n_layers * config.dim * config.sequence_length
    matmul = 6 * config.matmul_params
    return Flop(palm=config.flop_per_token, causal=matmul + attention // 2, six_n=6 * config.params)


def recomputed_per_token(config: LlamaConfig, checkpointing: str) -> int:
    """FLOP per token that activation checkpointing computes a second time (in HFU, not in MFU).

    full: the forward of every block, a third of 6 N and 12 L d s, without the output projection. selective: none,
    because the outputs of the matrix products and of attention are kept; the element-wise rest counts as 0.
    """
    if checkpointing != "full":
        return 0
    blocks = config.matmul_params - config.vocab_size * config.dim
    return 2 * blocks + 4 * config.n_layers * config.dim * config.sequence_length
