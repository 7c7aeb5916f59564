"""Every choice of activation checkpointing trains alike; they differ in what is kept and what is computed twice."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from model import native
from model.activation import Checkpointing, checkpoint_block, kept_operators
from model.config import LlamaConfig
from model.generate import generate
from model.init import init_weights
from model.memory import Compute, activation_bytes_per_token
from model.parallelize import parallelize
from model.transformer import Llama

CONFIG = LlamaConfig(dim=32, n_layers=3, n_heads=4, n_kv_heads=2, ffn_hidden=96, vocab_size=97, sequence_length=24)
MODES: list[Checkpointing] = ["none", "selective", "full"]
ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
PRODUCT = torch.ops.aten.mm.default


def build(mode: Checkpointing, dtype: torch.dtype = torch.float32) -> Llama:
    model = Llama(CONFIG)
    init_weights(model, seed=5)
    return parallelize(model, None, checkpointing=mode).to(dtype)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(97, (2, 25), generator=torch.Generator().manual_seed(0))
    return tokens[:, :-1], tokens[:, 1:]


def gradients(model: Llama) -> list[torch.Tensor]:
    return [parameter.grad for parameter in model.parameters()]


class Watch(TorchDispatchMode):
    """Counts operators, and remembers every storage that one of them made."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[Any] = Counter()
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.calls[func] += 1
        for each in out if isinstance(out, tuple) else (out,):
            if isinstance(each, torch.Tensor):
                storage = each.untyped_storage()
                self._made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return out

    def alive_bytes(self) -> int:
        return sum(size for storage, size in self._made.values() if not storage.expired())


@pytest.mark.parametrize("by_hand", [True, False])
@pytest.mark.parametrize("mode", ["selective", "full"])
def test_loss_and_gradients_are_bit_for_bit_those_without(
    mode: Checkpointing, by_hand: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not by_hand:  # as on a GPU: the plain formulas, with autograd's own backward
        monkeypatch.setattr(native, "computes", lambda x: False)
    results = []
    for each in ("none", mode):
        model = build(each)
        loss = model(*batch())
        loss.backward()
        results.append([loss, *gradients(model)])
    torch.testing.assert_close(results[1], results[0], atol=0, rtol=0)


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_bfloat16_too(mode: Checkpointing) -> None:
    results = []
    for each in ("none", mode):
        model = build(each, torch.bfloat16)
        model.reset_buffers()
        loss = model(*batch())
        loss.backward()
        results.append([loss, *gradients(model)])
    torch.testing.assert_close(results[1], results[0], atol=0, rtol=0)


def test_each_mode_keeps_less_than_the_one_before() -> None:
    """Bytes that stand between forward and backward, whoever holds them: autograd, or the cache of `selective`."""
    alive = {}
    for mode in MODES:
        model = build(mode)
        with Watch() as watch:
            loss = model(*batch())
            alive[mode] = watch.alive_bytes()
        loss.backward()
    assert alive["none"] > alive["selective"] > alive["full"]
    tokens = batch()[0].numel()
    for more, less in (("none", "selective"), ("selective", "full")):
        compute = Compute("float32", cpu=True, compiled=False)
        planned = [activation_bytes_per_token(CONFIG, mode, compute) for mode in (more, less)]
        assert alive[more] - alive[less] == CONFIG.n_layers * tokens * (planned[0] - planned[1])


def test_selective_computes_no_product_and_no_attention_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    flop, calls, norms, routine = {}, {}, Counter(), native.call
    monkeypatch.setattr(native, "call", lambda name, *rest: (norms.update([(mode, name)]), routine(name, *rest)))
    for mode in MODES:
        model = build(mode)
        with FlopCounterMode(display=False) as counter, Watch() as watch:
            model(*batch()).backward()
        flop[mode], calls[mode] = counter.get_total_flops(), watch.calls
    assert flop["selective"] == flop["none"]
    tokens = batch()[0].numel()
    blocks = 2 * (CONFIG.matmul_params - CONFIG.vocab_size * CONFIG.dim) * tokens
    # The last product of a block is not reached: its output is not needed for any gradient.
    last = 2 * CONFIG.n_layers * CONFIG.ffn_hidden * CONFIG.dim * tokens
    assert flop["full"] == flop["none"] + blocks - last
    layers = CONFIG.n_layers
    assert [calls[mode][ATTENTION] for mode in MODES] == [layers, layers, 2 * layers]
    # The cheap rest is: each layer turns queries and keys, and norms twice.
    if native.library() is not None:
        found = [norms[mode, "rms_norm_forward"] for mode in MODES]
        assert found == [2 * layers + 1, 4 * layers + 1, 4 * layers + 1]


def test_the_list_has_what_this_pytorch_runs() -> None:
    assert {PRODUCT, ATTENTION, torch.ops.aten._scaled_dot_product_cudnn_attention.default} <= kept_operators()


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_a_compiled_block_recomputes_too(mode: Checkpointing) -> None:
    torch._dynamo.reset()
    plain, compiled = build("none"), build(mode)
    for block in compiled.blocks:
        block.compile(backend="aot_eager", fullgraph=True)  # needs no C++ compiler; fails on a graph break
    losses = [model(*batch()) for model in (plain, compiled)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[1], losses[0], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(gradients(compiled), gradients(plain), atol=1e-4, rtol=1e-4)


def test_generation_is_untouched() -> None:
    plain, full = (list(generate(build(mode), [1, 2, 3], max_new_tokens=10)) for mode in ("none", "full"))
    assert plain == full


def test_names_stay_and_an_unknown_mode_is_refused() -> None:
    assert list(build("full").state_dict()) == list(build("none").state_dict())
    with pytest.raises(ValueError, match="none, selective, full"):
        checkpoint_block(Llama(CONFIG).blocks[0], "some")  # type: ignore[arg-type]
