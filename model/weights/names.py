"""What each weight is called here, by Hugging Face's LlamaForCausalLM and by Meta's release."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, TypeVar

Layout = Literal["huggingface", "meta"]
T = TypeVar("T")

# ours: (Hugging Face, Meta)
_TOP = {
    "embedding": ("model.embed_tokens", "tok_embeddings"),
    "norm": ("model.norm", "norm"),
    "output": ("lm_head", "output"),
}
_IN_BLOCK = {
    "attention_norm": ("input_layernorm", "attention_norm"),
    "attention.wq": ("self_attn.q_proj", "attention.wq"),
    "attention.wk": ("self_attn.k_proj", "attention.wk"),
    "attention.wv": ("self_attn.v_proj", "attention.wv"),
    "attention.wo": ("self_attn.o_proj", "attention.wo"),
    "ffn_norm": ("post_attention_layernorm", "ffn_norm"),
    "ffn.w_gate": ("mlp.gate_proj", "feed_forward.w1"),
    "ffn.w_up": ("mlp.up_proj", "feed_forward.w3"),
    "ffn.w_down": ("mlp.down_proj", "feed_forward.w2"),
}
_BLOCKS = {"huggingface": "model.layers", "meta": "layers"}
_COLUMN = {"huggingface": 0, "meta": 1}
_OURS = re.compile(r"(?:blocks\.(?P<layer>\d+)\.)?(?P<part>[a-z_.]+)\.weight")

# Tables that old files carry, which follow from the config: Hugging Face's, Meta's, and Meta's of the first 7B.
IGNORED = re.compile(
    r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq|(layers\.\d+\.attention\.inner_attention\.)?rope\.freqs"
)


def theirs(name: str, layout: Layout) -> str:
    """The name in `layout` of one of our weights: blocks.0.attention.wq.weight, embedding.weight, ..."""
    match = _OURS.fullmatch(name)
    assert match is not None, name
    layer, part = match["layer"], match["part"]
    if layer is None:
        return f"{_TOP[part][_COLUMN[layout]]}.weight"
    return f"{_BLOCKS[layout]}.{layer}.{_IN_BLOCK[part][_COLUMN[layout]]}.weight"


def to_hf_state_dict(state: Mapping[str, T]) -> dict[str, T]:
    """Rename a `Llama` state dict for LlamaForCausalLM; the layout is the same."""
    return {theirs(name, "huggingface"): value for name, value in state.items()}


def from_hf_state_dict(state: Mapping[str, T]) -> dict[str, T]:
    """Rename a LlamaForCausalLM state dict for `Llama`. KeyError for a name that it does not have."""
    parts = {hf: ours for ours, (hf, _) in (_TOP | _IN_BLOCK).items()}
    renamed = {}
    for name, value in state.items():
        bare = name.removesuffix(".weight")
        match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", bare)
        ours = parts[bare] if match is None else f"blocks.{match[1]}.{parts[match[2]]}"
        renamed[f"{ours}.weight"] = value
    return renamed
