"""Causal attention for training on the CPU, made of batched products over blocks of queries.

PyTorch's own kernel there (flash) computes blocks of 32 to 256 queries with many small products: for heads of 64
channels it reaches a third of the processor's rate, and in bfloat16 it is no faster than in float32. Here a block is
the same 128 queries of several heads: the products are batched, the scores of a block stay in the second-level cache,
and keys after the block's last query are left out. `benchmarks/training/limit.py` times both.

The backward computes the probabilities again from queries and keys, so that nothing but the inputs is saved, not even
the output. In bfloat16 the scores, the softmax and its gradient are float32. As operators of their own, the functions
are one step for a profiler and for the policy of `model.activation`.
Shapes: B batch, H query heads, K key/value heads (G = H / K query heads share one), L positions, D head channels;
C key/value heads of one round, R query positions of one block, S key positions up to the block's end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from model.kernels import by_hand

_ROWS = 128  # 64 and 256 were measured slower
_SCORES_BYTES = 2**20  # of one block, in float32
_FROM_POSITIONS = 256  # below, a block's products are too small
# Flash divides its heads among threads once; here every small step is divided, and threads that wait for each other at
# each of hundreds of steps lose more than the products gain as soon as anything else runs on the machine.
_MOST_THREADS = 1
_softmax_into = torch.ops.aten._softmax.out
_softmax_backward_into = torch.ops.aten._softmax_backward_data.out


def takes(q_BHLD: torch.Tensor, k_BKLD: torch.Tensor) -> bool:
    """Whether `causal_attention` is the faster choice: training on the CPU, a thread a rank, no back end asked for."""
    if not by_hand(q_BHLD):  # first: torch.compile cannot trace the rest
        return False
    whole = k_BKLD.shape[2] == q_BHLD.shape[2] >= _FROM_POSITIONS and q_BHLD.shape[1] % k_BKLD.shape[1] == 0
    trains = torch.is_grad_enabled() and q_BHLD.requires_grad
    # `sdpa_kernel` leaves only those enabled that it was given; these switches are for every device.
    free = torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.math_sdp_enabled()
    return whole and trains and free and torch.get_num_threads() <= _MOST_THREADS


@torch.library.custom_op("hoofprint::causal_attention", mutates_args=())
def causal_attention(q_BHLD: torch.Tensor, k_BKLD: torch.Tensor, v_BKLD: torch.Tensor) -> torch.Tensor:
    """softmax(q k^T / sqrt(D)) v where no query sees a later key, (B, H, L, D) in the dtype of `q`."""
    out_BHLD = _like(q_BHLD)
    scores = _Scores(q_BHLD, k_BKLD)
    for b, keys, queries in _rounds(q_BHLD, k_BKLD):
        q_CGLD = scores.scaled(q_BHLD[b, queries], keys)
        k_CLD, v_CLD = scores.wide(k_BKLD[b, keys]), v_BKLD[b, keys].contiguous()
        out_CGLD = torch.empty_like(q_CGLD, dtype=q_BHLD.dtype)
        for start, end in _blocks(q_BHLD.shape[2]):
            p_CTS = scores.probabilities(_rows(q_CGLD, start, end), k_CLD[:, :end], start)
            o_CTD = torch.bmm(p_CTS.to(v_CLD.dtype), v_CLD[:, :end])
            out_CGLD[:, :, start:end] = o_CTD.view(*q_CGLD.shape[:2], -1, q_CGLD.shape[-1])
        out_BHLD[b, queries] = out_CGLD.flatten(0, 1)
    return out_BHLD


@torch.library.custom_op("hoofprint::causal_attention_backward", mutates_args=())
def causal_attention_backward(
    grad_BHLD: torch.Tensor, q_BHLD: torch.Tensor, k_BKLD: torch.Tensor, v_BKLD: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of `q`, `k` and `v` by that of the output."""
    # With P the probabilities: dv = P^T do, dP = do v^T, dS = P (dP - sum(P dP)), dq = dS k, dk = dS^T q, times scale.
    grad_q_BHLD, grad_k_BKLD, grad_v_BKLD = _like(q_BHLD), _like(k_BKLD), _like(v_BKLD)
    scores, low = _Scores(q_BHLD, k_BKLD), q_BHLD.dtype
    for b, keys, queries in _rounds(q_BHLD, k_BKLD):
        q_CGLD = scores.scaled(q_BHLD[b, queries], keys)
        low_q_CGLD = q_CGLD.to(low)
        low_k_CLD, k_CLD, v_CLD = (
            k_BKLD[b, keys].contiguous(),
            scores.wide(k_BKLD[b, keys]),
            scores.wide(v_BKLD[b, keys]),
        )
        low_grad_CGLD = grad_BHLD[b, queries].reshape(q_CGLD.shape)
        grad_CGLD = low_grad_CGLD.to(q_CGLD.dtype)
        grad_q_CGLD = torch.empty_like(low_q_CGLD)
        grad_k_CLD, grad_v_CLD = torch.zeros_like(k_CLD), torch.zeros_like(v_CLD)
        for start, end in _blocks(q_BHLD.shape[2]):
            p_CTS = scores.probabilities(_rows(q_CGLD, start, end), k_CLD[:, :end], start)
            _add_product(grad_v_CLD[:, :end], p_CTS.to(low), _rows(low_grad_CGLD, start, end))
            grad_p_CTS = scores.second(p_CTS)
            torch.bmm(_rows(grad_CGLD, start, end), v_CLD[:, :end].transpose(1, 2), out=grad_p_CTS)
            _softmax_backward_into(grad_p_CTS, p_CTS, -1, p_CTS.dtype, grad_input=grad_p_CTS)
            grad_s_CTS = grad_p_CTS.to(low)
            grad_q_CTD = torch.bmm(grad_s_CTS, low_k_CLD[:, :end])
            grad_q_CGLD[:, :, start:end] = grad_q_CTD.view(*q_CGLD.shape[:2], -1, q_CGLD.shape[-1])
            _add_product(grad_k_CLD[:, :end], grad_s_CTS, _rows(low_q_CGLD, start, end))  # these q have the scale
        grad_q_BHLD[b, queries] = grad_q_CGLD.flatten(0, 1).mul_(scores.scale)
        grad_k_BKLD[b, keys], grad_v_BKLD[b, keys] = grad_k_CLD, grad_v_CLD
    return grad_q_BHLD, grad_k_BKLD, grad_v_BKLD


