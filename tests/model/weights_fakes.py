"""Small models of every shape that weights come in, and a source that keeps count of the tensors it gave away."""

import weakref
from collections.abc import Mapping
from typing import Any, TypeVar

import torch

from model.config import LlamaConfig, RopeScaling
from model.init import init_weights
from model.transformer import Llama
from model.weights.names import theirs
from model.weights.tensors import TensorInfo, WeightSource

T = TypeVar("T")

BASE: dict[str, Any] = {
    "dim": 64, "n_layers": 2, "n_heads": 4, "ffn_hidden": 96, "vocab_size": 100, "sequence_length": 64, "init_std": 0.2,
}  # fmt: skip
LLAMA3 = RopeScaling(kind="llama3", factor=8.0, original_length=16)
CONFIGS = {
    "plain": LlamaConfig(**BASE),
    "grouped": LlamaConfig(**BASE | {"n_kv_heads": 2, "rope_theta": 5e5, "norm_eps": 1e-6}),
    "llama3": LlamaConfig(**BASE | {"n_kv_heads": 2, "rope_theta": 5e5, "rope_scaling": LLAMA3}),
    "linear": LlamaConfig(**BASE | {"rope_scaling": RopeScaling(kind="linear", factor=4.0)}),
    "tied": LlamaConfig(**BASE | {"n_kv_heads": 1, "tie_embeddings": True}),
}


def build(config: LlamaConfig, dtype: torch.dtype = torch.float32) -> Llama:
    """A model whose weights are all different, norms too: a mix-up shows."""
    model = Llama(config)
    init_weights(model, seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() < 2:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
            parameter.data = parameter.to(dtype)
    return model


def draw_tokens(config: LlamaConfig) -> torch.Tensor:
    return torch.randint(config.vocab_size, (2, config.sequence_length), generator=torch.Generator().manual_seed(0))


class InMemory:
    """The weights of a model that stands in memory."""

    def __init__(self, model: Llama) -> None:
        self.config = model.config
        self.weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
        self.tensors = {name: TensorInfo(tuple(w.shape), w.dtype) for name, w in self.weights.items()}

    def read(self, name: str) -> torch.Tensor:
        return self.weights[name].clone()


class Counting:
    """A source that knows the most tensors, and the most bytes, of its own that were alive at once."""

    def __init__(self, source: WeightSource) -> None:
        self._source = source
        self.config, self.tensors = source.config, source.tensors
        self.alive = self.most_alive = self.alive_bytes = self.most_bytes = self.reads = 0

    def read(self, name: str) -> torch.Tensor:
        tensor = self._source.read(name)
        self.reads += 1
        self.alive += 1
        self.alive_bytes += tensor.nbytes
        self.most_alive = max(self.most_alive, self.alive)
        self.most_bytes = max(self.most_bytes, self.alive_bytes)
        # The storage outlives the tensor where somebody keeps a view of it.
        weakref.finalize(tensor.untyped_storage(), self._gone, tensor.nbytes)
        return tensor

    def _gone(self, nbytes: int) -> None:
        self.alive -= 1
        self.alive_bytes -= nbytes


def silent(done: int, total: int, name: str) -> None:
    """No progress."""


def weights_of(source: WeightSource) -> dict[str, torch.Tensor]:
    return {name: source.read(name) for name in source.tensors}


def model_of(source: WeightSource) -> Llama:
    model = Llama(source.config)
    model.load_state_dict(weights_of(source))
    return model


def assert_same_bits(one: WeightSource, other: WeightSource) -> None:
    assert list(one.tensors.items()) == list(other.tensors.items())
    for name in one.tensors:
        a, b = one.read(name), other.read(name)
        assert a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8)), name


def to_hf_state_dict(state: Mapping[str, T]) -> dict[str, T]:
    """Rename a `Llama` state dict for LlamaForCausalLM; the layout is the same."""
    return {theirs(name, "huggingface"): value for name, value in state.items()}
