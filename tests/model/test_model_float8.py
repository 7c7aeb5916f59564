"""Training in float8, with its rounding emulated where no hardware multiplies it."""

import pytest
import torch

from model.config import LlamaConfig
from model.float8 import to_float8
from model.init import init_weights
from model.parallelize import parallelize
from model.transformer import Llama

CONFIG = LlamaConfig(dim=64, n_layers=2, n_heads=4, n_kv_heads=2, ffn_hidden=96, vocab_size=97, sequence_length=16)


def _gradients(float8: bool, checkpointing: str) -> dict[str, torch.Tensor]:
    """As a rank does it: on meta, float8, parallelize, to_empty, and weights by their names."""
    with torch.device("meta"):
        model = Llama(CONFIG)
    if float8:
        to_float8(model, emulate=True)
    model = parallelize(model, None, param_dtype=torch.bfloat16, checkpointing=checkpointing)
    model.to_empty(device="cpu")
    init_weights(model, seed=0)
    tokens = torch.randint(0, 97, (4, 17), generator=torch.Generator().manual_seed(0))
    (model(tokens[:, :-1], tokens[:, 1:]) / 64).backward()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}  # the masters
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_gradients_in_float8_are_near_those_in_bfloat16(checkpointing: str) -> None:
    expected, found = _gradients(False, checkpointing), _gradients(True, checkpointing)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        near = torch.cosine_similarity(gradient.flatten(), expected[name].flatten(), dim=0)
        assert gradient.dtype == torch.float32 and 0.97 < near < 1 - 1e-7, (name, near)
        assert 0.9 < gradient.norm() / expected[name].norm() < 1.1, name
