"""Activation checkpointing: what a block keeps for its backward, and what it computes a second time.

none: everything that autograd saves. full: only the block's input; its forward runs twice (Chen et al. 2016).
selective: the outputs of the linear layers and of attention, which cost nearly all of the forward, are kept, and the
rest (norms, rotary turn, SwiGLU, residual sums) is computed again: the paper's "activations that are expensive to
compute, such as the outputs of linear layers" (section 2.4). The choice is a list of operators, because an operator
is what PyTorch lets a policy see; it holds in eager mode and under torch.compile.

Kernels with a backward by hand (`model.kernels`) need nothing special: they are made of operators that are not in the
list, so the second forward runs them again, and what they save is dropped and made again like everything else.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Checkpointing = Literal["none", "selective", "full"]

# Linear layers, attention on every device and back end, and what tensor parallelism sends: a second reduction would
# put communication where there was computation. Names, because not every PyTorch has all of them.
_KEPT = (
    "aten.mm.default",
    "aten.addmm.default",
    "aten.linear.default",
    "aten._scaled_mm.default",
    "mkldnn._linear_pointwise.default",
    "aten._scaled_dot_product_flash_attention.default",
    "aten._scaled_dot_product_flash_attention_for_cpu.default",
    "aten._scaled_dot_product_efficient_attention.default",
    "aten._scaled_dot_product_cudnn_attention.default",
    "aten._scaled_dot_product_fused_attention_overrideable.default",
    "torch_attn._varlen_attn.default",
    "hoofprint.causal_attention.default",
    "higher_order.flex_attention",
    "_c10d_functional.reduce_scatter_tensor.default",
)


def checkpoint_block(block: nn.Module, mode: Checkpointing) -> None:
    """Makes `block` keep what `mode` says, in place: the names of its parameters stay as they are.

    Before torch.compile and `fully_shard`: the former compiles both forwards, the latter gathers weights around them.
    """
    if mode not in get_args(Checkpointing):
        raise ValueError(f"activation checkpointing must be one of {', '.join(get_args(Checkpointing))}, not {mode!r}")
    if mode == "none":
        return
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}  # there is no dropout to repeat
    if mode == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    plain = block.forward

    # A function of its own, and not a `partial`: torch.compile starts at a frame, and without one here it would find
    # `checkpoint`, which it must not enter alone, and compile nothing.
    def forward(*args: Any) -> Any:
        return checkpoint(plain, *args, **options)

    block.forward = forward  # type: ignore[method-assign]


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in kept_operators() else CheckpointPolicy.PREFER_RECOMPUTE


@cache
def kept_operators() -> frozenset[Any]:
    """The operators of this PyTorch whose outputs `selective` keeps."""
    found = set()
    for name in _KEPT:
        operator: Any = torch.ops
        try:
            for part in name.split("."):
                operator = getattr(operator, part)
        except (AttributeError, RuntimeError):
            continue  # this PyTorch has no such operator, so no block can call it
        found.add(operator)
    return frozenset(found)
