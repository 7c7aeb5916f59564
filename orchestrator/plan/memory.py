"""Accelerator memory of a training under FSDP2, by component, for each choice of activation checkpointing.

Legend: P parameters, W workers in the shard group, d dim, d_kv key/value width, h feed-forward width, H heads,
L layers, V vocabulary, T tokens of one micro-batch on one worker, b bytes of the dtype that computes (2 for bf16).

State, per worker. Master weights, reduced gradients and AdamW's two moments stay in fp32 and are sharded:
4 P/W + 4 P/W + 8 P/W = 16 P/W bytes (ZeRO stage 3: Rajbhandari et al. 2020, section 3, with fp32 gradients).

Gathered. FSDP2 gathers one block in the computing dtype while it computes and prefetches the next; an all-gather
has an output buffer beside the weights that it is copied to: 3 blocks x b. The root group (embedding, last norm,
output) stays gathered: b x root. In the backward one block's gradient stands unsharded (b x block) beside the fp32
input of its reduce-scatter (4 x block), and the gradient of the output matrix waits for the root's own (b V d).
A single worker gathers nothing (`model.parallelize`): where b is less than 4, each weight's copy in it may be kept for
the backward, b P.

Accumulated. Of a step of several micro-batches the gradients are reduced once, after the last: until then their sum
stands unsharded in fp32, 4 P bytes whatever W is. Where that does not fit, each micro-batch's are reduced at once
("each_micro_batch"), and nothing accumulates but the shard; between replicas of the shard group, which are summed after
the last in any case, that is another 4 P/W.

Tensor parallelism over t of the workers cuts a block's weights by t, so that P above is P_blocks/t + P_root, W the
shards alone, and what a block keeps by t: products by heads and channels, the rest by positions. The inputs of wq, wk
and wv and of gate and up, which are gathered from all positions, are not cut: 2 d per token more.

Activations. Korthikanti et al. 2022 count 34 s b h + 5 a s^2 b bytes for a GPT layer with dropout, GELU of width 4h
and a stored attention matrix. For this model's block (no dropout, fused attention, SwiGLU) the tensors kept for the
backward are, in elements per token: the block's input (d), its norm (d, the input of wq, wk and wv), q (d), k and v
(2 d_kv), the attention output (d, the input of wo), the residual after it (d), its norm (d), gate, silu(gate), up
and their product (4 h; 3 h on the CPU, where `model.kernels` computes silu again); 6d + 2 d_kv + 4h in all, and
4 bytes x H for the softmax's log-sum-exp and 8 for the norms.
  none       all of that in every block
  selective  block input (d) and the outputs of linear layers and attention: q, k, v, attention, wo, gate, up, down
             (4d + 2 d_kv + 2h), i.e. 5d + 2 d_kv + 2h and the log-sum-exp; and one block whole, while it is redone
  full       block input (d); and one block whole, while it is redone
The head keeps the input and output of the last norm and the gradient of the latter (3 d b). The loss works in chunks
of positions (`model.loss`): logits and their gradient in b and the log-probabilities in fp32, V (4 + 2 b) bytes per
position of one chunk, and the fp32 gradient of the output matrix, 4 V d.

The components are added as if all peaked together: an upper estimate, in GB of 1e9 bytes (of 16 layers of the 7B model
on one H200 the peak was 85.8 GB, benchmarks/results/gpu.json, and this says 106.4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from model.config import LlamaConfig

CHECKPOINTING = ("none", "selective", "full")  # the least computation first
ONCE, EACH = "once_per_step", "each_micro_batch"  # when gradients are reduced; the least communication first
RESERVE = 0.10
RESERVE_SOURCE = "assumed: a tenth for the driver's context, the collectives' buffers and fragmentation"
GB = 1e9
CHUNK_BYTES = {"cpu": 8 * 2**20, "cuda": 2**30}  # most fp32 logits that stand at once, as in model/loss.py


@dataclass(frozen=True)
class Batch:
    """What one worker holds of a step: `micro_tokens` at a time, `micro_batches` times."""

    micro_tokens: int
    micro_batches: int


def batch_of(sequences: int, workers: int, micro_batch_sequences: int, sequence_length: int) -> Batch:
    """The share of one worker of a batch of `sequences`, in micro-batches of at most `micro_batch_sequences`."""
    per_worker = max(1, sequences // workers)
    size = min(micro_batch_sequences, per_worker)
    return Batch(micro_tokens=size * sequence_length, micro_batches=-(-per_worker // size))


def activation_bytes_per_token(config: LlamaConfig, checkpointing: str, width: int = 2, cpu: bool = False) -> int:
    """Bytes per token that one block keeps for the backward; `width` is b (see the top of the file)."""
    d, h, kv = config.dim, config.ffn_hidden, config.n_kv_heads * config.head_dim
    kept = {
        "none": width * (6 * d + 2 * kv + (3 if cpu else 4) * h) + 4 * config.n_heads + 8,
        "selective": width * (5 * d + 2 * kv + 2 * h) + 4 * config.n_heads,
        "full": width * d,
    }
    return kept[checkpointing]


def memory_gb(
    config: LlamaConfig,
    workers: int,
    batch: Batch,
    checkpointing: str,
    width: int = 2,
    cpu: bool = False,
    *,
    reduction: str = ONCE,
    tensor: int = 1,
    replicas: int = 1,
) -> dict[str, float]:
    """GB per worker by component, and their `total` (formulas at the top of the file).

    workers: all of them; `replicas` groups of `workers / replicas`, in which `tensor` share a batch, hold the model.
    """
    d, vocab, tokens = config.dim, config.vocab_size, batch.micro_tokens
    root = (1 if config.tie_embeddings else 2) * vocab * d + d
    block = (config.params - root) // config.n_layers / tensor
    shards = workers // replicas // tensor
    shard = (config.n_layers * block + root) / shards
    waiting = 4 * (config.n_layers * block + root)
    if reduction == EACH:
        waiting = 4 * shard if replicas > 1 else 0
    whole_block = activation_bytes_per_token(config, "none", width, cpu)
    kept = activation_bytes_per_token(config, checkpointing, width, cpu)
    redone = whole_block if checkpointing != "none" else 0
    gathered = width * (root + 3 * block) + (width + 4) * block + width * vocab * d
    if workers == 1:
        gathered = width * config.params if width < 4 else 0
    chunk = min(tokens, max(1, CHUNK_BYTES["cpu" if cpu else "cuda"] // (4 * vocab)))
    found = {
        "parameters": 4 * shard,
        "gradients": 4 * shard,
        "optimizer": 8 * shard,
        "gathered": gathered,
        "accumulated_gradients": waiting if batch.micro_batches > 1 else 0,
        "activations": tokens / tensor * (config.n_layers * kept + redone + 3 * d * width)
        + (2 * tokens * d * width * (config.n_layers if checkpointing == "none" else 1) if tensor > 1 else 0),
        "logits": chunk * vocab * (4 + 2 * width) + 4 * vocab * d,
    }
    gigabytes = {name: float(size) / GB for name, size in found.items()}
    return gigabytes | {"total": sum(gigabytes.values())}


def state_gb(config: LlamaConfig) -> float:
    """GB of a whole checkpoint: fp32 weights and AdamW's two moments."""
    return 12 * config.params / GB


