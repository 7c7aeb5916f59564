"""Which checkpointing and which reduction of gradients fit into an accelerator; `model.memory` says what each takes."""

from __future__ import annotations

from typing import Any

from model.config import LlamaConfig
from model.memory import CHECKPOINTING, EACH, EACH_USE, GB, ONCE, Batch, Compute, memory_gb
from model.sharding import Layout

RESERVE = 0.10
RESERVE_SOURCE = "assumed: a tenth for the driver's context, the collectives' buffers and fragmentation"


def batch_of(sequences: int, workers: int, micro_batch_sequences: int, sequence_length: int) -> Batch:
    """The share of one worker of a batch of `sequences`, in micro-batches of at most `micro_batch_sequences`."""
    per_worker = max(1, sequences // workers)
    size = min(micro_batch_sequences, per_worker)
    return Batch(micro_tokens=size * sequence_length, micro_batches=-(-per_worker // size))


def state_gb(config: LlamaConfig) -> float:
    """GB of a whole checkpoint: fp32 weights and AdamW's two moments."""
    return 12 * config.params / GB


def memory_plan(
    config: LlamaConfig,
    layout: Layout,
    batch: Batch,
    compute: Compute,
    device_gb: float | None,
    wanted: str | None = None,
    reduction: str | None = None,
    gathering: str = EACH_USE,
) -> dict[str, Any]:
    """Memory of every choice, whether it fits, and the chosen one: `wanted`, or the fastest that fits.

    Less recomputation comes first, because it costs computation in any case; within that gradients are reduced once a
    step (`reduction`: as it says), because more communication may hide behind computation. `fits` is None where the
    device's memory is not known. Where nothing fits, the smallest is the chosen one.
    """
    usable = None if device_gb is None else device_gb * (1 - RESERVE)
    choices: dict[str, dict[str, Any]] = {}
    for name in CHECKPOINTING:
        for when in (ONCE, EACH) if reduction is None else (reduction,):
            parts = memory_gb(config, layout, batch, name, compute, when, gathering)
            fits = None if usable is None else parts["total"] <= usable
            choices[name] = {**parts, "fits": fits, "gradient_reduction": when}
            if fits is not False or batch.micro_batches == 1:
                break
    fastest = next((name for name in CHECKPOINTING if choices[name]["fits"]), "none" if usable is None else "full")
    chosen = wanted or fastest
    parts = choices[chosen]
    return {
        "checkpointing": chosen,
        "gradient_reduction": choices[chosen]["gradient_reduction"],
        "memory_gb_per_gpu": choices[chosen]["total"],
        "fits": choices[chosen]["fits"],
        "device_gb": device_gb,
        "usable_gb": usable,
        "micro_batch_tokens": batch.micro_tokens,
        "micro_batches": batch.micro_batches,
        "choices": choices,
        "made_of_gb": {  # the chosen one's parts, as people read them
            "sharded state": parts["parameters"] + parts["gradients"] + parts["optimizer"],
            "unreduced gradients": parts["accumulated_gradients"],
            "gathered": parts["gathered"],
            "activations": parts["activations"],
            "loss": parts["logits"],
        },
    }
