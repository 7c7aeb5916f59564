"""What the preflight of a run knew of its GPUs at its last start (preflight.json): power limits, and what it found."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

from energy.runs import RunFolder

FILE_NAME = "preflight.json"
LARGEST_FILE = 16_000_000


@dataclass(frozen=True)
class Preflight:
    """limits_w: {UUID: power limit in force} of the GPUs that told it; findings: in words, with node and GPU."""

    time_unix_s: float | None = None
    limits_w: dict[str, float] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)


def read_preflight(folder: RunFolder) -> Preflight | None:
    """None where the run had none. ValueError for a file that is not understood, or leads out of the run."""
    path = folder.path / FILE_NAME
    if not path.exists():
        return None
    if not path.resolve().is_relative_to(folder.path.resolve()):
        raise ValueError("a link that leads out of the run")
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"more than {LARGEST_FILE // 10**6} MB")
    document = json.loads(path.read_bytes())
    limits_w = {
        str(gpu["uuid"]): float(gpu["power_limit_w"])
        for node in document["nodes"]
        for gpu in node["gpus"]
        if is_number(gpu.get("power_limit_w")) and gpu["power_limit_w"] > 0
    }
    findings = [_in_words(each) for each in document["findings"]]
    when = document.get("time_unix_s")
    return Preflight(float(when) if is_number(when) else None, limits_w, findings)


def _in_words(finding: dict[str, Any]) -> str:
    who = f"{finding['gpu']} on {finding['node']}" if finding["gpu"] else str(finding["node"])
    return f"{who}: {finding['said']}"


def is_number(value: Any) -> bool:
    """Whether it is a finite number that a float holds."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False
