"""Meta's `params.json` of a LLaMA, to our config and back.

Meta's code calls `ModelArgs(max_seq_len=..., max_batch_size=..., **params)` and knows no key of later releases: the
file says only what that of the model's own release may say. The length of a sequence, which none does, lies beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.config import LlamaConfig, RopeScaling
from model.weights.settings import POSITIVE, SWITCH, WHOLE, Kind, or_null, read_object, require_kinds

PARAMS = "params.json"
OURS = "hoofprint.json"  # {sequence_length} of a model that we exported
_THETA, _SCALED_THETA = 1e4, 5e5  # where none is said: of the code of LLaMA 1 and 2, and of that which scales
_MULTIPLE = 256
_SEQUENCE_LENGTH = 2048
_SIZES = ("dim", "n_layers", "n_heads")
_KINDS = {
    **dict.fromkeys((*_SIZES, "multiple_of", "max_batch_size"), WHOLE),
    "norm_eps": POSITIVE,
    "vocab_size": Kind("whole numbers", lambda value: type(value) is int),
    **dict.fromkeys(("n_kv_heads", "max_seq_len"), or_null(WHOLE)),
    "use_scaled_rope": or_null(SWITCH),
    **dict.fromkeys(
        ("ffn_dim_multiplier", "rope_theta", "rope_scaling_factor", "rope_high_freq_factor"), or_null(POSITIVE)
    ),
}
_OTHER_MODELS = {
    "moe": "a mixture of experts",
    "moe_args": "a mixture of experts",
    "num_experts": "a mixture of experts",
    "quantization_args": "quantised",
    "lora_args": "a model with LoRA adapters",
    "vision_chunk_size": "a vision model",
    "vision_args": "a vision model",
}


def read_params(
    path: Path,
    vocab_size: int,
    tied: bool,
    sequence_length: int | None,
    rope_scaling_factor: float | None,
) -> tuple[LlamaConfig, list[str]]:
    """The model in a `params.json`, and warnings. What that file does not say comes from the caller:

    vocab_size, as the weights have it; sequence_length, tokens (None: 2,048, with a warning);
    rope_scaling_factor, for a file that only says that there is one.
    """
    raw = read_object(path, "dim, n_layers, ...")
    missing = [key for key in (*_SIZES, "norm_eps") if key not in raw]
    if missing:
        raise ValueError(f"{path}: {', '.join(missing)} missing")
    require_kinds(path, raw, _KINDS)
    other = [f"{key}: {what}" for key, what in _OTHER_MODELS.items() if raw.get(key)]
    if other:
        raise ValueError(f"{path}: this is not LLaMA as our model computes it ({'; '.join(other)})")
    if raw.get("vocab_size", -1) not in (-1, vocab_size):
        raise ValueError(
            f"{path}: vocab_size is {raw['vocab_size']}, but the weights have {vocab_size} rows: it belongs to other "
            "weights, or one of their files is missing"
        )
    warnings = []
    beside = path.with_name(OURS)
    ours = read_object(beside, "sequence_length") if beside.is_file() else {}
    require_kinds(beside, ours, {"sequence_length": WHOLE})
    length = sequence_length or raw.get("max_seq_len") or ours.get("sequence_length")
    if length is None:
        length = _SEQUENCE_LENGTH
        warnings.append(
            f"{path.name} does not say for how many tokens the model was trained: taken as {length}; "
            "--sequence-length says otherwise"
        )
    unknown = sorted(raw.keys() - _KINDS.keys() - _OTHER_MODELS.keys())
    if unknown:
        warnings.append(f"{path.name} has keys that are not known here and were passed over: {', '.join(unknown)}")
    try:
        return LlamaConfig(
            dim=raw["dim"],
            n_layers=raw["n_layers"],
            n_heads=raw["n_heads"],
            n_kv_heads=raw.get("n_kv_heads") or raw["n_heads"],
            ffn_hidden=_hidden(raw["dim"], raw.get("multiple_of", _MULTIPLE), raw.get("ffn_dim_multiplier")),
            vocab_size=vocab_size,
            sequence_length=length,
            norm_eps=raw["norm_eps"],
            rope_theta=float(raw.get("rope_theta") or (_SCALED_THETA if raw.get("use_scaled_rope") else _THETA)),
            rope_scaling=_scaling(path, raw, rope_scaling_factor),
            tie_embeddings=tied,
        ), warnings
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from error


def _scaling(path: Path, raw: Mapping[str, Any], factor: float | None) -> RopeScaling | None:
    scaled, said = raw.get("use_scaled_rope"), raw.get("rope_scaling_factor")
    if factor is not None and (said not in (None, factor) or not scaled):
        has = f"rope_scaling_factor {said}" if scaled else "no scaled rotary positions (use_scaled_rope)"
        raise ValueError(f"{path} has {has}: leave --rope-scaling-factor out")
    if not scaled:
        return None
    factor = said or factor
    if factor is None:
        raise ValueError(
            f"{path}: use_scaled_rope is true, but not by how much: give --rope-scaling-factor (Llama 3.1 and 3.3: 8, "
            "Llama 3.2: 32)"
        )
    return RopeScaling(
        kind="llama3", factor=float(factor), high_freq_factor=float(raw.get("rope_high_freq_factor") or 4.0)
    )


def write_params(folder: Path, config: LlamaConfig) -> None:
    """`params.json`, and the length of a sequence. ValueError for a rotary scaling that Meta's code does not have."""
    scaling = config.rope_scaling
    if scaling is not None and (scaling.kind, scaling.low_freq_factor, scaling.original_length) != ("llama3", 1, 8192):
        raise ValueError(f"Meta's layout has no place for {scaling}; export it with --format huggingface")
    multiple, multiplier = _ffn(config.dim, config.ffn_hidden)
    raw = {
        "dim": config.dim,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        **({} if config.n_kv_heads == config.n_heads else {"n_kv_heads": config.n_kv_heads}),
        "vocab_size": config.vocab_size,
        "multiple_of": multiple,
        **({} if multiplier is None else {"ffn_dim_multiplier": multiplier}),
        "norm_eps": config.norm_eps,
        # The code that scales takes another theta where none is said.
        **({} if config.rope_theta == _THETA and scaling is None else {"rope_theta": config.rope_theta}),
    }
    if scaling is not None:
        raw |= {
            "use_scaled_rope": True,
            "rope_scaling_factor": scaling.factor,
            "rope_high_freq_factor": scaling.high_freq_factor,
        }
    ours = {"sequence_length": config.sequence_length}
    for name, said in ((PARAMS, raw), (OURS, ours)):
        (folder / name).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")


def _hidden(dim: int, multiple: int, multiplier: float | None) -> int:
    """The rule of Meta's FeedForward: 2/3 of 4 dim, times a factor, up to a multiple."""
    hidden = int(2 * (4 * dim) / 3)
    if multiplier is not None:
        hidden = int(multiplier * hidden)
    return multiple * -(-hidden // multiple)


def _ffn(dim: int, ffn_hidden: int) -> tuple[int, float | None]:
    """multiple_of and ffn_dim_multiplier by which that rule gives `ffn_hidden`."""
    if _hidden(dim, _MULTIPLE, None) == ffn_hidden:
        return _MULTIPLE, None
    multiple = min(ffn_hidden & -ffn_hidden, _MULTIPLE)  # the largest power of two that divides it
    multiplier = (ffn_hidden - 0.5 * (multiple - 1)) / int(2 * (4 * dim) / 3)  # the middle of what rounds up to it
    if multiple == 1:
        multiplier = (ffn_hidden + 0.5) / int(2 * (4 * dim) / 3)
    assert _hidden(dim, multiple, multiplier) == ffn_hidden, (dim, ffn_hidden)
    return multiple, multiplier
