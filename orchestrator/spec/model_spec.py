"""Section `model` of a spec: the LLaMA architecture."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from model.config import RopeKind, RopeScaling
from orchestrator.spec import sense
from orchestrator.spec.quantities import Number, Positive
from orchestrator.spec.section import Section

PositiveNumber = Annotated[Number, Field(gt=0)]


class RopeScalingSpec(Section):
    """Rotary frequencies slowed for longer sequences."""

    kind: RopeKind = Field(description="linear knows `factor` only, llama3 all four")
    factor: PositiveNumber = Field(description="How many times longer the sequences are")
    low_freq_factor: PositiveNumber = Field(default=1.0, description="As Llama 3 has it")
    high_freq_factor: PositiveNumber = Field(default=4.0, description="As Llama 3 has it")
    original_length: Positive = Field(default=8192, description="Tokens that the weights were trained with")

    rules = (sense.rope_scaling,)

    @property
    def scaling(self) -> RopeScaling:
        return RopeScaling(**self.model_dump())


class ModelSpec(Section):
    """The LLaMA architecture."""

    dim: Positive = Field(description="Width of the residual stream")
    n_layers: Positive = Field(description="Blocks")
    n_heads: Positive = Field(description="Attention heads; they divide dim")
    n_kv_heads: Positive | None = Field(
        default=None,
        description="Heads of keys and values; null: n_heads; fewer is grouped-query attention",
    )
    ffn_hidden: Positive | None = Field(
        default=None, description="Width inside SwiGLU; null: 2/3 of 4 dim, rounded up to a multiple of 256"
    )
    norm_eps: PositiveNumber = Field(default=1e-5, description="Added to the mean square in RMSNorm")
    sequence_length: Positive = Field(default=2048, description="Tokens")
    rope_theta: PositiveNumber = Field(default=1e4, description="Base of the rotary frequencies")
    rope_scaling: RopeScalingSpec | None = None
    tie_embeddings: bool = Field(default=False, description="One matrix for the embedding and the output")
    vocab_size: Positive | None = Field(
        default=None, description="Rows of the embedding; null: as many as the tokenizer has pieces"
    )
    init_from: Path | None = Field(
        default=None,
        description="A folder of `hoofprint import`, or a run, whose weights the training starts from; it needs "
        "data.tokenizer.path",
    )

    rules = (sense.heads_divide_dim, sense.kv_heads_divide_heads)
