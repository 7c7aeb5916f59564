"""The systems that are compared, as one training step each: forward, loss, backward, fused AdamW.

All compute the same: LLaMA of the same sizes on the same tokens. In bfloat16 the master weights, their gradients'
reduction and AdamW stay float32 in all of them (`HOW` says by what). Used on the CPU and by the GPU suite.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from model.activation import Checkpointing
from model.attention import Backend, sdpa_backends
from model.config import LlamaConfig
from model.float8 import to_float8
from model.init import init_weights
from model.optim import make_optimizer
from model.parallelize import layout_of, loss_scale, make_mesh, parallelize
from model.sharding import Layout, sharding_plan
from model.transformer import Llama
from model.weights.hf_config import config_dict

Step = Callable[[], torch.Tensor]  # returns the loss, in nats a token, without waiting for a GPU
ADAMW: dict[str, Any] = {"lr": 1e-4, "betas": (0.9, 0.95), "weight_decay": 0.1, "fused": True}
TITLES = {
    "hoofprint": "hoofprint",
    "hoofprint_compiled": "hoofprint, compiled",
    "transformers": "transformers",
    "transformers_compiled": "transformers, compiled",
    "torchtitan": "torchtitan",
    "torchtitan_compiled": "torchtitan, compiled",
}
HOW = {
    "hoofprint": "as `hoofprint run`: float32 master weights, FSDP2 over several ranks; not compiled: on a CPU the "
    "routines in C of `model.native` (attention, norms, rotary turn, SwiGLU, softmax of the loss); compiled: each "
    "block, on a GPU the loss too",
    "transformers": "LlamaForCausalLM with sdpa; bfloat16: autocast (as its Trainer); compiled: the whole model with "
    "its loss (as its Trainer); over several devices each layer, and the loss",
    "torchtitan": "its Llama 3 with its own scaled dot-product attention (others do not train on a CPU) and loss; "
    "bfloat16: autocast on one device, its own FSDP over several; compiled: each block, and the loss (as its trainer)",
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is trained, and where. sequences: of config.sequence_length tokens, on each rank."""

    config: LlamaConfig
    sequences: int
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    fsdp: bool = False  # over the ranks there are
    checkpointing: Checkpointing = "none"  # of ours
    attention: Backend = "auto"  # of ours
    float8: bool = False  # of ours

    @property
    def tokens(self) -> int:
        """Tokens of a step, on each rank."""
        return self.sequences * self.config.sequence_length

    @property
    def flop(self) -> int:
        """FLOP of a step, on each rank, by PaLM's convention (`model.flops`)."""
        return self.tokens * self.config.flop_per_token

    @property
    def torch_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.dtype == "bfloat16" else torch.float32

    def with_length(self, length: int) -> Case:
        """About as many tokens in sequences of `length`."""
        config = replace(self.config, sequence_length=length)
        return replace(self, config=config, sequences=max(1, self.tokens // length))

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Case:
        return cls(**found | {"config": LlamaConfig(**found["config"])})


def join_group(device: str, rank: int = 0, world: int = 1, port: int = 0) -> None:
    """The process group; of a single rank without a port."""
    backend = "nccl" if device == "cuda" else "gloo"
    if world == 1:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    else:
        dist.init_process_group(backend, init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)


def draw_tokens(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets, (B, L) each."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    shape = (case.sequences, case.config.sequence_length + 1)
    drawn = torch.randint(case.config.vocab_size, shape, generator=torch.Generator().manual_seed(rank))
    return tuple(x.contiguous().to(case.device) for x in (drawn[:, :-1], drawn[:, 1:]))  # type: ignore[return-value]


def load(system: str) -> None:
    """Imports what `system` needs, so that the memory of a step can be told from that of libraries."""
    if system.startswith("transformers"):
        from transformers import LlamaForCausalLM  # noqa: F401
    if system.startswith("torchtitan"):
        from benchmarks.training import titan  # noqa: F401


def hoofprint(case: Case, compile: bool) -> Step:
    device = torch.device(case.device)
    with torch.device("meta"):
        model = Llama(case.config)
    if case.float8:
        to_float8(model)
    mesh, plan, ranks = None, None, 1
    if case.fsdp:
        ranks = dist.get_world_size()
        mesh = make_mesh(case.device, Layout(shards=ranks))
        plan = sharding_plan(model, layout_of(mesh), prefetch=1 if device.type == "cuda" else 0)
    parallelize(
        model,
        mesh,
        plan=plan,
        param_dtype=case.torch_dtype,
        checkpointing=case.checkpointing,
        compile=compile,
        gather_once=device.type == "cpu",  # as `hoofprint run`
    )
    model.to_empty(device=device)
    _draw_weights(model, device)
    optimizer = make_optimizer(model, lr=ADAMW["lr"])
    inputs, targets = draw_tokens(case)
    scale = loss_scale(ranks, ranks * case.tokens)

    def step() -> torch.Tensor:
        with sdpa_backends(case.attention, device):
            loss = model(inputs, targets)
            (loss * scale).backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach() / case.tokens

    return step


def _autocast(case: Case) -> AbstractContextManager[Any]:
    """How peers compute in bfloat16 where FSDP does not see to it."""
    if case.dtype == "float32" or case.fsdp:
        return nullcontext()
    return torch.autocast(case.device, torch.bfloat16)


@torch.no_grad()
def _draw_weights(model: Llama, device: torch.device) -> None:
    if device.type == "cpu":
        init_weights(model, seed=1)
        return
    # There: to draw billions on the CPU takes minutes, and speed does not depend on the values.
    for parameter in model.parameters():
        local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        local.normal_(0.0, model.config.init_std) if parameter.dim() > 1 else local.fill_(1.0)
    model.reset_buffers()


def huggingface(case: Case, compile: bool, by_layer: bool = False) -> Step:
    import transformers

    config = case.config
    with torch.device(case.device):
        model = transformers.LlamaForCausalLM(
            transformers.LlamaConfig.from_dict(
                config_dict(config) | {"use_cache": False, "attn_implementation": "sdpa"}
            )
        )
    if compile and (by_layer or case.fsdp):
        for layer in model.model.layers:
            layer.compile()
        model.loss_function = torch.compile(model.loss_function)
    elif compile:
        model.compile()
    autocast = _autocast(case)
    if case.fsdp:
        policy = MixedPrecisionPolicy(param_dtype=case.torch_dtype, reduce_dtype=torch.float32)
        mesh = make_mesh(case.device, Layout(shards=dist.get_world_size()))
        for module in (*model.model.layers, model):
            fully_shard(module, mesh=mesh, mp_policy=policy)
    optimizer = torch.optim.AdamW(model.parameters(), **ADAMW)
    inputs, targets = draw_tokens(case)

    def step() -> torch.Tensor:
        with autocast:
            loss = model(input_ids=inputs, shift_labels=targets, labels=targets).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def torchtitan(case: Case, compile: bool) -> Step:
    from benchmarks.training import titan

    with torch.device("meta"):
        model = titan.build(case.config)
    if compile:
        for block in model.layers.values():
            block.compile(fullgraph=True)
    autocast = _autocast(case)
    if case.fsdp:
        titan.shard(model, make_mesh(case.device, Layout(shards=dist.get_world_size())), case.torch_dtype)
    model.to_empty(device=case.device)
    titan.draw_weights(model, torch.device(case.device))
    loss_of = titan.loss(model, case.config.vocab_size, case.tokens, case.device, compile)
    optimizer = torch.optim.AdamW(model.parameters(), **ADAMW)
    inputs, targets = draw_tokens(case)

    def step() -> torch.Tensor:
        with autocast:
            loss = loss_of(model(inputs), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


SYSTEMS: dict[str, Callable[[Case], Step]] = {
    name + suffix: functools.partial(build, compile=bool(suffix))
    for name, build in (("hoofprint", hoofprint), ("transformers", huggingface), ("torchtitan", torchtitan))
    for suffix in ("", "_compiled")
}
# Beside them on a GPU: there the whole was slower when it was compiled than its layers, and the best is the peer.
BY_LAYER: dict[str, Callable[[Case], Step]] = {
    f"transformers_by_layer{suffix}": functools.partial(huggingface, compile=bool(suffix), by_layer=True)
    for suffix in ("", "_compiled")
}
