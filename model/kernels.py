"""Linear layers, RMSNorm, SwiGLU and the rotary turn, each with a fast path for the CPU.

On a GPU, and under torch.compile, the plain formula is already fused. Eager PyTorch on the CPU runs it one
operation at a time, each into memory of its own; autograd saves most of these arrays for the backward. There
the traffic, and the page faults of fresh memory, cost as much as a third of the products' time. So for float32
and bfloat16 on the CPU the functions below work in place where the formula allows, save only their inputs, and write
the backward out by hand. The norm and the turn of bfloat16 are float32 inside, widened and rounded once each, which the
plain formula does at every step. `tests/model/test_model_kernels.py` holds both paths to the same values and gradients.

Shapes: N all positions, E or H channels of the last dimension (I in, O out of a linear layer); B batch, L positions,
D channels of a head.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor
from torch.utils.flop_counter import register_flop_formula

_silu_backward = torch.ops.aten.silu_backward
# float32 products are MKL's in PyTorch, and MKL uses AVX-512 on Intel's processors only. oneDNN, which PyTorch has too,
# was measured a tenth to a fifth faster on AMD's for x @ weight.T and grad @ weight, and no faster for grad.T @ x or
# for a few positions (generation). bfloat16 products are oneDNN's already, at the same speed.
_ONEDNN = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
_ONEDNN_FROM_POSITIONS = 256
_onednn_linear = torch.ops.mkldnn._linear_pointwise


@register_flop_formula(_onednn_linear)
def _onednn_flop(x_shape: torch.Size, weight_shape: torch.Size, *rest: Any, **options: Any) -> int:
    """PyTorch's counter does not know the operator: a multiplication and an addition for each weight and position."""
    return 2 * x_shape[:-1].numel() * weight_shape.numel()


def linear(x: torch.Tensor, weight_OI: torch.Tensor) -> torch.Tensor:
    """x @ weight.T, (..., I) to (..., O)."""
    if _by_onednn(x):
        return _Linear.apply(x, weight_OI)
    return F.linear(x, weight_OI)


def product(x_NI: torch.Tensor, weight_IO: torch.Tensor) -> torch.Tensor:
    """x @ weight, without a gradient: (N, I) by (I, O)."""
    if _by_onednn(x_NI):
        return _onednn(x_NI, weight_IO.t())
    return torch.mm(x_NI, weight_IO)


def _by_onednn(x: torch.Tensor) -> bool:
    enough = x.numel() >= _ONEDNN_FROM_POSITIONS * x.shape[-1]
    return _ONEDNN and x.dtype == torch.float32 and enough and by_hand(x)


def _onednn(x_NI: torch.Tensor, weight_OI: torch.Tensor) -> torch.Tensor:
    return _onednn_linear(x_NI, weight_OI, None, "none", [], "")


def rms_norm(x: torch.Tensor, weight_E: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension; float32 inside, whatever the dtype of `x`."""
    if by_hand(x):
        return _RMSNorm.apply(x, weight_E, eps)
    return F.rms_norm(x, weight_E.shape, weight_E, eps)


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up (Shazeer 2020), elementwise."""
    return _SwiGLU.apply(gate, up) if by_hand(gate) else F.silu(gate) * up


def rotate(x_BLHD: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn each pair of channels (i, i + D/2) by its angle, in float32; the result has the dtype of `x`.

    cos and sin, (L, 1, D/2) or (B, L, 1, D/2) in float32, get no gradient.
    """
    if by_hand(x_BLHD):
        return _Rotate.apply(x_BLHD, cos, sin)
    first, second = x_BLHD.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).type_as(x_BLHD)


def by_hand(x: torch.Tensor) -> bool:
    # A DTensor (a norm under tensor parallelism) knows how each operator spreads over ranks, not how these do.
    plain = x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) and not isinstance(x, DTensor)
    return plain and not torch.compiler.is_compiling()


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight_OI: torch.Tensor) -> torch.Tensor:
        x_NI = x.reshape(-1, x.shape[-1])
        ctx.save_for_backward(x_NI, weight_OI)
        return _onednn(x_NI, weight_OI).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x_NI, weight_OI = ctx.saved_tensors
        grad_NO = grad.reshape(-1, grad.shape[-1])
        return _onednn(grad_NO, weight_OI.t()).view(*grad.shape[:-1], -1), torch.mm(grad_NO.t(), x_NI)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight_E: torch.Tensor, eps: float) -> torch.Tensor:
        x_NE = x.reshape(-1, x.shape[-1])
        high_NE = _high(x_NE)
        # vector_norm reads x once; x.pow(2).mean(-1) would write an array of its size and read that.
        norm_N1 = torch.linalg.vector_norm(high_NE, dim=-1, keepdim=True)
        rms_inverse_N1 = norm_N1.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x_NE, weight_E, rms_inverse_N1)
        scaled_NE = high_NE * rms_inverse_N1 if high_NE is x_NE else high_NE.mul_(rms_inverse_N1)
        return scaled_NE.mul_(weight_E).to(x.dtype).view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        # With r = 1 / rms: dw = sum_N g x r, and dx = r g w - x r^3 / E * sum_E(g w x).
        x_NE, weight_E, rms_inverse_N1 = ctx.saved_tensors
        grad_NE, high_NE, high_weight_E = _high(grad.reshape(x_NE.shape)), _high(x_NE), _high(weight_E)
        buffer_NE = grad_NE * high_NE
        grad_weight_E = torch.mv(buffer_NE.t(), rms_inverse_N1.squeeze(1)).to(weight_E.dtype)
        coefficient_N1 = torch.mv(buffer_NE, high_weight_E).unsqueeze(1).mul_(rms_inverse_N1.pow(3))
        grad_x_NE = torch.mul(grad_NE, high_weight_E, out=buffer_NE).mul_(rms_inverse_N1)
        grad_x_NE.addcmul_(high_NE, coefficient_N1.div_(x_NE.shape[1]), value=-1)
        return grad_x_NE.to(x_NE.dtype).view(grad.shape), grad_weight_E, None


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
    # Over whole positions, with the halves' swap as a copy: operations on the halves in place would run over half a
    # head at a time, and were measured three to eight times slower.
    shape = (*cos.shape[:-2], x_BLHD.shape[2], 2 * cos.shape[-1])
    cos_LHD = torch.cat((cos, cos), dim=-1).expand(shape).contiguous()
    signed_LHD = torch.cat((sin * -direction, sin * direction), dim=-1).expand(shape).contiguous()
    first, second = x_BLHD.chunk(2, dim=-1)
    swapped_BLHD = torch.cat((second, first), dim=-1)
    # Contiguous, also where `x` is a transposed view.
    turned_BLHD = _high(swapped_BLHD.contiguous()).mul_(signed_LHD)
    return turned_BLHD.addcmul_(_high(x_BLHD), cos_LHD).to(x_BLHD.dtype)


def _high(x: torch.Tensor) -> torch.Tensor:
    """`x` itself where its dtype is wide enough to compute in, otherwise a copy in float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
