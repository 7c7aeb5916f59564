"""Memory of a training step on one worker, by component, for each choice of activation checkpointing. Free of torch.

Legend: P parameters, W workers in the shard group, d dim, d_kv key/value width, h feed-forward width, H heads,
L layers, V vocabulary, T tokens of one micro-batch on one worker, b bytes of the dtype that computes (2 for bf16).

What stands together is added up at five moments of a step, and the largest sum is the peak (`_moments`):
  loss               all that the blocks keep, and the largest chunk of logits
  loss_backward      all that the blocks keep, and the gradient of the output matrix twice (as saved, and scaled)
  backward           the last block's backward: nearly all that the blocks keep, and what that backward works in
  end_of_backward    the first block's: one block's activations, and the gradients of all weights
  optimizer          state and gradients alone

State, per worker. Master weights, reduced gradients and AdamW's two moments stay in fp32 and are sharded:
4 P/W + 4 P/W + 8 P/W = 16 P/W bytes (ZeRO stage 3: Rajbhandari et al. 2020, section 3, with fp32 gradients). Of the
gradients there are those that the moment has; all of them where an earlier micro-batch of the step left its own.

Gathered. FSDP2 gathers one block in the computing dtype while it computes and prefetches the next; an all-gather
has an output buffer beside the weights that it is copied to: 3 blocks x b. The root group (embedding, last norm,
output) stays gathered: b x root. Where weights are gathered once a step, those of all blocks stand from the first
forward to the last backward, b x block each in place of the three. In the backward one block's gradient stands
unsharded (b x block) beside the fp32 input of its reduce-scatter (4 x block), and the gradient of the output matrix
waits for the root's own (b V d).
A single worker gathers nothing (`model.parallelize`). Where b is less than 4 its layers cast their weights, and without
checkpointing each block keeps its copies for the backward (b x block); in float8 they are made again.

Accumulated. Of a step of several micro-batches the gradients are reduced once, after the last: until then their sum
stands unsharded in fp32, 4 P bytes whatever W is. Where that does not fit, each micro-batch's are reduced at once
("each_micro_batch"), and nothing accumulates but the shard; between replicas of the shard group, which are summed after
the last in any case, that is another 4 P/W.

Tensor parallelism over t of the workers cuts weights by t, so that P above is P/t and W the shards alone, and what a
block keeps by t: products by heads and channels, the rest by positions. The inputs of wq, wk and wv, of gate and up,
and of the head, which are gathered from all positions, are not cut. The loss has V/t words.

Activations. Korthikanti et al. 2022 count 34 s b h + 5 a s^2 b bytes for a GPT layer with dropout, GELU of width 4h
and a stored attention matrix. For this model's block (no dropout, fused attention, SwiGLU) the tensors kept for the
backward are, in elements per token: the block's input (d), its norm (d, the input of wq, wk and wv), q (d), k and v
(2 d_kv), the attention output (d, the input of wo), the residual after it (d), its norm (d), gate, up and the product
of silu(gate) and up (3 h); 6d + 2 d_kv + 3h in all (2d for 2 d_kv in float32 on a GPU, where shared heads are
repeated), 4 bytes x H for the softmax's log-sum-exp and 8 for the norms.
  none       all of that in every block; silu(gate) too (h) where neither a compiler nor `model.native` computes it
             again. Compiled float8 keeps no inputs of products, which it makes again to scale them: 4d + 2 d_kv + 2h
  selective  block input (d) and the outputs of linear layers and attention: q, k, v, attention, wo, gate, up
             (3d + 2 d_kv + 2h), and down (d) where no compiler sees that it is not needed; one block whole, while it
             is redone
  full       block input (d); one block whole, while it is redone
A block's backward works in the gradients of its output (d) and of the feed-forward's two halves (2 h).
The head keeps the input and output of the last norm and the gradient of the latter (3 d b). The loss works in chunks
of positions (`model.loss`). Of one chunk there are, per position and word, the logits and their gradient in b; on the
CPU the one takes the other's place (`model.native`), and on a GPU, where they are not compiled, there are the logits in
b and, widened, in fp32, and the fp32 log-probabilities. Beside it stand the fp32 gradient of the output matrix (4 V d),
a chunk's own in b before it is added (on the CPU widened, too), and of a single worker the matrix in b.

GB of 1e9 bytes, as the allocator counts what is in use; the driver's context and what fragmentation leaves come on top.
`tests/model/test_model_memory.py` holds it to what was measured on an H200 and on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.config import LlamaConfig
from model.sharding import MASTER_BYTES, Layout

CHECKPOINTING = ("none", "selective", "full")  # the least computation first
ONCE, EACH = "once_per_step", "each_micro_batch"  # when gradients are reduced; the least communication first
EACH_USE = "each_use"  # when weights are gathered: so, or ONCE
GB = 1e9
CHUNK_BYTES = {"cpu": 8 * 2**20, "cuda": 2**30}  # most fp32 logits that stand at once, as in model/loss.py
MOMENTS_BYTES = 8  # of AdamW, in float32


@dataclass(frozen=True)
class Batch:
    """What one worker holds of a step: `micro_tokens` at a time, `micro_batches` times."""

    micro_tokens: int
    micro_batches: int


@dataclass(frozen=True)
class Compute:
    """What a step is computed in: dtype (float32, bfloat16, float8), device, and whether blocks are compiled."""

    dtype: str = "bfloat16"
    cpu: bool = False
    compiled: bool = True

    @property
    def width(self) -> int:
        """Bytes of an activation."""
        return 4 if self.dtype == "float32" else 2


def activation_bytes_per_token(config: LlamaConfig, checkpointing: str, compute: Compute) -> int:
    """Bytes per token that one block keeps for the backward (see the top of the file)."""
    d, h, kv = config.dim, config.ffn_hidden, 2 * config.n_kv_heads * config.head_dim
    attended = 2 * d if compute.dtype == "float32" and not compute.cpu else kv  # `model.attention.repeats`
    silu = 0 if compute.compiled or compute.cpu else h
    lean = compute.compiled and compute.dtype == "float8"
    softmax, norms = 4 * config.n_heads, 8
    kept = {
        "none": compute.width * (4 * d + kv + 2 * h if lean else 6 * d + attended + 3 * h + silu) + softmax + norms,
        "selective": compute.width * ((4 if compute.compiled else 5) * d + kv + 2 * h) + softmax,
        "full": compute.width * d,
    }
    return kept[checkpointing]


def memory_gb(
    config: LlamaConfig,
    layout: Layout,
    batch: Batch,
    checkpointing: str,
    compute: Compute,
    reduction: str = ONCE,
    gathering: str = EACH_USE,
) -> dict[str, float]:
    """GB per worker at the peak of a step, by component, and their `total` (see the top of the file)."""
    moments = _moments(config, layout, batch, checkpointing, compute, reduction, gathering)
    peak = max(moments.values(), key=lambda parts: sum(parts.values()))
    gigabytes = {name: float(size) / GB for name, size in peak.items()}
    return gigabytes | {"total": sum(gigabytes.values())}


def _moments(
    config: LlamaConfig,
    layout: Layout,
    batch: Batch,
    checkpointing: str,
    compute: Compute,
    reduction: str,
    gathering: str,
) -> dict[str, dict[str, float]]:
    """Bytes by component at the moments of a step."""
    d, h, layers, b, t = config.dim, config.ffn_hidden, config.n_layers, compute.width, layout.tensor
    tokens, vocab = batch.micro_tokens / t, config.vocab_size / t
    matrix = vocab * d
    root = (1 if config.tie_embeddings else 2) * matrix + d
    block = (config.params - root * t) / layers / t
    shard = (layers * block + root) / layout.shards
    alone, several = layout.world == 1, batch.micro_batches > 1

    casts = alone and b < MASTER_BYTES  # each layer its own weights
    copied = b * block if casts and compute.dtype != "float8" else 0
    copies = copied * (layers if checkpointing == "none" else 1)
    blocks_kept, blocks_passing = (layers, 0) if gathering == ONCE else (0, 3)
    gathered = copies if alone else b * (root + blocks_kept * block)
    of_block = 0 if alone else (blocks_passing * b + b + MASTER_BYTES) * block + b * matrix
    accumulated, left = 0.0, 0.0  # unreduced; and reduced, by the micro-batches before
    if several and (alone or reduction == EACH):
        left = MASTER_BYTES * shard
        accumulated = MASTER_BYTES * shard if layout.replicas > 1 else 0
    elif several:
        accumulated = MASTER_BYTES * (layers * block + root)

    gathers = 2 * d * b * t if t > 1 else 0  # inputs of all positions, of whatever a block keeps
    whole = activation_bytes_per_token(config, "none", compute) + gathers
    kept = whole if checkpointing == "none" else activation_bytes_per_token(config, checkpointing, compute)
    works = whole - kept + b * (d + 2 * h)
    head = b * d * (2 + 2 * t if t > 1 else 3)
    chunk = min(batch.micro_tokens, max(1, CHUNK_BYTES["cpu" if compute.cpu else "cuda"] // (MASTER_BYTES * vocab)))
    narrow = b if b < MASTER_BYTES else 0
    of_logits = b if compute.cpu else 2 * b if compute.compiled else b + MASTER_BYTES * (2 if narrow else 1)
    if t > 1:  # not compiled, and widened as it is written
        of_logits = b + MASTER_BYTES + narrow
    cast = b * matrix if casts else 0
    added = narrow + MASTER_BYTES if narrow and compute.cpu else narrow  # there widened before it is added
    loss = MASTER_BYTES * matrix + cast + max(chunk * vocab * of_logits, chunk * vocab * b + added * matrix)

    def at(gradients: float, gathered: float, activations: float, logits: float) -> dict[str, float]:
        return {
            "parameters": MASTER_BYTES * shard,
            "gradients": max(left, gradients),
            "optimizer": MOMENTS_BYTES * shard,
            "gathered": gathered,
            "accumulated_gradients": accumulated,
            "activations": tokens * activations,
            "logits": logits,
        }

    first, all_of_them = MASTER_BYTES * (matrix + d * h) if alone else 0, MASTER_BYTES * shard
    last = all_of_them - MASTER_BYTES * matrix / layout.shards
    return {
        "loss": at(0, gathered, layers * kept + head, loss),
        "loss_backward": at(0, gathered, layers * kept + head, 2 * matrix * (MASTER_BYTES if alone else b)),
        "backward": at(first, gathered + of_block, layers * kept + works, 0),
        "end_of_backward": at(last, copied if alone else gathered + of_block, kept + works, 0),
        "optimizer": at(all_of_them, 0, 0, 0),
    }
