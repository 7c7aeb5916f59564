"""Attention over blocks of queries against PyTorch's, and when it is the one that runs."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from model import kernels_attention
from model.attention import attend
from model.kernels_attention import causal_attention, takes

Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def draw(length: int, heads: int, kv_heads: int, dtype: torch.dtype, channels: int = 8) -> Heads:
    """Queries, keys and values strided as `Attention` makes them."""
    generator = torch.Generator().manual_seed(length + heads)
    shapes = ((2, length, n, channels) for n in (heads, kv_heads, kv_heads))
    drawn = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
    q, k, v = (x.transpose(1, 2).requires_grad_() for x in drawn)
    return q, k, v


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# Less than a block, whole blocks, a part of a block at the end; all heads in one round, and several rounds.
@pytest.mark.parametrize("length", [7, 256, 300])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (4, 1)])
@pytest.mark.parametrize("scores_bytes", [2**20, 1])
def test_values_and_gradients_are_those_of_the_plain_formula(
    length: int, heads: int, kv_heads: int, scores_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels_attention, "_SCORES_BYTES", scores_bytes)
    q, k, v = draw(length, heads, kv_heads, torch.float64)
    results = []
    for grouped in (None, heads != kv_heads):
        if grouped is None:
            out = causal_attention(q, k, v)
        else:
            with sdpa_kernel(SDPBackend.MATH):
                out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        results.append((out, *torch.autograd.grad(out.sin().sum(), (q, k, v))))
    torch.testing.assert_close(results[0], results[1], atol=1e-10, rtol=1e-10)


def test_bfloat16_is_no_further_from_the_truth_than_flash() -> None:
    low = draw(300, 4, 4, torch.bfloat16, channels=32)
    q, k, v = (x.detach().double().requires_grad_() for x in low)
    grad = torch.randn(low[0].shape, generator=torch.Generator().manual_seed(9)).bfloat16()

    def run(function: Callable[..., torch.Tensor], inputs: Heads) -> list[torch.Tensor]:
        out = function(*inputs)
        return [x.double() for x in (out, *torch.autograd.grad(out, inputs, grad.to(out.dtype)))]

    def flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    truth = run(flash, (q, k, v))
    errors = [
        [(a - b).norm() / b.norm() for a, b in zip(run(f, low), truth, strict=True)] for f in (causal_attention, flash)
    ]
    assert all(ours <= 1.25 * theirs for ours, theirs in zip(*errors, strict=True)), errors


def test_the_gradient_may_have_any_strides() -> None:
    q, k, v = draw(256, 4, 2, torch.float32)
    out = causal_attention(q, k, v)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    strided = grad.transpose(2, 3).contiguous().transpose(2, 3)
    results = [torch.autograd.grad(out, (q, k, v), each, retain_graph=True) for each in (grad, strided)]
    torch.testing.assert_close(results[0], results[1], atol=1e-6, rtol=1e-6)


def test_it_is_an_operator_that_pytorch_finds_in_order() -> None:
    torch.library.opcheck(causal_attention, draw(130, 2, 1, torch.float32))


@pytest.mark.usefixtures("one_thread")
def test_training_takes_it_where_nothing_else_was_asked_for() -> None:
    q, k, v = draw(256, 2, 2, torch.float32)
    assert "causal_attention" in type(attend(q, k, v).grad_fn).__name__
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        assert not takes(q, k)
    with sdpa_kernel(SDPBackend.MATH):
        assert not takes(q, k)
    with torch.no_grad():
        assert not takes(q, k)
    assert not takes(q[:, :, :128], k[:, :, :128])
    assert not takes(q[:, :, :1], k)
    torch.set_num_threads(2)
    assert not takes(q, k)