def memory_plan(
    config: LlamaConfig,
    workers: int,
    batch: Batch,
    width: int,
    device_gb: float | None,
    wanted: str | None = None,
    cpu: bool = False,
    *,
    reduction: str | None = None,
    tensor: int = 1,
    replicas: int = 1,
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
            parts = memory_gb(
                config, workers, batch, name, width, cpu, reduction=when, tensor=tensor, replicas=replicas
            )
            fits = None if usable is None else parts["total"] <= usable
            choices[name] = {**parts, "fits": fits, "gradient_reduction": when}
            if fits is not False or batch.micro_batches == 1:
                break
    fastest = next((name for name in CHECKPOINTING if choices[name]["fits"]), "none" if usable is None else "full")
    chosen = wanted or fastest
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
    }


def fewest_workers(config: LlamaConfig, sequences: int, micro: int, width: int, device_gb: float) -> int | None:
    """The fewest workers (a divisor of `sequences`, the batch) on which full checkpointing fits; None if none does."""
    for workers in (count for count in range(1, sequences + 1) if sequences % count == 0):
        batch = batch_of(sequences, workers, micro, config.sequence_length)
        if memory_gb(config, workers, batch, "full", width, reduction=EACH)["total"] <= device_gb * (1 - RESERVE):
            return workers
    return None
