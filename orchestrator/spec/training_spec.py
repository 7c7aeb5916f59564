"""Sections `training` and `checkpoint` of a spec."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from orchestrator.spec import sense
from orchestrator.spec.quantities import Count, Number, Positive, Whole
from orchestrator.spec.section import Section

Beta = Annotated[Number, Field(ge=0, lt=1)]


def _auto_or_switch(value: Any) -> Any:
    """One fault for a value that is neither, where pydantic has one for each."""
    if value != "auto" and not isinstance(value, bool):
        raise ValueError(f"expected auto, true or false, got {value!r}")
    return value


class TrainingSpec(Section):
    """Optimisation as in the LLaMA paper, section 2.3."""

    tokens: Positive = Field(description="Of the whole training; the last that do not fill a batch are not trained")
    batch_tokens: Positive = Field(description="Of one step, over all workers")
    micro_batch_sequences: Positive = Field(default=8, description="Sequences that a worker computes at once")
    peak_lr: Annotated[Number, Field(gt=0)] = Field(description="Learning rate after the warm-up")
    min_lr_fraction: Annotated[Number, Field(ge=0, le=1)] = Field(
        default=0.1, description="Where the cosine ends, as a share of peak_lr"
    )
    warmup_steps: Annotated[Count, Field(ge=0)] = Field(default=2000, description="Steps to peak_lr, linearly")
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.95), description="Of AdamW")
    weight_decay: Annotated[Number, Field(ge=0)] = Field(
        default=0.1, description="Of AdamW, on matrices; norms have none"
    )
    gradient_clip: Annotated[Number, Field(gt=0)] = Field(default=1.0, description="Largest norm of the gradient")
    dtype: Literal["auto", "float32", "bfloat16", "float8"] = Field(
        default="auto",
        description="What is computed in; weights at rest and their moments are float32. auto: bfloat16 on GPUs. "
        "float8: the products of blocks, and bfloat16 the rest; needs the extra hoofprint[float8]",
    )
    activation_checkpointing: Literal["auto", "none", "selective", "full"] = Field(
        default="auto",
        description="What blocks keep for the backward: everything, the outputs of linear layers and attention, or "
        "their input only; auto: the fastest that fits the devices",
    )
    compile: Annotated[Literal["auto"] | bool, BeforeValidator(_auto_or_switch)] = Field(
        default="auto", description="torch.compile each block; auto: on GPUs"
    )
    gradient_reduction: Literal["auto", "once_per_step", "each_micro_batch"] = Field(
        default="auto",
        description="Gradients of a step's micro-batches are summed on each worker and reduced once, or cut at once to "
        "save memory; auto: once where they fit",
    )
    weight_gathering: Literal["auto", "once_per_step", "each_use"] = Field(
        default="auto",
        description="Weights that workers share are gathered for each forward and backward of a block, or once a step, "
        "and kept; auto: once on the CPU, where nothing is computed beside a gather",
    )
    attention: Literal["auto", "flash", "cudnn", "efficient", "math", "flex", "varlen"] = Field(
        default="auto",
        description="The attention kernel; flex and varlen are for document_masking, flash and cudnn for whole "
        "sequences",
    )
    evaluate_every_steps: Positive = Field(default=500, description="Validation loss; also at the end")
    evaluation_sequences: Positive = Field(default=64, description="Sequences that it is the mean of")
    checkpoint_every_steps: Positive = Field(default=500, description="Also at the end, and when the run is stopped")
    nonfinite_loss: Literal["stop", "skip"] = Field(
        default="stop",
        description="A step whose loss or gradient is not finite ends the run, or its gradient is thrown away on all "
        "workers",
    )


class CheckpointSpec(Section):
    """How checkpoints are written, and which are kept: the last ones, those of every so many steps, or all."""

    asynchronous: bool = Field(
        default=True, description="The training goes on while one is written, from a copy in main memory"
    )
    # Two: the one before is needed where the newest is damaged.
    keep_last: Annotated[Whole, Field(ge=2)] | None = Field(default=None, description="So many; null keeps all")
    keep_every_steps: Positive | None = Field(default=None, description="Every so many steps one stays, however old")
    copy_to: Annotated[str, Field(pattern=r"^[a-z0-9]+://\S+$")] | None = Field(
        default=None,
        description="Where each is copied to, s3://bucket/folder or file:///folder; a run that resumes fetches from "
        "there what it lacks",
    )

    rules = (sense.keeping_some_needs_a_last, sense.copies_keep_no_secrets)
