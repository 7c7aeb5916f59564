import subprocess
import sys

import pytest
import torch

from model.config import LlamaConfig
from model.flops import flop_per_token
from model.transformer import Llama

# dim, layers, heads, ffn_hidden, params, matmul_params, FLOP per token at 2048
PAPER = {
    "7B": (4096, 32, 32, 11008, 6738415616, 6607077376, 42863689728),
    "13B": (5120, 40, 40, 13824, 13015864320, 12851609600, 82142822400),
    "33B": (6656, 60, 52, 17920, 32528943616, 32315146240, 203705548800),
    "65B": (8192, 80, 64, 22016, 65285660672, 65022197760, 406239313920),
}


@pytest.mark.parametrize("size", PAPER)
def test_the_papers_sizes(size: str) -> None:
    dim, layers, heads, hidden, params, matmul_params, flop = PAPER[size]
    config = LlamaConfig(dim=dim, n_layers=layers, n_heads=heads, vocab_size=32000)
    with torch.device("meta"):
        model = Llama(config)
    assert config.ffn_hidden == hidden
    assert config.params == params == sum(p.numel() for p in model.parameters())
    assert config.matmul_params == matmul_params
    assert config.flop_per_token == flop == flop_per_token(config, 2048)


@pytest.mark.parametrize(
    ("knob", "changes"),
    [
        ("dim", {"dim": 0}),
        ("dim", {"dim": 65}),
        ("even", {"dim": 12, "n_heads": 4}),
        ("n_kv_heads", {"n_kv_heads": 3}),
        ("vocab_size", {"vocab_size": 1.5}),
        ("norm_eps", {"norm_eps": 0.0}),
    ],
)
def test_a_bad_knob_is_named(knob: str, changes: dict) -> None:
    with pytest.raises(ValueError, match=knob):
        LlamaConfig(**({"dim": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 97} | changes))


def test_the_config_needs_no_torch() -> None:
    code = "import model.config, model.flops, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
