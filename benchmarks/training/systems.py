"""The systems that are compared, as one training step each: forward, loss, backward, fused AdamW.

All compute the same: LLaMA of the same sizes on the same tokens. In bfloat16 the master weights, their gradients'
reduction and AdamW stay float32 in all of them (`HOW` says by what). Used on the CPU and by the GPU suite.
"""

from __future__ import annotations

import functools
import sys
import types
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
    "hoofprint": "float32: the plain model; bfloat16: FSDP2 mixed precision, as `hoofprint run`",
    "transformers": "LlamaForCausalLM with sdpa; bfloat16: autocast on the CPU (as its Trainer), FSDP2 mixed precision "
    "on a GPU; compiled: each decoder layer",
    "torchtitan": "its Llama3Model with its own ScaledDotProductAttention (flex and varlen do not train on a CPU) and "
    "its chunked loss; bfloat16: its own apply_fsdp_to_decoder; compiled: each block",
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is trained, and where. sequences: of config.sequence_length tokens, on each rank."""

    config: LlamaConfig
    sequences: int
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    fsdp: bool = False  # also in float32
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
    def sharded(self) -> bool:
        return self.fsdp or self.dtype == "bfloat16"

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
        _without_expert_parallelism()
        import torchtitan.components.loss
        import torchtitan.distributed.fsdp
        import torchtitan.models.llama3  # noqa: F401


def hoofprint(case: Case, compile: bool) -> Step:
    device = torch.device(case.device)
    with torch.device("meta"):
        model = Llama(case.config)
    if case.float8:
        to_float8(model)
    mesh, plan, ranks = None, None, 1
    if case.sharded:
        ranks = dist.get_world_size()
        mesh = make_mesh(case.device, Layout(shards=ranks))
        plan = sharding_plan(model, layout_of(mesh), prefetch=1 if device.type == "cuda" else 0)
    parallelize(model, mesh, plan=plan, param_dtype=case.torch_dtype, checkpointing=case.checkpointing, compile=compile)
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


def huggingface(case: Case, compile: bool) -> Step:
    import transformers

    config = case.config
    with torch.device(case.device):
        model = transformers.LlamaForCausalLM(
            transformers.LlamaConfig.from_dict(
                config_dict(config) | {"use_cache": False, "attn_implementation": "sdpa"}
            )
        )
    if compile:
        for layer in model.model.layers:
            layer.compile()
    autocast: AbstractContextManager[Any] = nullcontext()
    if case.dtype == "bfloat16" and case.device == "cpu":
        autocast = torch.autocast("cpu", torch.bfloat16)
    elif case.sharded:
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
    load("torchtitan")
    from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss
    from torchtitan.distributed.fsdp import apply_fsdp_to_decoder

    with torch.device("meta"):
        model = _torchtitan_config(case.config).build()
    if compile:
        for block in model.layers.values():
            block.compile(fullgraph=True)
    if case.sharded:
        mesh = make_mesh(case.device, Layout(shards=dist.get_world_size()))
        apply_fsdp_to_decoder(model, mesh, case.torch_dtype, torch.float32, pp_enabled=False)
    model.to_empty(device=case.device)
    model.init_states(buffer_device=torch.device(case.device))
    wrapper = ChunkedLossWrapper.Config(loss_fn=CrossEntropyLoss.Config(global_vocab_size=case.config.vocab_size))
    loss_of = wrapper.build()
    loss_of.set_lm_head(model.lm_head)
    model._skip_lm_head = True
    optimizer = torch.optim.AdamW(model.parameters(), **ADAMW)
    inputs, targets = draw_tokens(case)
    valid = torch.tensor(float(case.tokens), device=case.device)

    def step() -> torch.Tensor:
        loss, _ = loss_of(model(inputs), targets, valid)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def _torchtitan_config(config: LlamaConfig) -> Any:
    """Its model in the sizes of ours, from the functions that its own sizes are made of."""
    from torchtitan.models import llama3
    from torchtitan.models.common import ComplexRoPE, Embedding, Linear, RMSNorm
    from torchtitan.models.common.attention import ScaledDotProductAttention

    rope = ComplexRoPE.Config(dim=config.head_dim, max_seq_len=config.sequence_length, theta=config.rope_theta)
    layers = llama3._build_llama3_layers(
        n_layers=config.n_layers,
        dim=config.dim,
        n_heads=config.n_heads,
        n_kv_heads=config.n_kv_heads,
        hidden_dim=config.ffn_hidden,
        rope=rope,
        attn_backend="flex",
    )
    for layer in layers:
        layer.attention.inner_attention = ScaledDotProductAttention.Config()
    return llama3.Llama3Model.Config(
        dim=config.dim,
        vocab_size=config.vocab_size,
        tok_embeddings=Embedding.Config(
            num_embeddings=config.vocab_size, embedding_dim=config.dim, param_init=llama3._EMBEDDING_INIT
        ),
        norm=RMSNorm.Config(normalized_shape=config.dim, param_init=llama3._NORM_INIT),
        lm_head=Linear.Config(
            in_features=config.dim, out_features=config.vocab_size, param_init=llama3._output_linear_init(config.dim)
        ),
        layers=layers,
    )


def _without_expert_parallelism() -> None:
    """torchtitan imports kernels for mixtures of experts with every model; they need triton, a gigabyte of it, which
    no LLaMA uses and a torch for the CPU does not bring."""
    name = "torchtitan.distributed.minimal_async_ep"
    try:
        import triton  # noqa: F401
    except ImportError:
        stand_in = types.ModuleType(name)
        wanted = ("combine_op", "dispatch_op", "init_buffer", "maybe_update_minimal_async_ep_config")
        for each in ("MinimalAsyncEPDispatchMetadata", *wanted):
            setattr(stand_in, each, type(each, (), {}))
        sys.modules[name] = stand_in


SYSTEMS: dict[str, Callable[[Case], Step]] = {
    name + suffix: functools.partial(build, compile=bool(suffix))
    for name, build in (("hoofprint", hoofprint), ("transformers", huggingface), ("torchtitan", torchtitan))
    for suffix in ("", "_compiled")
}
