"""Weights in the names of Hugging Face's LlamaForCausalLM and back. Same layout: only the names differ."""

from __future__ import annotations

from collections.abc import Mapping

import torch

_TO_HF = (
    ("embedding.", "model.embed_tokens."),
    ("blocks.", "model.layers."),
    (".attention.wq.", ".self_attn.q_proj."),
    (".attention.wk.", ".self_attn.k_proj."),
    (".attention.wv.", ".self_attn.v_proj."),
    (".attention.wo.", ".self_attn.o_proj."),
    (".attention_norm.", ".input_layernorm."),
    (".ffn_norm.", ".post_attention_layernorm."),
    (".ffn.w_gate.", ".mlp.gate_proj."),
    (".ffn.w_up.", ".mlp.up_proj."),
    (".ffn.w_down.", ".mlp.down_proj."),
    ("output.", "lm_head."),
)


def to_hf_state_dict(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename a `Llama` state dict for LlamaForCausalLM."""
    return {_to_hf(name): tensor for name, tensor in state.items()}


def from_hf_state_dict(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename a LlamaForCausalLM state dict for `Llama`."""
    return {_from_hf(name): tensor for name, tensor in state.items()}


def _to_hf(name: str) -> str:
    if name == "norm.weight":
        return "model.norm.weight"
    for ours, theirs in _TO_HF:
        name = name.replace(ours, theirs)
    return name


def _from_hf(name: str) -> str:
    if name == "model.norm.weight":
        return "norm.weight"
    for ours, theirs in _TO_HF:
        name = name.replace(theirs, ours)
    return name
