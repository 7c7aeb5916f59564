"""What each weight is called here, by Hugging Face's LlamaForCausalLM and by Meta's release."""

from __future__ import annotations

import re
from typing import Literal

Layout = Literal["huggingface", "meta"]

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
