"""Linear layers, RMSNorm, SwiGLU and the rotary turn, each with a fast path for the CPU.

On a GPU, and under torch.compile, the plain formula is already fused. Eager PyTorch on the CPU runs it one
operation at a time, each into memory of its own; autograd saves most of these arrays for the backward. There the
traffic, and the page faults of fresh memory, cost as much as a third of the products' time. So for float32 and bfloat16
on the CPU the functions below go over memory once, by `model.native`, save only their inputs, and have a backward
written out by hand. They are float32 inside, whatever the dtype, and round once, which the plain formula does at every
step. `tests/model/test_model_kernels.py` holds both paths to the same values and gradients.

Shapes: N all positions, E or H channels of the last dimension (I in, O out of a linear layer); B batch, L positions,
D channels of a head.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

from model import native

# float32 products are MKL's in PyTorch, and MKL uses AVX-512 on Intel's processors only. oneDNN, which PyTorch has too,
# was measured a tenth to a fifth faster on AMD's for x @ weight.T and grad @ weight, and no faster for grad.T @ x or
# for a few positions (generation). bfloat16 products are oneDNN's already, at the same speed.
_ONEDNN = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
_ONEDNN_FROM_POSITIONS = 256
_CHUNKS = 64  # of the positions, whose shares of a norm's gradient are added up by themselves
_SHARED_FROM = 2**15  # numbers: to wake a thread takes as long as some ten thousand of them
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
    return _ONEDNN and x.dtype == torch.float32 and enough and native.eager_cpu(x)


def _onednn(x_NI: torch.Tensor, weight_OI: torch.Tensor) -> torch.Tensor:
    return _onednn_linear(x_NI, weight_OI, None, "none", [], "")


def rms_norm(x: torch.Tensor, weight_E: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension; float32 inside, whatever the dtype of `x`."""
    if native.computes(x):
        return _RMSNorm.apply(x, weight_E, eps)
    return F.rms_norm(x, weight_E.shape, weight_E, eps)


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up (Shazeer 2020), elementwise."""
    return _SwiGLU.apply(gate, up) if native.computes(gate) else F.silu(gate) * up


def rotate(x_BLHD: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn each pair of channels (i, i + D/2) by its angle, in float32; the result has the dtype of `x`.

    cos and sin, (L, 1, D/2) or (B, L, 1, D/2) in float32, get no gradient.
    """
    if native.computes(x_BLHD):
        return _Rotate.apply(x_BLHD, cos, sin)
    first, second = x_BLHD.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).type_as(x_BLHD)


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
        x_NE, high_weight_E = x.reshape(-1, x.shape[-1]).contiguous(), weight_E.float().contiguous()
        out_NE, rms_inverse_N = torch.empty_like(x_NE), x_NE.new_empty(len(x_NE), dtype=torch.float32)
        native.call("rms_norm_forward", x_NE, high_weight_E, out_NE, rms_inverse_N, *x_NE.shape, *_how(x_NE), eps)
        ctx.save_for_backward(x_NE, weight_E, rms_inverse_N)
        return out_NE.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        x_NE, weight_E, rms_inverse_N = ctx.saved_tensors
        grad_NE, high_weight_E = grad.reshape(x_NE.shape).contiguous(), weight_E.float().contiguous()
        assert grad_NE.dtype == x_NE.dtype
        grad_x_NE, chunks = torch.empty_like(x_NE), min(_CHUNKS, max(1, len(x_NE)))
        sums_CE = x_NE.new_empty(chunks, x_NE.shape[1], dtype=torch.float32)
        inputs = (grad_NE, x_NE, high_weight_E, rms_inverse_N)
        native.call("rms_norm_backward", *inputs, grad_x_NE, sums_CE, chunks, *x_NE.shape, *_how(x_NE))
        return grad_x_NE.view(grad.shape), sums_CE.sum(0).to(weight_E.dtype), None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        assert gate.shape == up.shape and gate.dtype == up.dtype
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        out = torch.empty_like(gate)
        native.call("swiglu_forward", gate, up, out, gate.numel(), *_how(gate))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = ctx.saved_tensors
        assert grad.dtype == gate.dtype
        grad_gate, grad_up = torch.empty_like(gate), torch.empty_like(up)
        native.call("swiglu_backward", grad.contiguous(), gate, up, grad_gate, grad_up, gate.numel(), *_how(gate))
        return grad_gate, grad_up


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
    x_BLHD = x_BLHD.contiguous()
    batch, length, heads, channels = x_BLHD.shape
    out_BLHD, angles = torch.empty_like(x_BLHD), cos.numel() // cos.shape[-1]
    tables = cos.float().contiguous(), sin.float().contiguous()
    sizes = (batch * length, angles, heads, channels, direction)
    native.call("rotate", x_BLHD, *tables, out_BLHD, *sizes, *_how(x_BLHD))
    return out_BLHD


def _how(x: torch.Tensor) -> tuple[int, int]:
    """What every routine is told: whether its arrays are bfloat16, else float32, and how many threads are worth it."""
    return int(x.dtype == torch.bfloat16), torch.get_num_threads() if x.numel() >= _SHARED_FROM else 1
