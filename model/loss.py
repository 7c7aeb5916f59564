"""The training loss."""

from __future__ import annotations

from typing import Any

import torch

IGNORE = -100  # a target to leave out


def cross_entropy_sum(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in nats, summed over the targets that are not -100, computed in float32.

    logits (..., V), targets (...). A sum, not a mean: ranks and micro-batches with different numbers of valid
    tokens then add up to the loss of the whole batch, once divided by the global number of them.
    Backward runs once: the log-probabilities turn into the gradient in place.
    """
    return _CrossEntropySum.apply(logits.flatten(0, -2).float(), targets.flatten())


class _CrossEntropySum(torch.autograd.Function):
    """As F.cross_entropy, with two arrays of the size of the logits fewer in the backward.

    At LLaMA's vocabulary these arrays are the largest of the step.
    """

    @staticmethod
    def forward(ctx: Any, logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
        log_probs_NV = logits_NV.log_softmax(-1)
        valid_N = targets_N != IGNORE
        index_N1 = targets_N.where(valid_N, 0).unsqueeze(1)
        ctx.save_for_backward(log_probs_NV, index_N1, valid_N)
        return -log_probs_NV.gather(1, index_N1).squeeze(1).where(valid_N, 0.0).sum()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        log_probs_NV, index_N1, valid_N = ctx.saved_tensors
        weight_N1 = (grad * valid_N).unsqueeze(1)
        grad_NV = log_probs_NV.exp_().mul_(weight_N1)
        return grad_NV.scatter_add_(1, index_N1, -weight_N1), None
