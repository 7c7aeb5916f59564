"""Documents packed into sequences: as if each stood alone, held to a reference in float64."""

import random

import pytest
import torch
from torch.nn.attention import _cur_sdpa_kernel_backends

from model.attention import Varlen, attend, backend_in_use, sdpa_backends
from model.config import LlamaConfig
from model.init import init_weights
from model.packing import Packing, form_of, pack
from model.transformer import Llama

BOS, LENGTH = 1, 40
CPU = torch.device("cpu")
CONFIG = LlamaConfig(
    dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_hidden=48, vocab_size=97, sequence_length=LENGTH, init_std=0.2
)


def documents(seed: int, rows: int = 3) -> torch.Tensor:
    """Tokens of packed documents of random lengths (also of one token); a row may begin within one."""
    draw = random.Random(seed)
    rows_of_tokens = []
    for _ in range(rows):
        row = [draw.randrange(3, 97) for _ in range(draw.randrange(0, 8))]
        while len(row) < LENGTH:
            row += [BOS, *(draw.randrange(3, 97) for _ in range(draw.choice((0, 1, 5, 30))))]
        rows_of_tokens.append(row[:LENGTH])
    return torch.tensor(rows_of_tokens)


def packed(tokens: torch.Tensor, dtype: torch.dtype = torch.float32) -> Packing:
    return pack(tokens, BOS, "mask", CPU, dtype)


def pieces(row: torch.Tensor) -> list[tuple[int, int]]:
    """(begin, end) of each document of one row, found without the code under test."""
    begins = [0] + [i for i in range(1, len(row)) if row[i] == BOS]
    return list(zip(begins, [*begins[1:], len(row)], strict=True))


def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Attention of each document by itself, by the formula (H, L, D)."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    rows = []
    for row, each in enumerate(tokens):
        outs = []
        for begin, end in pieces(each):
            scores = q[row, :, begin:end] @ k[row, :, begin:end].transpose(-1, -2) / q.shape[-1] ** 0.5
            hidden = torch.ones(end - begin, end - begin, dtype=torch.bool).triu(1)
            outs.append(scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v[row, :, begin:end])
        rows.append(torch.cat(outs, dim=1))
    return torch.stack(rows)


def draw_qkv(dtype: torch.dtype, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(3, heads, LENGTH, 8) for heads in (4, 2, 2)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05)]
)
def test_attention_equals_that_of_each_document_alone(dtype: torch.dtype, tolerance: float, seed: int) -> None:
    tokens = documents(seed)
    exact = draw_qkv(torch.float64, seed)
    expected = reference(*exact, tokens)
    expected_grads = torch.autograd.grad(expected.sin().sum(), exact)
    inputs = draw_qkv(dtype, seed)
    out = attend(*inputs, packed(tokens, dtype).mask)
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=tolerance)
    grads = torch.autograd.grad(out.double().sin().sum(), inputs)
    for grad, each in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad.double(), each, atol=2 * tolerance, rtol=tolerance)


@pytest.mark.parametrize("seed", range(3))
def test_the_model_sees_each_document_alone(seed: int) -> None:
    model = Llama(CONFIG)
    init_weights(model, seed=3)
    model = model.double()
    model.reset_buffers()
    tokens = documents(seed)
    logits = model(tokens, packing=packed(tokens, torch.float64))
    for row, each in enumerate(tokens):
        for begin, end in pieces(each):
            alone = model(each[None, begin:end])[0]
            torch.testing.assert_close(logits[row, begin:end], alone, atol=1e-5, rtol=1e-5)


def test_one_document_is_plain_causal_attention() -> None:
    model = Llama(CONFIG)
    init_weights(model, seed=3)
    tokens = torch.randint(3, 97, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(tokens, packing=packed(tokens)), model(tokens), atol=1e-5, rtol=1e-5)


def test_positions_begin_anew_and_the_forms_say_the_same() -> None:
    tokens = torch.tensor([[9, 9, BOS, 9, 9, BOS], [BOS, 9, 9, 9, BOS, BOS]])
    masked, varlen = (pack(tokens, BOS, form, CPU, torch.float32) for form in ("mask", "varlen"))
    for packing in (masked, varlen):
        assert packing.positions_BL.tolist() == [[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 0, 0]]
    assert isinstance(varlen.mask, Varlen)
    assert varlen.mask.starts.tolist() == [0, 2, 5, 6, 10, 11, 12] and varlen.mask.starts.dtype == torch.int32
    flex = pack(tokens, BOS, "flex", CPU, torch.float32).mask
    grid = [torch.arange(n) for n in (2, 1, 6, 6)]
    seen = flex.mask_mod(*torch.meshgrid(*grid, indexing="ij"))
    assert torch.equal(seen, masked.mask == 0)
    assert masked.mask.shape == (2, 1, 6, 6) and torch.isinf(masked.mask[~seen]).all()


def test_the_form_follows_the_hardware_and_what_cannot_train_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert form_of("auto", gpu, torch.bfloat16) == "flex"  # a Turing
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert form_of("auto", CPU, torch.bfloat16) == "mask"
    assert form_of("auto", gpu, torch.bfloat16) == "varlen" and form_of("auto", gpu, torch.float32) == "flex"
    assert form_of("efficient", gpu, torch.bfloat16) == "mask"
    for wanted, device, dtype, word in (
        ("flex", CPU, torch.float32, "GPU only"),
        ("varlen", gpu, torch.float32, "bfloat16"),
        ("cudnn", gpu, torch.bfloat16, "document"),
    ):
        with pytest.raises(ValueError, match=word):
            form_of(wanted, device, dtype)
    with pytest.raises(ValueError, match="GPU only"):
        sdpa_backends("cudnn", CPU)


@pytest.mark.parametrize(
    ("capability", "first"), [((8, 0), "FLASH"), ((8, 9), "FLASH"), ((9, 0), "CUDNN"), ((10, 0), "CUDNN")]
)
def test_the_hardware_says_which_backend_is_first(
    capability: tuple[int, int], first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    with sdpa_backends("auto", torch.device("cuda")):
        order = [backend.name.partition("_")[0] for backend in _cur_sdpa_kernel_backends(with_priority=True)]
    second = "CUDNN" if first == "FLASH" else "FLASH"
    assert order == [first, second, "EFFICIENT", "MATH"]


def test_the_backend_in_use_is_asked_for() -> None:
    like = torch.empty(0)
    assert backend_in_use(CONFIG, 2, None, "auto", like) == "flash"
    assert backend_in_use(CONFIG, 2, None, "math", like) == "math"
    mask = packed(documents(0, rows=2)).mask
    assert backend_in_use(CONFIG, 2, mask, "auto", like) == "flash with a mask"
