"""The training loss, computed together with the output projection.

Shapes: N all positions, C positions of one chunk, E dim, V vocabulary (under tensor parallelism, this rank's words).
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from model import native
from model.kernels import product

IGNORE = -100  # a target to leave out
# Logits of one chunk, in float32. On the CPU small enough to stay in the cache; on a GPU large enough for the
# products to run at full speed, and the gradient of the matrix to be added up seldom (8,192 positions of LLaMA's 32,000
# words).
_CHUNK_BYTES = {"cpu": 8 * 2**20}
_CHUNK_BYTES_ELSEWHERE = 2**30


class Words(NamedTuple):
    """The rows of the output matrix that this rank has: of `vocabulary` in all, `most` on each rank of `group` but for
    the last ones, and here those from `first` on."""

    group: dist.ProcessGroup
    vocabulary: int

    @property
    def most(self) -> int:
        return -(-self.vocabulary // self.group.size())

    @property
    def first(self) -> int:
        return self.group.rank() * self.most


def linear_cross_entropy_sum(
    x: torch.Tensor,
    weight_VE: torch.Tensor,
    targets: torch.Tensor,
    *,
    compiled: bool = False,
    words: Words | None = None,
) -> torch.Tensor:
    """Cross-entropy in nats of the logits `x @ weight.T`, summed over the targets that are not -100, in float32.

    x (..., E), targets (...); the weight is cast to the dtype of `x`. A sum, not a mean: ranks and micro-batches with
    different numbers of valid tokens then add up to the loss of the whole batch, once divided by the global number of
    them.

    At LLaMA's vocabulary the logits, their log-probabilities and their gradient are the largest arrays of a step.
    Here they exist one chunk of positions at a time, at most 1 GiB of float32 on a GPU (which may be all of a small
    micro-batch) and 8 MiB on the CPU: the gradient is taken in the forward, while the chunk is at hand (as Liger's
    fused linear cross-entropy does), and the backward only scales it.

    compiled: what is done to the logits on a GPU is compiled: they are read twice and their gradient written once.
    words: the ranks of a group, which call this together with the same `x` and targets, have some rows of the matrix
    each. The softmax is theirs together (Shoeybi et al. 2019, section 3): they exchange two numbers and a maximum of
    each position. The loss is an equal share of the whole on each rank; the gradient of `x` is what this rank's words
    add to it.
    """
    if torch.is_grad_enabled() and (x.requires_grad or weight_VE.requires_grad):
        return _LinearCrossEntropySum.apply(x, weight_VE, targets, compiled and x.is_cuda, words)
    return _chunked(x.flatten(0, -2), weight_VE.to(x.dtype), targets.flatten(), None, None, False, words)


class _LinearCrossEntropySum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight_VE: torch.Tensor, targets: torch.Tensor, compiled: bool, words: Words | None
    ) -> torch.Tensor:
        x_NE = x.reshape(-1, x.shape[-1])
        grad_x_NE = torch.empty_like(x_NE)
        # One addition per chunk: in bfloat16 they would round away the small ones.
        grad_weight_VE = torch.zeros_like(weight_VE, dtype=torch.promote_types(weight_VE.dtype, torch.float32))
        loss = _chunked(x_NE, weight_VE.to(x.dtype), targets.flatten(), grad_x_NE, grad_weight_VE, compiled, words)
        ctx.save_for_backward(grad_x_NE.view(x.shape), grad_weight_VE.to(weight_VE.dtype))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None, None]:
        grad_x, grad_weight_VE = ctx.saved_tensors
        return (grad_x * grad).type_as(grad_x), (grad_weight_VE * grad).type_as(grad_weight_VE), None, None, None


def _chunked(
    x_NE: torch.Tensor,
    weight_VE: torch.Tensor,
    targets_N: torch.Tensor,
    grad_x_NE: torch.Tensor | None,
    grad_weight_VE: torch.Tensor | None,
    compiled: bool,
    words: Words | None,
) -> torch.Tensor:
    """The summed loss; where there are arrays for them, the gradients of `x` (filled) and `weight` (added to)."""
    high = torch.promote_types(x_NE.dtype, torch.float32)
    budget = _CHUNK_BYTES.get(x_NE.device.type, _CHUNK_BYTES_ELSEWHERE)
    # Not by the rows that this rank has: all ranks must work in the same chunks.
    rows = max(1, budget // ((words.most if words else weight_VE.shape[0]) * high.itemsize))
    positions = x_NE.shape[0]
    rows = -(-positions // max(1, -(-positions // rows)))  # chunks of one size: of what is compiled, one is enough
    of_logits: Any = _compiled() if compiled else _loss_and_gradient
    if words:
        of_logits = partial(_share_and_gradient, words)
    loss = torch.zeros((), dtype=high, device=x_NE.device)
    for start in range(0, positions, rows):
        x_CE, targets_C = x_NE[start : start + rows], targets_N[start : start + rows]
        chunk_loss, grad_CV = of_logits(product(x_CE, weight_VE.t()), targets_C, high, grad_x_NE is not None)
        loss += chunk_loss
        if grad_x_NE is None or grad_weight_VE is None:
            continue
        grad_x_NE[start : start + rows] = product(grad_CV, weight_VE)
        if grad_weight_VE.dtype == grad_CV.dtype:
            # Not addmm_, which torch's FLOP counter overlooks.
            torch.addmm(grad_weight_VE, grad_CV.t(), x_CE, out=grad_weight_VE)
        else:
            grad_weight_VE += torch.mm(grad_CV.t(), x_CE)
        del grad_CV  # else it would stand beside the next chunk's logits
    return loss


def _loss_and_gradient(
    logits_CV: torch.Tensor, targets_C: torch.Tensor, high: torch.dtype, differentiate: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The summed loss, and its gradient by the logits where that is wanted (else what is at hand).

    d loss / d logits = softmax - one-hot of the target; nothing where the target is left out.
    """
    if native.computes(logits_CV) and high == torch.float32:
        return _loss_and_gradient_in_place(logits_CV, targets_C, differentiate)
    valid_C = targets_C != IGNORE
    index_C1 = targets_C.where(valid_C, 0).unsqueeze(1)
    log_probs_CV = logits_CV.log_softmax(-1, dtype=high)
    loss = -log_probs_CV.gather(1, index_C1).squeeze(1).where(valid_C, 0.0).sum()
    if not differentiate:
        return loss, log_probs_CV
    weight_C1 = valid_C.to(high).unsqueeze(1)
    return loss, log_probs_CV.exp_().mul_(weight_C1).scatter_add_(1, index_C1, -weight_C1).to(logits_CV.dtype)