def _save(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_BHLD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    found: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = causal_attention_backward(grad_BHLD, *ctx.saved_tensors)
    return found


causal_attention.register_autograd(_backward, setup_context=_save)
causal_attention.register_fake(lambda q, k, v: _like(q))
causal_attention_backward.register_fake(lambda grad, q, k, v: (_like(q), _like(k), _like(v)))


class _Scores:
    """Softmax of a block's scores, in two buffers that all blocks share."""

    def __init__(self, q_BHLD: torch.Tensor, k_BKLD: torch.Tensor) -> None:
        self.high = torch.promote_types(q_BHLD.dtype, torch.float32)
        self.scale = 1.0 / math.sqrt(q_BHLD.shape[-1])
        self._buffers: list[torch.Tensor] = []
        self._room = _heads_of_a_round(q_BHLD, k_BKLD) * q_BHLD.shape[1] // k_BKLD.shape[1] * _ROWS * q_BHLD.shape[2]
        # To add: nothing where the key is not after the query.
        self._later_RR = torch.full((_ROWS, _ROWS), float("-inf"), dtype=self.high).triu_(1)

    def wide(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(self.high).contiguous()

    def scaled(self, q_HLD: torch.Tensor, keys: slice) -> torch.Tensor:
        """Queries times the scale, by the key/value head that they look at: (C, G, L, D)."""
        return (q_HLD.to(self.high) * self.scale).contiguous().view(keys.stop - keys.start, -1, *q_HLD.shape[1:])

    def probabilities(self, q_CTD: torch.Tensor, k_CSD: torch.Tensor, start: int) -> torch.Tensor:
        """(C, T, S), T = G R. Valid until the next block."""
        rows = k_CSD.shape[1] - start
        p_CTS = self._view(0, (*q_CTD.shape[:2], k_CSD.shape[1]))
        torch.bmm(q_CTD, k_CSD.transpose(1, 2), out=p_CTS)
        p_CTS.view(q_CTD.shape[0], -1, rows, k_CSD.shape[1])[..., start:].add_(self._later_RR[:rows, :rows])
        _softmax_into(p_CTS, -1, False, out=p_CTS)
        return p_CTS

    def second(self, like: torch.Tensor) -> torch.Tensor:
        """Uninitialised, of the shape of `like`, which stays as it is."""
        return self._view(1, like.shape)

    def _view(self, index: int, shape: tuple[int, ...]) -> torch.Tensor:
        while len(self._buffers) <= index:
            self._buffers.append(torch.empty(self._room, dtype=self.high))
        return self._buffers[index][: math.prod(shape)].view(shape)


def _add_product(out_CSD: torch.Tensor, p_CTS: torch.Tensor, x_CTD: torch.Tensor) -> None:
    """out += p^T x; in float32 where p and x are narrower."""
    if p_CTS.dtype == out_CSD.dtype:
        out_CSD.baddbmm_(p_CTS.transpose(1, 2), x_CTD)
    else:
        out_CSD += torch.bmm(p_CTS.transpose(1, 2), x_CTD)


def _rows(x_CGLD: torch.Tensor, start: int, end: int) -> torch.Tensor:
    """(C, T, D), T = G R: a view where no heads share keys."""
    return x_CGLD[:, :, start:end].flatten(1, 2)


def _blocks(length: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + _ROWS, length)) for start in range(0, length, _ROWS))


def _rounds(q_BHLD: torch.Tensor, k_BKLD: torch.Tensor) -> Iterator[tuple[int, slice, slice]]:
    """A sequence, some of its key/value heads, and the query heads that look at them."""
    kv_heads, group = k_BKLD.shape[1], q_BHLD.shape[1] // k_BKLD.shape[1]
    step = _heads_of_a_round(q_BHLD, k_BKLD)
    for b in range(q_BHLD.shape[0]):
        for first in range(0, kv_heads, step):
            last = min(first + step, kv_heads)
            yield b, slice(first, last), slice(first * group, last * group)


def _heads_of_a_round(q_BHLD: torch.Tensor, k_BKLD: torch.Tensor) -> int:
    group = q_BHLD.shape[1] // k_BKLD.shape[1]
    return min(k_BKLD.shape[1], max(1, _SCORES_BYTES // (group * _ROWS * q_BHLD.shape[2] * 4)))


def _like(x_BHLD: torch.Tensor) -> torch.Tensor:
    """Uninitialised, and laid out in memory as (B, L, H, D), as the linear layers before and after have it."""
    batch, heads, length, channels = x_BHLD.shape
    return x_BHLD.new_empty(batch, length, heads, channels).transpose(1, 2)
