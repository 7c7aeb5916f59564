"""The fast paths of `model.kernels` against the plain formulas, also in float64, and at the ends of their range."""

from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from model import kernels, native
from model.config import LlamaConfig
from model.init import init_weights
from model.parallelize import parallelize
from model.rope import rope_tables
from model.transformer import Llama

Case = tuple[Callable[..., torch.Tensor], tuple[torch.Tensor, ...]]


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cases(dtype: torch.dtype) -> dict[str, Case]:
    cos, sin = (table.to(dtype) for table in rope_tables(head_dim=6, length=5, theta=1e4))
    wide = draw(2, 5, 12, seed=3).to(dtype)
    # Slices and transposes, as a caller may pass: not contiguous.
    return {
        "rms_norm": (lambda x, w: kernels.rms_norm(x, w, 1e-5), (wide[..., :8], draw(8, seed=4).to(dtype))),
        "swiglu": (kernels.swiglu, (wide[..., :6], wide[..., 6:])),
        "rotate": (lambda x: kernels.rotate(x, cos, sin), (draw(2, 3, 5, 6, seed=5).to(dtype).transpose(1, 2),)),
    }


NAMES = list(cases(torch.float32))
compiled_here = pytest.mark.skipif(native.library() is None, reason=native.missing())


def values_and_gradients(function: Callable[..., torch.Tensor], inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    leaves = tuple(x.detach().requires_grad_() for x in inputs)
    out = function(*leaves)
    return [out, *torch.autograd.grad(out.sin().sum(), leaves)]


@compiled_here
@pytest.mark.parametrize("name", NAMES)
def test_float32_by_hand_equals_the_plain_formula_in_float64(name: str) -> None:
    function, inputs = cases(torch.float32)[name]
    found = values_and_gradients(function, inputs)
    exact = values_and_gradients(function, tuple(x.double() for x in inputs))
    assert not native.computes(inputs[0].double())
    torch.testing.assert_close([x.double() for x in found], exact, atol=1e-6, rtol=1e-5)


@compiled_here
@pytest.mark.parametrize("name", NAMES)
def test_both_paths_have_the_same_values_and_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, inputs = cases(torch.float32)[name]
    found = values_and_gradients(function, inputs)
    monkeypatch.setattr(native, "computes", lambda x: False)
    torch.testing.assert_close(found, values_and_gradients(function, inputs), atol=1e-6, rtol=1e-5)


@compiled_here
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_change_no_bit(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_SHARED_FROM", 0)
    function, inputs = cases(dtype)[name]
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(values_and_gradients(function, inputs))
    torch.set_num_threads(before)
    for found in results[1:]:
        torch.testing.assert_close(found, results[0], atol=0, rtol=0)


@compiled_here
def test_what_is_not_a_number_stays_so_and_large_numbers_do_not_become_it() -> None:
    large = torch.tensor([-1e30, -200.0, -88.0, 0.0, 88.0, 200.0, 1e30])
    gate, up = large.clone().requires_grad_(), torch.ones(7, requires_grad=True)
    out = kernels.swiglu(gate, up)
    torch.testing.assert_close(out, torch.nn.functional.silu(large), atol=1e-35, rtol=1e-6)
    grad_gate, grad_up = torch.autograd.grad(out, (gate, up), torch.ones(7))
    assert grad_gate.isfinite().all() and grad_up.isfinite().all()
    for dtype in (torch.float32, torch.bfloat16):
        for name, (function, inputs) in cases(dtype).items():
            spoilt = inputs[0].clone()
            spoilt[0, 0, ..., 0] = float("nan")
            out = function(spoilt, *inputs[1:])
            assert out[0, 0].isnan().any() and out[1].isfinite().all(), name


def test_the_inputs_stay_as_they_were() -> None:
    for function, inputs in cases(torch.float32).values():
        before = [x.clone() for x in inputs]
        leaves = tuple(x.detach().requires_grad_() for x in inputs)
        function(*leaves).sum().backward()
        torch.testing.assert_close(list(inputs), before, atol=0, rtol=0)


@compiled_here
@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_computed_in_float32_and_rounded_at_the_end(name: str) -> None:
    function, inputs = cases(torch.bfloat16)[name]
    assert native.computes(inputs[0])
    results = []
    for dtype in (torch.bfloat16, torch.float64):
        leaves = tuple(x.to(dtype).detach().requires_grad_() for x in inputs)
        out = function(*leaves)
        gradients = torch.autograd.grad(out, leaves, torch.ones_like(out))
        assert {x.dtype for x in (out, *gradients)} == {dtype}
        results.append([x.double() for x in (out, *gradients)])
    for found, exact in zip(*results, strict=True):
        assert (found - exact).abs().max() <= 2.0**-8 * exact.abs().max(), name


@compiled_here
def test_a_norm_of_bfloat16_takes_weights_of_float32() -> None:
    x, weight = draw(2, 5, 8, seed=3).bfloat16().requires_grad_(), draw(8, seed=4).float().requires_grad_()
    out = kernels.rms_norm(x, weight, 1e-5)
    grad_x, grad_weight = torch.autograd.grad(out.sum(), (x, weight))
    assert (out.dtype, grad_x.dtype, grad_weight.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)


def test_a_compiled_model_takes_the_plain_path_to_the_same_loss() -> None:
    config = LlamaConfig(dim=24, n_layers=2, n_heads=2, ffn_hidden=33, vocab_size=97, sequence_length=16)
    tokens = torch.randint(97, (2, 17), generator=torch.Generator().manual_seed(0))
    results = []
    torch._dynamo.reset()
    for compile in (False, True):
        model = Llama(config)
        init_weights(model, seed=5)
        parallelize(model, None)
        if compile:
            # A backend that needs no C++ compiler; `fullgraph` fails on a graph break.
            for block in model.blocks:
                block.compile(backend="aot_eager", fullgraph=True)
        loss = model(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        results.append((loss, [p.grad for p in model.parameters()]))
    torch.testing.assert_close(results[0], results[1], atol=1e-4, rtol=1e-4)


def test_the_linear_layer_by_hand_equals_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = draw(2, 300, 24, seed=6).float(), draw(16, 24, seed=7).float()
    results = []
    for by_hand in (True, False):
        monkeypatch.setattr(kernels, "_ONEDNN", by_hand)
        leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
        with FlopCounterMode(display=False) as counter:
            out = kernels.linear(*leaves)
            gradients = torch.autograd.grad(out.sin().sum(), leaves)
        assert counter.get_total_flops() == 3 * 2 * 600 * 24 * 16
        results.append((out, *gradients, kernels.product(x[0], weight.t())))
    assert "_Linear" in type(results[0][0].grad_fn).__name__
    torch.testing.assert_close(results[0], results[1], atol=1e-4, rtol=1e-5)


def test_few_positions_and_other_types_take_the_plain_linear_layer() -> None:
    weight = draw(16, 24, seed=7).requires_grad_()
    for rows, dtype in ((1, torch.float32), (300, torch.float64), (300, torch.bfloat16)):
        out = kernels.linear(draw(rows, 24, seed=8).to(dtype), weight.to(dtype))
        assert "_Linear" not in type(out.grad_fn).__name__
