"""RMSNorm, SwiGLU and the rotary turn: what runs between the matrix products, each with a fast path for the CPU.

On a GPU, and under torch.compile, the plain formula is already fused. Eager PyTorch on the CPU runs it one
operation at a time, each into memory of its own; autograd saves most of these arrays for the backward. There
the traffic, and the page faults of fresh memory, cost as much as a third of the products' time. So for float32
on the CPU the functions below work in place where the formula allows, save only their inputs, and write the
backward out by hand. `tests/model/test_model_kernels.py` holds both paths to the same values and gradients.

Shapes: N all positions, E or H channels of the last dimension; B batch, L positions, D channels of a head.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

_silu_backward = torch.ops.aten.silu_backward


def rms_norm(x: torch.Tensor, weight_E: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension; float32 inside, whatever the dtype of `x`."""
    if _by_hand(x):
        return _RMSNorm.apply(x, weight_E, eps)
    return F.rms_norm(x, weight_E.shape, weight_E, eps)


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up (Shazeer 2020), elementwise."""
    return _SwiGLU.apply(gate, up) if _by_hand(gate) else F.silu(gate) * up


def rotate(x_BLHD: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn each pair of channels (i, i + D/2) by its angle, in float32; the result has the dtype of `x`.

    cos and sin, (L, 1, D/2) in float32, get no gradient.
    """
    if _by_hand(x_BLHD):
        return _Rotate.apply(x_BLHD, cos, sin)
    first, second = x_BLHD.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).type_as(x_BLHD)


def _by_hand(x: torch.Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling()


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight_E: torch.Tensor, eps: float) -> torch.Tensor:
        x_NE = x.reshape(-1, x.shape[-1])
        # vector_norm reads x once; x.pow(2).mean(-1) would write an array of its size and read that.
        norm_N1 = torch.linalg.vector_norm(x_NE, dim=-1, keepdim=True)
        rms_inverse_N1 = norm_N1.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x_NE, weight_E, rms_inverse_N1)
        return (x_NE * rms_inverse_N1).mul_(weight_E).view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        # With r = 1 / rms: dw = sum_N g x r, and dx = r g w - x r^3 / E * sum_E(g w x).
        x_NE, weight_E, rms_inverse_N1 = ctx.saved_tensors
        grad_NE = grad.reshape(x_NE.shape)
        buffer_NE = grad_NE * x_NE
        grad_weight_E = torch.mv(buffer_NE.t(), rms_inverse_N1.squeeze(1))
        coefficient_N1 = torch.mv(buffer_NE, weight_E).unsqueeze(1).mul_(rms_inverse_N1.pow(3)).div_(x_NE.shape[1])
        grad_x_NE = torch.mul(grad_NE, weight_E, out=buffer_NE).mul_(rms_inverse_N1)
        return grad_x_NE.addcmul_(x_NE, coefficient_N1, value=-1).view(grad.shape), grad_weight_E, None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = ctx.saved_tensors
        grad_silu = grad * up
        grad_gate = _silu_backward.grad_input(grad_silu, gate, grad_input=grad_silu)
        return grad_gate, F.silu(gate).mul_(grad)  # silu once more: cheaper than an array saved and read back


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BLHD: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x_BLHD, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BLHD: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(grad_BLHD, cos, sin, -1), None, None  # the transpose of a rotation turns back


def _turn(x_BLHD: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, direction: int) -> torch.Tensor:
    first, second = x_BLHD.chunk(2, dim=-1)
    out_BLHD = torch.empty(x_BLHD.shape, dtype=x_BLHD.dtype)  # contiguous, also where `x` is a transposed view
    out_first, out_second = out_BLHD.chunk(2, dim=-1)
    torch.mul(first, cos, out=out_first).addcmul_(second, sin, value=-direction)
    torch.mul(second, cos, out=out_second).addcmul_(first, sin, value=direction)
    return out_BLHD
