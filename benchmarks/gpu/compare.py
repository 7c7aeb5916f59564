"""What the parts of the suite say together: ratios, and whether the targets are met."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MFU_TARGET, PEER_TARGET, FLOAT8_TARGET = 0.6, 1.05, 1.25
PEERS = ("torchtitan", "transformers")


def summary(parts: Mapping[str, Any]) -> dict[str, Any]:
    """By sequence length: MFU, the ratio to the best peer, float8 over bfloat16; None where a part is missing."""

    def found(part: str, key: str) -> dict[str, Any]:
        cell = parts.get(part, {}).get("found", {}).get(key, {})
        return cell if isinstance(cell, dict) else {}

    rates = [
        cell["flop_per_s"]
        for key in ("square_bfloat16", "model_shapes")
        if "flop_per_s" in (cell := found("ceiling", key))
    ]
    ceiling = max(rates, default=None)
    lengths: dict[str, Any] = {}
    for length in parts.get("training hoofprint", {}).get("found", {}):
        ours = found("training hoofprint", length)
        rate = ours.get("tokens_per_s")
        peers = {name: found(f"training {name}", length).get("tokens_per_s") for name in PEERS}
        known = {name: peer for name, peer in peers.items() if peer}
        best = max(known, key=lambda name: known[name], default=None)
        ratio = rate / known[best] if rate and best else None
        float8 = found("training float8", length).get("tokens_per_s")
        faster = float8 / rate if float8 and rate else None
        mfu = ours.get("mfu")
        lengths[length] = {
            "tokens_per_s": rate,
            "joule_per_token": ours.get("joule_per_token"),
            "mfu": mfu,
            "mfu_convention": ours.get("convention"),
            "mfu_peak_flop_per_s": ours.get("peak_flop_per_s"),
            "of_measured_ceiling": ours["model_flop_per_s"] / ceiling
            if ceiling and "model_flop_per_s" in ours
            else None,
            "peers_tokens_per_s": peers,
            "best_peer": best,
            "ratio_to_best_peer": ratio,
            "float8_to_bfloat16": faster,
            "met": {
                f"MFU >= {MFU_TARGET}": None if mfu is None else mfu >= MFU_TARGET,
                f">= {PEER_TARGET} x the best peer": None if ratio is None else ratio >= PEER_TARGET,
                f"float8 >= {FLOAT8_TARGET} x": None if faster is None else faster >= FLOAT8_TARGET,
            },
        }
    return {"ceiling_flop_per_s": ceiling, "training": lengths}