def _loss_and_gradient_in_place(
    logits_CV: torch.Tensor, targets_C: torch.Tensor, differentiate: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same on the CPU, where the gradient takes the place of the logits; float32 inside."""
    logits_CV, targets_C = logits_CV.contiguous(), targets_C.contiguous()
    loss_C = logits_CV.new_empty(len(logits_CV), dtype=torch.float32)
    how = int(logits_CV.dtype == torch.bfloat16), torch.get_num_threads()
    native.call("cross_entropy", logits_CV, targets_C, loss_C, *logits_CV.shape, IGNORE, int(differentiate), *how)
    return loss_C.sum(), logits_CV


def _loss_and_gradient_in_one_pass(
    logits_CV: torch.Tensor, targets_C: torch.Tensor, high: torch.dtype, differentiate: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same without a scatter, which a compiler cannot fuse: eagerly it would write several arrays of this size."""
    valid_C1 = (targets_C != IGNORE).unsqueeze(1)
    index_C1 = targets_C.unsqueeze(1).where(valid_C1, 0)
    log_probs_CV = logits_CV.log_softmax(-1, dtype=high)
    loss = -log_probs_CV.gather(1, index_C1).where(valid_C1, 0.0).sum()
    if not differentiate:
        return loss, log_probs_CV
    hit_CV = torch.arange(logits_CV.shape[1], device=logits_CV.device) == index_C1
    return loss, (log_probs_CV.exp() - hit_CV.to(high)).where(valid_C1, 0.0).to(logits_CV.dtype)


def _share_and_gradient(
    words: Words, logits_CV: torch.Tensor, targets_C: torch.Tensor, high: torch.dtype, differentiate: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same where the group has the logits: this rank's share of the loss, and the gradient by its logits."""
    valid_C = targets_C != IGNORE
    index_C = targets_C - words.first
    here_C = valid_C & (index_C >= 0) & (index_C < logits_CV.shape[1])
    index_C1 = index_C.where(here_C, 0).unsqueeze(1)
    greatest_C1 = logits_CV.amax(-1, keepdim=True).to(high)
    dist.all_reduce(greatest_C1, dist.ReduceOp.MAX, group=words.group)
    target_C = (logits_CV.gather(1, index_C1) - greatest_C1).squeeze(1).where(here_C, 0.0)
    probs_CV = torch.sub(logits_CV, greatest_C1).exp_()
    sums_2C = torch.stack([probs_CV.sum(-1), target_C])
    dist.all_reduce(sums_2C, group=words.group)
    loss = (sums_2C[0].log() - sums_2C[1]).where(valid_C, 0.0).sum() / words.group.size()
    if not differentiate:
        return loss, probs_CV
    probs_CV.mul_((valid_C / sums_2C[0]).unsqueeze(1))
    return loss, probs_CV.scatter_add_(1, index_C1, -here_C.to(high).unsqueeze(1)).to(logits_CV.dtype)


@cache
def _compiled() -> Any:
    return torch.compile(_loss_and_gradient_in_one_pass, dynamic=False)
