"""Causal attention for training on the CPU, by `model/native/attention.c`, as an operator of PyTorch's.

PyTorch's own kernel there (flash) calls libraries for large matrices on blocks that are small: for heads of 64 channels
it reaches a third of the processor's rate, and in bfloat16 it is no faster than in float32. Ours was measured twice as
fast in float32 and three times in bfloat16; `benchmarks/training/limit.py` times both. As operators of their own, the
functions are one step for a profiler and for the policy of `model.activation`.

Shapes: B batch, H query heads, K key/value heads (H / K query heads share one), L positions, D head channels.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import torch

from model import native

_FROM_POSITIONS = 128  # below, a call of an operator takes longer than what it computes
# PyTorch's products of bfloat16 are by AMX where there is one, many times as fast as what we have; not measured.
_AMX = torch.cpu._is_amx_tile_supported()
Three = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class _Array(ctypes.Structure):
    """As attention.c has it: the strides in elements; channels are contiguous."""

    _fields_ = [("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("batch", "head", "row"))]


class _Shape(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "heads", "kv_heads", "length", "channels")),
        *((name, ctypes.c_int32) for name in ("bfloat16", "threads")),
        ("scale", ctypes.c_float),
    ]


def takes(q_BHLD: torch.Tensor, k_BKLD: torch.Tensor) -> bool:
    """Whether `causal_attention` is the faster choice: training on the CPU, no back end asked for, a C compiler."""
    if not native.computes(q_BHLD):  # first: torch.compile cannot trace the rest
        return False
    whole = k_BKLD.shape[2] == q_BHLD.shape[2] >= _FROM_POSITIONS and q_BHLD.shape[1] % k_BKLD.shape[1] == 0
    trains = torch.is_grad_enabled() and q_BHLD.requires_grad
    # `sdpa_kernel` leaves only those enabled that it was given; these switches are for every device.
    free = torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.math_sdp_enabled()
    # A thread computes whole heads.
    busy = k_BKLD.shape[0] * k_BKLD.shape[1] >= torch.get_num_threads()
    return whole and trains and free and busy and not (_AMX and q_BHLD.dtype == torch.bfloat16)


def causal_attention(q_BHLD: torch.Tensor, k_BKLD: torch.Tensor, v_BKLD: torch.Tensor) -> torch.Tensor:
    """softmax(q k^T / sqrt(D)) v where no query sees a later key, (B, H, L, D) in the dtype of `q`, which is float32
    or bfloat16. Only where `takes` or `native.computes` says so."""
    out_BHLD: torch.Tensor = _forward(q_BHLD, k_BKLD, v_BKLD)[0]
    return out_BHLD


@torch.library.custom_op("hoofprint::causal_attention", mutates_args=())
def _forward(q_BHLD: torch.Tensor, k_BKLD: torch.Tensor, v_BKLD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The output, and the logarithm to base 2 of the sum of each query's weights, (B, H, L), for the backward."""
    out_BHLD, lse_BHL = _like(q_BHLD), _sums_like(q_BHLD)
    _call("attention_forward", q_BHLD, k_BKLD, *(_rows(x) for x in (q_BHLD, k_BKLD, v_BKLD)), out_BHLD, lse_BHL)
    return out_BHLD, lse_BHL


@torch.library.custom_op("hoofprint::causal_attention_backward", mutates_args=())
def _backward(
    grad_BHLD: torch.Tensor,
    q_BHLD: torch.Tensor,
    k_BKLD: torch.Tensor,
    v_BKLD: torch.Tensor,
    out_BHLD: torch.Tensor,
    lse_BHL: torch.Tensor,
) -> Three:
    gradients = _like(q_BHLD), _like(k_BKLD), _like(v_BKLD)
    given = (_rows(x) for x in (q_BHLD, k_BKLD, v_BKLD, out_BHLD))
    _call("attention_backward", q_BHLD, k_BKLD, *given, lse_BHL, _rows(grad_BHLD), *gradients)
    return gradients


def _save(ctx: Any, inputs: Three, output: tuple[torch.Tensor, torch.Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs, *output)


def _differentiate(ctx: Any, grad_BHLD: torch.Tensor, _: Any) -> Three:
    gradients: Three = _backward(grad_BHLD, *ctx.saved_tensors)
    return gradients


_forward.register_autograd(_differentiate, setup_context=_save)
_forward.register_fake(lambda q, k, v: (_like(q), _sums_like(q)))
_backward.register_fake(lambda grad, q, k, v, out, lse: (_like(q), _like(k), _like(v)))


def _call(routine: str, q_BHLD: torch.Tensor, k_BKLD: torch.Tensor, *arrays: torch.Tensor) -> None:
    """A routine of attention.c on `arrays`, of (B, heads, L, D) or, contiguous, of (B, H, L)."""
    batch, heads, length, channels = q_BHLD.shape
    low, scale = q_BHLD.dtype == torch.bfloat16, 1.0 / math.sqrt(channels)
    shape = _Shape(batch, heads, k_BKLD.shape[1], length, channels, low, torch.get_num_threads(), scale)
    assert len({x.dtype for x in arrays if x.dim() == 4}) == 1
    native.call(routine, shape, *(_Array(x.data_ptr(), *x.stride()[:3]) if x.dim() == 4 else x for x in arrays))


def _rows(x_BHLD: torch.Tensor) -> torch.Tensor:
    """Itself, or a copy whose channels lie side by side."""
    return x_BHLD if x_BHLD.stride(3) == 1 else x_BHLD.contiguous()


def _like(x_BHLD: torch.Tensor) -> torch.Tensor:
    """Uninitialised, and laid out in memory as (B, L, H, D), as the linear layers before and after have it."""
    batch, heads, length, channels = x_BHLD.shape
    return x_BHLD.new_empty(batch, length, heads, channels).transpose(1, 2)


def _sums_like(q_BHLD: torch.Tensor) -> torch.Tensor:
    return q_BHLD.new_empty(q_BHLD.shape[:3], dtype=torch.float32)
