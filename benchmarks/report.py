"""Where benchmark results go, and what they say of the machine they were measured on."""

import json
import os
import platform
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
LOAD_BEFORE = os.getloadavg()[0]  # when the benchmark is imported: later it would be the benchmark's own


def machine() -> dict[str, Any]:
    """Processor, cores, versions and date: what a reader needs to judge a figure."""
    import torch

    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "load_before": LOAD_BEFORE,
    }


def write_result(name: str, result: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {path.name}: {json.dumps({k: v for k, v in result.items() if k != 'machine'})}")
