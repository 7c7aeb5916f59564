"""The limit: the matrix products and the attention of a training step alone, warm, on arrays that are used again.

A step multiplies by each weight three times: forward, gradient of the input, gradient of the weight. Each of the three
is computed by whichever of PyTorch's two ways is faster here for its shape (MKL or oneDNN behind torch.mm, oneDNN's own
operator), so that no model made of PyTorch's products is faster. Attention is PyTorch's own kernel or, where ours takes
less time, ours.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks.training.systems import Case, Step
from model import native
from model.kernels_attention import causal_attention

Product = Callable[[], torch.Tensor]
TRIES = 3


def shapes(case: Case) -> Counter[tuple[int, int]]:
    """(inputs, outputs) of the weights of the model, and how many there are of each."""
    config = case.config
    kv_dim = config.n_kv_heads * config.head_dim
    found: Counter[tuple[int, int]] = Counter()
    for shape, times in (
        ((config.dim, config.dim), 2 * config.n_layers),
        ((config.dim, kv_dim), 2 * config.n_layers),
        ((config.dim, config.ffn_hidden), 2 * config.n_layers),
        ((config.ffn_hidden, config.dim), config.n_layers),
        ((config.dim, config.vocab_size), 1),
    ):
        found[shape] += times
    return found


def product_flop(case: Case) -> int:
    """FLOP of the products of a step: 6 for each weight that multiplies and each token."""
    return 6 * case.tokens * sum(inputs * outputs * times for (inputs, outputs), times in shapes(case).items())


def products(case: Case) -> Step:
    """All products of a step, as a step."""
    each = [(_fastest_three(case, *shape), times) for shape, times in shapes(case).items()]

    def step() -> torch.Tensor:
        out = torch.zeros(())
        for three, times in each:
            for _ in range(times):
                for product in three:
                    out = product()
        return out.flatten()[0].float()

    return step


def attention(case: Case) -> Step:
    """The attention of all layers, forward and backward, as a step."""
    config = case.config

    def draw(heads: int) -> torch.Tensor:
        drawn = torch.randn(case.sequences, config.sequence_length, heads, config.head_dim, device=case.device)
        return drawn.to(case.torch_dtype).transpose(1, 2)  # strided as a model makes them

    q, k, v = (draw(heads).requires_grad_() for heads in (config.n_heads, config.n_kv_heads, config.n_kv_heads))
    grad = draw(config.n_heads)
    grouped = config.n_kv_heads < config.n_heads

    def theirs() -> torch.Tensor:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        return torch.autograd.grad(out, (q, k, v), grad)[0]

    def ours() -> torch.Tensor:
        return torch.autograd.grad(causal_attention(q, k, v), (q, k, v), grad)[0]

    fastest = min((theirs, ours), key=_seconds) if native.computes(q) else theirs

    def step() -> torch.Tensor:
        for _ in range(config.n_layers):
            fastest()
        return torch.zeros(())

    return step


LIMITS = {"products": products, "attention": attention}


def _fastest_three(case: Case, inputs: int, outputs: int) -> list[Product]:
    dtype, device = case.torch_dtype, case.device
    x = torch.randn(case.tokens, inputs, device=device).to(dtype)
    weight = torch.randn(outputs, inputs, device=device).to(dtype)
    grad = torch.randn(case.tokens, outputs, device=device).to(dtype)
    out, grad_x, grad_weight = torch.empty_like(grad), torch.empty_like(x), torch.empty_like(weight)
    ways: list[list[Product]] = [
        [lambda: torch.mm(x, weight.t(), out=out)],
        [lambda: torch.mm(grad, weight, out=grad_x)],
        [lambda: torch.mm(grad.t(), x, out=grad_weight)],
    ]
    if device == "cpu" and torch.backends.mkldnn.is_available():
        onednn = torch.ops.mkldnn._linear_pointwise
        ways[0] += [lambda: onednn(x, weight, None, "none", [], "")]
        ways[1] += [lambda: onednn(grad, weight.t(), None, "none", [], "")]
        ways[2] += [lambda: onednn(grad.t(), x.t(), None, "none", [], "")]
    with torch.no_grad():
        return [min(candidates, key=_seconds) for candidates in ways]


def _seconds(product: Product) -> float:
    product()
    taken = []
    for _ in range(TRIES):
        start = time.perf_counter()
        product()
        taken.append(time.perf_counter() - start)
    return min(taken)
