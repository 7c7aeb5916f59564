"""One part of the suite as a process: `python -m benchmarks.gpu.part '{"part": ..., ...}'`.

Each finding is a line `found KEY JSON` as soon as it is there, so that a part that is cut short keeps what it has.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.training.systems import Case

ROOT = Path(__file__).parents[2]


def main(task: dict[str, Any]) -> None:
    """task: part, and what that part takes; see `benchmarks.gpu_suite`."""
    part = task.pop("part")
    if "case" in task:
        task["case"] = Case.from_json(task["case"])
    if part == "about":
        say("about", about(task["device"]))
    elif part in ("ceiling", "attention"):
        from benchmarks.gpu import kernels

        getattr(kernels, part)(**task, say=say)
    elif part == "training":
        from benchmarks.gpu.training import training

        training(**task, say=say)
    elif part == "generation":
        from benchmarks.gpu.generation import generation

        generation(**task, say=say)
    elif part == "metering":
        from benchmarks.metering.real_gpu import examine

        say("sensors", examine(**task))
    elif part == "checks":
        say("gpu_tests", checks())
    else:
        raise AssertionError(part)


def checks() -> dict[str, Any]:
    """How the tests in gpu_tests/ end, and which fail."""
    import pytest

    class Counting:
        def __init__(self) -> None:
            self.ended: dict[str, int] = {}
            self.failed: list[str] = []

        def pytest_runtest_logreport(self, report: Any) -> None:
            if report.when == "call" or report.outcome != "passed":
                self.ended[report.outcome] = self.ended.get(report.outcome, 0) + 1
            if report.failed:
                self.failed.append(f"{report.nodeid}: {str(report.longrepr).splitlines()[-1][:200]}")

    counting = Counting()
    code = pytest.main(["-q", "-p", "no:cacheprovider", str(ROOT / "gpu_tests")], plugins=[counting])
    return {"exit_status": int(code), "ended": counting.ended, "failed": counting.failed}


def about(device: str) -> dict[str, Any]:
    """What there is to measure on."""
    import importlib.metadata

    import torch

    found: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda, "device": device}
    for name in ("transformers", "torchtitan", "torchao", "nvidia-ml-py"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    if device == "cuda":
        from energy.sensors import nvml

        nvml.find("here", "all")  # opens the library
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "memory_bytes": properties.total_memory,
            "capability": [properties.major, properties.minor],
            "driver": nvml.driver_version(),
        }
    return found


def say(key: str, value: Any) -> None:
    print(f"\nfound {json.dumps(key)} {json.dumps(value)}", flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
