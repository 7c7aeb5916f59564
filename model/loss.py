"""The training loss, computed together with the output projection.

Shapes: N all positions, C positions of one chunk, E dim, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from model.kernels import product

IGNORE = -100  # a target to leave out
# Logits of one chunk, in float32. On the CPU small enough to stay in the cache; on a GPU large enough for the
# products to run at full speed (2,048 positions of LLaMA's 32,000 words).
_CHUNK_BYTES = {"cpu": 8 * 2**20}
_CHUNK_BYTES_ELSEWHERE = 256 * 2**20


def linear_cross_entropy_sum(x: torch.Tensor, weight_VE: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in nats of the logits `x @ weight.T`, summed over the targets that are not -100, in float32.

    x (..., E), targets (...). A sum, not a mean: ranks and micro-batches with different numbers of valid tokens
    then add up to the loss of the whole batch, once divided by the global number of them.

    At LLaMA's vocabulary the logits, their log-probabilities and their gradient are the largest arrays of a step.
    Here they exist one chunk of positions at a time: the gradient is taken in the forward, while the chunk is at
    hand (as Liger's fused linear cross-entropy does), and the backward only scales it.
    """
    if torch.is_grad_enabled() and (x.requires_grad or weight_VE.requires_grad):
        return _LinearCrossEntropySum.apply(x, weight_VE, targets)
    return _chunked(x.flatten(0, -2), weight_VE, targets.flatten(), None, None)


class _LinearCrossEntropySum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight_VE: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x_NE = x.reshape(-1, x.shape[-1])
        grad_x_NE = torch.empty_like(x_NE)
        # One addition per chunk: in bfloat16 they would round away the small ones.
        grad_weight_VE = torch.zeros_like(weight_VE, dtype=torch.promote_types(weight_VE.dtype, torch.float32))
        loss = _chunked(x_NE, weight_VE, targets.flatten(), grad_x_NE, grad_weight_VE)
        ctx.save_for_backward(grad_x_NE.view(x.shape), grad_weight_VE.to(weight_VE.dtype))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        grad_x, grad_weight_VE = ctx.saved_tensors
        return (grad_x * grad).type_as(grad_x), (grad_weight_VE * grad).type_as(grad_weight_VE), None


def _chunked(
    x_NE: torch.Tensor,
    weight_VE: torch.Tensor,
    targets_N: torch.Tensor,
    grad_x_NE: torch.Tensor | None,
    grad_weight_VE: torch.Tensor | None,
) -> torch.Tensor:
    """The summed loss; where there are arrays for them, the gradients of `x` (filled) and `weight` (added to)."""
    high = torch.promote_types(x_NE.dtype, torch.float32)
    budget = _CHUNK_BYTES.get(x_NE.device.type, _CHUNK_BYTES_ELSEWHERE)
    rows = max(1, budget // (weight_VE.shape[0] * high.itemsize))
    loss = torch.zeros((), dtype=high, device=x_NE.device)
    for start in range(0, x_NE.shape[0], rows):
        x_CE, targets_C = x_NE[start : start + rows], targets_N[start : start + rows]
        valid_C = targets_C != IGNORE
        index_C1 = targets_C.where(valid_C, 0).unsqueeze(1)
        log_probs_CV = product(x_CE, weight_VE.t()).log_softmax(-1, dtype=high)
        loss -= log_probs_CV.gather(1, index_C1).squeeze(1).where(valid_C, 0.0).sum()
        if grad_x_NE is None or grad_weight_VE is None:
            continue
        # d loss / d logits = softmax - one-hot of the target; nothing where the target is left out.
        weight_C1 = valid_C.to(high).unsqueeze(1)
        grad_CV = log_probs_CV.exp_().mul_(weight_C1).scatter_add_(1, index_C1, -weight_C1).to(x_NE.dtype)
        grad_x_NE[start : start + rows] = product(grad_CV, weight_VE)
        if grad_weight_VE.dtype == grad_CV.dtype:
            # Not addmm_, which torch's FLOP counter overlooks.
            torch.addmm(grad_weight_VE, grad_CV.t(), x_CE, out=grad_weight_VE)
        else:
            grad_weight_VE += torch.mm(grad_CV.t(), x_CE)
    return loss
