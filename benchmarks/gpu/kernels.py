"""What the device can do at best: matrix products, and attention by each of its back ends."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.metered import attempt, quick_seconds
from benchmarks.training.limit import product_flop, products
from benchmarks.training.systems import Case
from model.attention import Backend, Mask, attend, backend_in_use, sdpa_backends
from model.packing import Form, pack

Say = Callable[[str, Any], None]
BOS = 1
E4M3_MOST = 448.0  # the largest number in float8 e4m3


def ceiling(case: Case, square: int, seconds: float, say: Say) -> None:
    """Rates of products: of the model's shapes, forward and backward, and of large squares in bfloat16 and float8."""
    step = products(case)
    taken = quick_seconds(step, case.device, seconds)
    say("model_shapes", {"flop_per_s": product_flop(case) / taken, "tokens": case.tokens, "dtype": case.dtype})
    for name, rate in (("bfloat16", _square), ("float8", _square_float8)):
        say(f"square_{name}", attempt(partial(rate, square, case.device, seconds)))


def _square(size: int, device: str, seconds: float) -> dict[str, Any]:
    a, b = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    taken = quick_seconds(lambda: torch.mm(a, b, out=out), device, seconds)
    return {"flop_per_s": 2 * size**3 / taken, "size": size}


def _square_float8(size: int, device: str, seconds: float) -> dict[str, Any]:
    a, b = (torch.randn(size, size, device=device).clamp_(-E4M3_MOST, E4M3_MOST).to(torch.float8_e4m3fn) for _ in "ab")
    one = torch.ones((), device=device)
    options: dict[str, Any] = {"scale_a": one, "scale_b": one, "out_dtype": torch.bfloat16, "use_fast_accum": True}
    taken = quick_seconds(lambda: torch._scaled_mm(a, b.t(), **options), device, seconds)
    return {"flop_per_s": 2 * size**3 / taken, "size": size}


def attention(case: Case, lengths: list[int], document: int, seconds: float, say: Say) -> None:
    """Forward and backward of attention by each back end: whole sequences, then documents of about `document` tokens.

    FLOP are those that a causal mask leaves: 7 L^2 d a sequence, of forward (2) and backward (5 products).
    """
    for length in lengths:
        at = case.with_length(length)
        like = torch.empty(0, device=case.device, dtype=case.torch_dtype)
        say(f"{length} auto", {"back_end": backend_in_use(at.config, at.sequences, None, "auto", like)})
        for backend in ("flash", "cudnn", "efficient", "math"):
            say(f"{length} {backend}", attempt(partial(_whole, at, backend, seconds)))
        for form in ("varlen", "flex", "mask"):
            say(f"{length} documents {form}", attempt(partial(_documents, at, document, form, seconds)))


def _draw(case: Case) -> list[torch.Tensor]:
    config = case.config
    drawn = []
    for heads in (config.n_heads, config.n_kv_heads, config.n_kv_heads, config.n_heads):
        x = torch.randn(case.sequences, config.sequence_length, heads, config.head_dim, device=case.device)
        drawn.append(x.to(case.torch_dtype).transpose(1, 2))
    return drawn


def _rate(case: Case, mask: Mask, seconds: float) -> dict[str, Any]:
    *qkv, grad = _draw(case)
    inputs = [x.requires_grad_() for x in qkv]
    taken = quick_seconds(lambda: torch.autograd.grad(attend(*inputs, mask), inputs, grad), case.device, seconds)
    config = case.config
    flop = 7 * case.sequences * config.n_heads * config.sequence_length**2 * config.head_dim
    return {"seconds": taken, "causal_flop_per_s": flop / taken, "sequences": case.sequences}


def _whole(case: Case, backend: Backend, seconds: float) -> dict[str, Any]:
    with sdpa_backends(backend, torch.device(case.device)):
        return _rate(case, None, seconds)


def _documents(case: Case, document: int, form: Form, seconds: float) -> dict[str, Any]:
    """Rates as if nothing but causality were masked, so that what documents save shows as speed."""
    tokens = torch.full((case.sequences, case.config.sequence_length), BOS + 1)
    tokens[:, ::document] = BOS
    packing = pack(tokens, BOS, form, torch.device(case.device), case.torch_dtype)
    with sdpa_backends("auto", torch.device(case.device)):
        return _rate(case, packing.mask, seconds) | {"document_tokens": document}
