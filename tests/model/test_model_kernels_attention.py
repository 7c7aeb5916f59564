"""Attention in C against PyTorch's, and when it is the one that runs."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from model import native
from model.attention import attend
from model.kernels_attention import causal_attention, takes

pytestmark = pytest.mark.skipif(native.library() is None, reason=native.missing())
CALLED = "GeneratedBackwardFor_hoofprint_causal_attention_defaultBackward"
Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def draw(length: int, heads: int, kv_heads: int, dtype: torch.dtype, channels: int = 8) -> Heads:
    """Queries, keys and values strided as `Attention` makes them."""
    generator = torch.Generator().manual_seed(length + heads)
    shapes = ((2, length, n, channels) for n in (heads, kv_heads, kv_heads))
    drawn = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
    q, k, v = (x.transpose(1, 2).requires_grad_() for x in drawn)
    return q, k, v


def run(function: Callable[..., torch.Tensor], inputs: Heads, grad: torch.Tensor) -> list[torch.Tensor]:
    """Output and gradients, in float64."""
    out = function(*inputs)
    assert out.dtype == inputs[0].dtype
    return [x.double() for x in (out, *torch.autograd.grad(out, inputs, grad.to(out.dtype)))]


def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])


def relative_errors(found: list[torch.Tensor], truth: list[torch.Tensor]) -> list[float]:
    return [((a - b).norm() / b.norm()).item() for a, b in zip(found, truth, strict=True)]


# Less than a tile, whole tiles, a part of a tile at the end; channels that fill vectors and that do not.
@pytest.mark.parametrize("length", [1, 7, 128, 300])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (4, 1)])
@pytest.mark.parametrize("channels", [6, 64, 80])
def test_values_and_gradients_are_those_of_float64(length: int, heads: int, kv_heads: int, channels: int) -> None:
    inputs = draw(length, heads, kv_heads, torch.float32, channels)
    exact = tuple(x.detach().double().requires_grad_() for x in inputs)
    grad = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(9))
    with sdpa_kernel(SDPBackend.MATH):
        truth = run(plain, exact, grad)
    found = run(causal_attention, inputs, grad)
    if length == 1:  # one key: the weights are 1, and nothing depends on queries and keys
        torch.testing.assert_close(found, truth, atol=1e-5, rtol=0)
    else:
        assert max(relative_errors(found, truth)) < 2e-6


def test_large_scores_and_what_is_not_a_number() -> None:
    q, k, v = (x.detach() for x in draw(200, 2, 2, torch.float32))
    steep = tuple(x.requires_grad_() for x in (q * 100, k * 100, v.clone()))
    grad = torch.ones_like(q)
    exact = tuple(x.detach().double().requires_grad_() for x in steep)
    # A weight's error is that of its score, here some thousands in float32.
    assert max(relative_errors(run(causal_attention, steep, grad), run(plain, exact, grad))) < 1e-2
    for dtype in (torch.float32, torch.bfloat16):
        spoilt = k.clone()
        spoilt[0, 0, 70, 3] = float("nan")
        out = causal_attention(q.to(dtype), spoilt.to(dtype), v.to(dtype))
        assert out[0, 0, 70:].isnan().all() and out[0, 0, :70].isfinite().all() and out[1].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_change_no_bit(dtype: torch.dtype) -> None:
    inputs = draw(150, 6, 3, dtype)
    grad = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(3))
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        results.append(run(causal_attention, inputs, grad))
    torch.set_num_threads(before)
    for found in results[1:]:
        torch.testing.assert_close(found, results[0], atol=0, rtol=0)


@pytest.mark.parametrize(("length", "heads", "kv_heads", "channels"), [(300, 4, 4, 32), (128, 4, 2, 80), (7, 2, 1, 6)])
def test_bfloat16_is_no_further_from_the_truth_than_flash(
    length: int, heads: int, kv_heads: int, channels: int
) -> None:
    low = draw(length, heads, kv_heads, torch.bfloat16, channels)
    q, k, v = (x.detach().double().requires_grad_() for x in low)
    grad = torch.randn(low[0].shape, generator=torch.Generator().manual_seed(9)).bfloat16()
    truth = run(plain, (q, k, v), grad)
    ours, flash = (relative_errors(run(function, low, grad), truth) for function in (causal_attention, plain))
    assert all(mine <= 1.25 * theirs for mine, theirs in zip(ours, flash, strict=True)), (ours, flash)


def test_the_gradient_may_have_any_strides() -> None:
    q, k, v = draw(256, 4, 2, torch.float32)
    out = causal_attention(q, k, v)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    strided = grad.transpose(2, 3).contiguous().transpose(2, 3)
    results = [torch.autograd.grad(out, (q, k, v), each, retain_graph=True) for each in (grad, strided)]
    torch.testing.assert_close(results[0], results[1], atol=1e-6, rtol=1e-6)


def test_it_is_an_operator_that_pytorch_finds_in_order() -> None:
    torch.library.opcheck(torch.ops.hoofprint.causal_attention.default, draw(130, 2, 1, torch.float32))


def test_training_takes_it_where_nothing_else_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = draw(256, 2, 2, torch.float32)
    threads = torch.get_num_threads()
    assert type(attend(q, k, v).grad_fn).__name__ == CALLED
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        assert not takes(q, k)
    with sdpa_kernel(SDPBackend.MATH):
        assert not takes(q, k)
    with torch.no_grad():
        assert not takes(q, k)
    assert not takes(q[:, :, :100], k[:, :, :100])
    assert not takes(q[:, :, :1], k)
    torch.set_num_threads(5)  # more than there are heads to share out
    assert not takes(q, k)
    torch.set_num_threads(threads)
    monkeypatch.setattr(native, "library", lambda: None)
    assert not takes(q, k)
