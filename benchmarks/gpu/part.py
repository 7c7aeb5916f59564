"""One part of the suite as a process: `python -m benchmarks.gpu.part '{"part": ..., ...}'`.

It imports what it needs, and begins when a line comes on stdin. Each finding is a line `found KEY JSON` as soon as it
is there, so that a part that is cut short keeps what it has.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.training.systems import Case, load

ROOT = Path(__file__).parents[2]


def main(task: dict[str, Any]) -> None:
    """task: part, and what that part takes; see `benchmarks.gpu_suite`."""
    prepared(task)()


def prepared(task: dict[str, Any]) -> Callable[[], None]:
    """The part, with its libraries imported; nothing of it has touched the GPU."""
    given = {key: value for key, value in task.items() if key != "part"}
    if "case" in given:
        given["case"] = Case.from_json(given["case"])
    part = task["part"]
    if part == "about":
        return lambda: say("about", about(**given))
    if part in ("ceiling", "attention"):
        from benchmarks.gpu import kernels

        return partial(getattr(kernels, part), **given, say=say)
    if part == "training":
        from benchmarks.gpu.training import training

        with suppress(Exception):  # whatever a library raises: the part meets it again, and says so
            load(given["system"])
        return partial(training, **given, say=say)
    if part == "generation":
        from benchmarks.gpu.generation import generation

        with suppress(Exception):
            load("transformers")
        return partial(generation, **given, say=say)
    if part == "metering":
        from benchmarks.metering.real_gpu import examine

        return lambda: say("sensors", examine(**given))
    if part == "checks":
        import pytest

        return partial(checks, pytest.main)
    raise AssertionError(part)


def checks(main: Callable[..., int]) -> None:
    """How the tests in gpu_tests/ end, and which fail; said after each of them."""

    class Counting:
        def __init__(self) -> None:
            self.found: dict[str, Any] = {"exit_status": None, "ended": {}, "failed": []}

        def pytest_runtest_logreport(self, report: Any) -> None:
            ended, failed = self.found["ended"], self.found["failed"]
            if report.when == "call" or report.outcome != "passed":
                ended[report.outcome] = ended.get(report.outcome, 0) + 1
            if report.failed:
                failed.append(f"{report.nodeid}: {str(report.longrepr).splitlines()[-1][:200]}")
            if report.when == "teardown":
                say("gpu_tests", self.found)

    counting = Counting()
    code = main(["-q", "-p", "no:cacheprovider", str(ROOT / "gpu_tests")], plugins=[counting])
    say("gpu_tests", counting.found | {"exit_status": int(code)})
    if code:
        raise SystemExit(int(code))


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
    work = prepared(json.loads(sys.argv[1]))
    if sys.stdin.readline():  # else whoever started this has gone
        work()
