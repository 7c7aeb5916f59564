"""What a node uses now, for screens, and what its metering itself takes."""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from typing import Any


def live_figures(node: str, time_unix_s: float, devices: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """{node, time_unix_s, power_w, energy_j, missing} of the devices as `Meter.now` gives them: a node's own sensor in
    place of its parts, and of a GPU that is metered for MIG instances their share."""
    whole = [device for device in devices if device["kind"] == "node" and not device["missing"]]
    counted = whole or [device for device in devices if device["kind"] != "node"]
    return {
        "node": node,
        "time_unix_s": time_unix_s,
        "power_w": sum((device["power_w"] or 0.0) * device.get("share", 1.0) for device in counted),
        "energy_j": sum(device["energy_j"] * device.get("share", 1.0) for device in counted),
        "missing": [device["uuid"] for device in devices if device["missing"]],
    }


def overhead(cpu_s: float, readings: int) -> dict[str, float]:
    """The meter's own CPU time in s, and of its process the largest memory in MB and the cores that it might use."""
    return {
        "cpu_s": cpu_s,
        "readings": readings,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,  # Linux: KiB
        "cores": os.cpu_count() or 1,
    }
