"""Hugging Face's `config.json` of a LLaMA, to our config and back. What our model would not compute is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from model.config import LlamaConfig, RopeScaling
from model.weights.settings import (
    OBJECT,
    POSITIVE,
    SWITCH,
    TOKENS,
    WHOLE,
    WORD,
    WORDS,
    odd_values,
    or_null,
    read_object,
    require_kinds,
)

CONFIG, GENERATION = "config.json", "generation_config.json"
ARCHITECTURE = "LlamaForCausalLM"
_END = "eos_token_id"
TOKEN_KEYS = ("bos_token_id", _END, "pad_token_id")

# What our model does, for keys that would make it another model: any other value is refused.
_FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "sliding_window": (None,),
    "use_sliding_window": (False, None),
    "quantization_config": (None,),
    "num_local_experts": (None,),
    "num_experts": (None,),
    "partial_rotary_factor": (1, None),
    "logits_scaling": (1, None),
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
}
_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
_NAMES = {"architectures": or_null(WORDS), "model_type": or_null(WORD)}
_KINDS = {
    **dict.fromkeys(_SIZES, WHOLE),
    **dict.fromkeys(("num_key_value_heads", "head_dim"), or_null(WHOLE)),
    "max_position_embeddings": WHOLE,
    **dict.fromkeys(("rms_norm_eps", "initializer_range"), POSITIVE),
    "rope_theta": or_null(POSITIVE),
    **dict.fromkeys(("rope_scaling", "rope_parameters"), or_null(OBJECT)),
    "tie_word_embeddings": or_null(SWITCH),
    "layer_types": or_null(WORDS),
    **dict.fromkeys(TOKEN_KEYS, or_null(TOKENS)),
}
# Of the saving library, of training or of the order of computation: the model is the same whatever they say.
_HARMLESS = {
    "torch_dtype", "dtype", "transformers_version", "use_cache", "pretraining_tp", "attention_dropout", "_name_or_path",
    "max_sequence_length", "unsloth_version", "unsloth_fixed", "output_attentions", "output_hidden_states",
    "return_dict", "chunk_size_feed_forward", "is_decoder", "id2label", "label2id", "problem_type", "hidden_dropout",
}  # fmt: skip
_ROPE_KINDS = {
    **dict.fromkeys(("type", "rope_type"), WORD),
    **dict.fromkeys(("rope_theta", "partial_rotary_factor"), or_null(POSITIVE)),
    "original_max_position_embeddings": or_null(WHOLE),
    **dict.fromkeys(("factor", "low_freq_factor", "high_freq_factor"), POSITIVE),
}
_ROPE_KEYS = {"type", "rope_type", "rope_theta", "original_max_position_embeddings"}
_LLAMA3_KEYS = _ROPE_KEYS | {"factor", "low_freq_factor", "high_freq_factor"}


def read_config(path: Path) -> tuple[LlamaConfig, dict[str, Any], list[str]]:
    """The model in a `config.json`, its special token ids, and warnings. ValueError with all reasons against it."""
    raw = read_object(path, "model_type, hidden_size, ...")
    require_kinds(path, raw, _NAMES)
    named = raw.get("architectures") or [ARCHITECTURE if raw.get("model_type") == "llama" else raw.get("model_type")]
    if (raw.get("model_type") or "llama") != "llama" or named != [ARCHITECTURE]:
        raise ValueError(
            f"{path}: the architecture is {', '.join(map(str, named))} (model_type {raw.get('model_type')}): "
            f"only {ARCHITECTURE} is supported"
        )
    missing = [key for key in _SIZES if key not in raw]
    if missing:
        raise ValueError(f"{path}: {', '.join(missing)} missing")
    require_kinds(path, raw, _KINDS)
    faults = [
        f"{key} is {json.dumps(raw[key])}: our model has {json.dumps(allowed[0])}"
        for key, allowed in _FIXED.items()
        if key in raw and raw[key] not in allowed
    ]
    if any(kind != "full_attention" for kind in raw.get("layer_types") or []):
        faults.append(f"layer_types are {', '.join(sorted(set(raw['layer_types'])))}: our model has full_attention")
    heads, dim = raw["num_attention_heads"], raw["hidden_size"]
    if raw.get("head_dim") is not None and raw["head_dim"] * heads != dim:
        faults.append(
            f"head_dim is {raw['head_dim']}: our model has hidden_size / num_attention_heads, {dim / heads:g}"
        )
    theta, scaling, rope_faults = _rope(raw)
    if faults + rope_faults:
        raise ValueError(f"{path}: this is not LLaMA as our model computes it\n  " + "\n  ".join(faults + rope_faults))
    try:
        config = LlamaConfig(
            dim=dim,
            n_layers=raw["num_hidden_layers"],
            n_heads=heads,
            n_kv_heads=raw.get("num_key_value_heads") or heads,
            ffn_hidden=raw["intermediate_size"],
            vocab_size=raw["vocab_size"],
            sequence_length=raw.get("max_position_embeddings", 2048),
            norm_eps=raw.get("rms_norm_eps", 1e-6),
            rope_theta=theta,
            rope_scaling=scaling,
            tie_embeddings=bool(raw.get("tie_word_embeddings", False)),
            init_std=raw.get("initializer_range", 0.02),
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error
    unknown = sorted(raw.keys() - _NAMES.keys() - _KINDS.keys() - _HARMLESS - _FIXED.keys())
    warnings = [f"{path.name} has keys that are not known here and were passed over: {', '.join(unknown)}"]
    tokens = {key: raw[key] for key in TOKEN_KEYS if raw.get(key) is not None}
    return config, tokens, warnings if unknown else []


def read_ends(folder: Path) -> dict[str, Any]:
    """The tokens that end a text by `generation_config.json`, where there is one and it names some: of a model that is
    made to talk, `config.json` may know the first of them only."""
    path = folder / GENERATION
    raw = read_object(path, "eos_token_id, ...") if path.is_file() else {}
    require_kinds(path, raw, {_END: _KINDS[_END]})
    return {} if raw.get(_END) is None else {_END: raw[_END]}


def _rope(raw: Mapping[str, Any]) -> tuple[float, RopeScaling | None, list[str]]:
    """theta and scaling, of `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
    new, old = raw.get("rope_parameters") or {}, raw.get("rope_scaling") or {}
    if new and old and _scaling_said(new) != _scaling_said(old):
        return 1e4, None, ["rope_parameters and rope_scaling say different things: leave one of them"]
    found = new or old
    if odd := odd_values(found, _ROPE_KINDS):
        return 1e4, None, [f"rope_scaling: {each}" for each in odd]
    theta = float(found.get("rope_theta") or raw.get("rope_theta") or 1e4)
    kind = found.get("rope_type", found.get("type", "default"))
    if found.get("type", kind) != kind:
        return theta, None, [f"rope_scaling is of type {found['type']} and of rope_type {kind}: leave one of them"]
    if found.get("partial_rotary_factor") not in (None, 1):
        return theta, None, [f"partial_rotary_factor is {found['partial_rotary_factor']}: our model turns all channels"]
    known = {"default": _ROPE_KEYS, "linear": _ROPE_KEYS | {"factor"}, "llama3": _LLAMA3_KEYS}
    if kind not in known:
        return theta, None, [f"rope_scaling of type {kind} is not supported, only {', '.join(known)}"]
    unknown = sorted(found.keys() - known[kind] - {"partial_rotary_factor"})
    if unknown:
        return theta, None, [f"rope_scaling of type {kind} has keys that are not known here: {', '.join(unknown)}"]
    if kind == "default":
        return theta, None, []
    missing = sorted(known[kind] - _ROPE_KEYS - found.keys())
    if missing:
        return theta, None, [f"rope_scaling of type {kind} lacks {', '.join(missing)}"]
    if kind == "linear":
        return theta, RopeScaling(kind="linear", factor=float(found["factor"])), []
    try:
        scaling = RopeScaling(
            kind="llama3",
            factor=float(found["factor"]),
            low_freq_factor=float(found["low_freq_factor"]),
            high_freq_factor=float(found["high_freq_factor"]),
            original_length=found.get("original_max_position_embeddings") or raw.get("max_position_embeddings", 2048),
        )
    except ValueError as error:
        return theta, None, [str(error)]
    return theta, scaling, []


def _scaling_said(rope: Mapping[str, Any]) -> dict[str, Any]:
    """What is said of the scaling, whichever way."""
    said = {"rope_type" if key == "type" else key: value for key, value in rope.items() if key != "rope_theta"}
    return {"rope_type": "default"} | said


def config_dict(
    config: LlamaConfig, dtype: torch.dtype = torch.float32, tokens: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What stands in `config.json`, as transformers 4 and 5 both read it (`transformers.LlamaConfig.from_dict`)."""
    tokens = tokens or {}
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.dim,
        "initializer_range": config.init_std,
        "intermediate_size": config.ffn_hidden,
        "max_position_embeddings": config.sequence_length,
        "mlp_bias": False,
        "num_attention_heads": config.n_heads,
        "num_hidden_layers": config.n_layers,
        "num_key_value_heads": config.n_kv_heads,
        "rms_norm_eps": config.norm_eps,
        "rope_scaling": _rope_scaling(config.rope_scaling),
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "use_cache": True,
        "vocab_size": config.vocab_size,
        # Said even where there are none: transformers would take 1 and 2 for granted.
        **{key: tokens.get(key) for key in TOKEN_KEYS},
    }


def write_config(folder: Path, config: LlamaConfig, dtype: torch.dtype, tokens: Mapping[str, Any]) -> None:
    """`config.json` and `generation_config.json`."""
    _write(folder / CONFIG, config_dict(config, dtype, tokens))
    _write(folder / GENERATION, {"_from_model_config": True} | {k: v for k, v in tokens.items() if k in TOKEN_KEYS})


def _rope_scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    found: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        found |= {
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_length,
        }
    return found


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
