"""The shape of a LLaMA model. Free of torch, so that accounting can price a model it never builds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from model import flops

_FFN_MULTIPLE = 256
_WHOLE_NUMBERS = ("dim", "n_layers", "n_heads", "n_kv_heads", "ffn_hidden", "vocab_size", "sequence_length")


def default_ffn_hidden(dim: int) -> int:
    """2/3 of 4 `dim`, rounded up to a multiple of 256 (LLaMA paper, section 2.2)."""
    hidden = 8 * dim // 3
    return -(-hidden // _FFN_MULTIPLE) * _FFN_MULTIPLE


RopeKind = Literal["linear", "llama3"]


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How the rotary frequencies are slowed for sequences longer than the model was first trained on.

    linear: all by `factor` (Chen et al. 2023). llama3: those that turn less than `low_freq_factor` times within
    `original_length` tokens by `factor`, those that turn more than `high_freq_factor` times not at all, and the
    ones between by a blend (Llama 3.1).
    """

    kind: RopeKind
    factor: float
    low_freq_factor: float = 1.0  # these three belong to llama3
    high_freq_factor: float = 4.0
    original_length: int = 8192

    def __post_init__(self) -> None:
        if self.kind not in get_args(RopeKind):
            raise ValueError(f"rope_scaling.kind must be one of {', '.join(get_args(RopeKind))}, not {self.kind!r}")
        for knob in ("factor", "low_freq_factor", "original_length"):
            if not getattr(self, knob) > 0:
                raise ValueError(f"rope_scaling.{knob} must be positive, not {getattr(self, knob)!r}")
        if not self.high_freq_factor > self.low_freq_factor:
            raise ValueError(
                f"rope_scaling.high_freq_factor ({self.high_freq_factor}) must be more than "
                f"low_freq_factor ({self.low_freq_factor})"
            )


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Sizes of one model. Input embedding and output projection are two matrices unless `tie_embeddings`."""

    dim: int
    n_layers: int
    n_heads: int
    vocab_size: int
    sequence_length: int = 2048  # longest sequence the rotary tables cover, tokens
    n_kv_heads: int = None  # type: ignore[assignment]  # None: n_heads; fewer is grouped-query attention
    ffn_hidden: int = None  # type: ignore[assignment]  # None: default_ffn_hidden(dim)
    norm_eps: float = 1e-5
    rope_theta: float = 1e4
    rope_scaling: RopeScaling | None = None
    tie_embeddings: bool = False  # the output projection is the embedding matrix
    init_std: float = 0.02

    def __post_init__(self) -> None:
        if self.n_kv_heads is None:
            object.__setattr__(self, "n_kv_heads", self.n_heads)
        if self.ffn_hidden is None:
            object.__setattr__(self, "ffn_hidden", default_ffn_hidden(self.dim))
        for knob in _WHOLE_NUMBERS:
            value = getattr(self, knob)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{knob} must be a positive whole number, not {value!r}")
        for knob in ("norm_eps", "rope_theta", "init_std"):
            if not getattr(self, knob) > 0:
                raise ValueError(f"{knob} must be positive, not {getattr(self, knob)!r}")
        if self.dim % self.n_heads:
            raise ValueError(f"dim ({self.dim}) must be a multiple of n_heads ({self.n_heads})")
        if self.head_dim % 2:
            raise ValueError(f"dim / n_heads ({self.head_dim}) must be even: rotary embedding turns pairs")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads ({self.n_heads}) must be a multiple of n_kv_heads ({self.n_kv_heads})")

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.dim // self.n_heads

    @property
    def params(self) -> int:
        """All trained parameters."""
        return flops.params(self)

    @property
    def matmul_params(self) -> int:
        """Parameters that multiply every token: all but the embedding look-up and the norm weights."""
        return flops.matmul_params(self)

    @property
    def flop_per_token(self) -> int:
        """Training FLOP (forward and backward) per token at `sequence_length`."""
        return flops.flop_per_token(self, self.sequence_length)
