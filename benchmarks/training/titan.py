"""torchtitan's Llama 3 in the sizes of ours, by what its releases 0.2 and 0.3 call it.

0.3 needs a torch from 2.12 on; with 2.11 it is 0.2.2. Each is taken with its own FSDP and its own loss.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh

from model.config import LlamaConfig

if importlib.util.find_spec("torchtitan") is None:
    raise ModuleNotFoundError("No module named 'torchtitan'")
OLD = tuple(int(part) for part in importlib.metadata.version("torchtitan").split(".")[:2]) < (0, 3)


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


if OLD:
    import torchtitan.components.loss
    from torchtitan.models import llama3
    from torchtitan.models.llama3.infra.parallelize import apply_fsdp
    from torchtitan.models.llama3.model.model import Transformer
else:
    _without_expert_parallelism()
    import torchtitan.components.loss  # noqa: F811
    from torchtitan.config import CompileConfig
    from torchtitan.distributed.fsdp import apply_fsdp_to_decoder as apply_fsdp  # noqa: F811
    from torchtitan.models import llama3  # noqa: F811


def build(config: LlamaConfig) -> Any:
    """The model, on the device that is the default."""
    if OLD:
        arguments = llama3.TransformerModelArgs(
            dim=config.dim,
            n_layers=config.n_layers,
            n_heads=config.n_heads,
            n_kv_heads=config.n_kv_heads,
            vocab_size=config.vocab_size,
            norm_eps=config.norm_eps,
            rope_theta=config.rope_theta,
            max_seq_len=config.sequence_length,
        )
        return Transformer(arguments)
    return _config(config).build()


def shard(model: Any, mesh: DeviceMesh, dtype: torch.dtype) -> None:
    apply_fsdp(model, mesh, dtype, torch.float32, pp_enabled=False)


def draw_weights(model: Any, device: torch.device) -> None:
    draw = model.init_weights if OLD else model.init_states
    with torch.no_grad():
        draw(buffer_device=device)


def loss(
    model: Any, vocab_size: int, tokens: int, device: str, compile: bool
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """From what the model returns, and the targets, to nats a token; `compile` as its trainer, which compiles the loss
    with the blocks."""
    if OLD:
        summed: Any = torchtitan.components.loss.cross_entropy_loss
        summed = torch.compile(summed) if compile else summed
        return lambda logits, targets: summed(logits, targets) / tokens
    parts = torchtitan.components.loss
    wrapper = parts.ChunkedLossWrapper.Config(loss_fn=parts.CrossEntropyLoss.Config(global_vocab_size=vocab_size))
    chunked = wrapper.build(compile_config=CompileConfig(enable=compile))
    chunked.set_lm_head(model.lm_head)
    model._skip_lm_head = True
    valid = torch.tensor(float(tokens), device=device)
    return lambda hidden, targets: chunked(hidden, targets, valid)[0]


def _config(config: LlamaConfig) -> Any:
    """0.3's, from the functions that its own sizes are made of."""
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
