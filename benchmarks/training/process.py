"""A system in a process of its own that works when it is told to, and otherwise waits: `Runner` drives one.

The process writes `ready ...` once it is warm, then answers each line it reads:
steps N    N steps; the seconds of each
peak       one step; the most memory that the process had in it
profile N  N steps under torch's profiler; where their time went
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]
MODULE = "benchmarks.training.process"


class Failed(RuntimeError):
    """A system that could not be measured; the message says why."""


class Runner:
    """One system, as one process for each rank."""

    def __init__(
        self,
        name: str,
        task: dict[str, Any],
        log: Path,
        environment: Mapping[str, str],
        *,
        ranks: int = 1,
        copies: int = 1,
        packages: Path | None = None,
    ) -> None:
        """task: what `main` takes; see there. log: gets what the system prints, also why it failed.

        ranks: of one process group. copies: that many processes that know nothing of each other work at the same time.
        packages: a folder of further packages.
        """
        self.name, self._log = name, log
        log.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[str] = log.open("w", encoding="utf-8")
        path = os.pathsep.join(str(place) for place in (ROOT, packages) if place)
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", MODULE, json.dumps(task | {"rank": rank, "ranks": ranks})],
                cwd=ROOT,
                env={**os.environ, "PYTHONWARNINGS": "ignore", **environment, "PYTHONPATH": path},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._file,
                text=True,
            )
            for rank in [*range(ranks), *[0] * (copies - 1)]
        ]
        self.about: dict[str, Any] = {}

    def await_ready(self) -> None:
        """Waits until all ranks are warm; Failed if one ends instead."""
        self.about = [self._line(process, "ready") for process in self._processes][0]

    def ask(self, command: str) -> list[Any]:
        """The answer of each rank."""
        for process in self._processes:
            assert process.stdin is not None
            try:
                process.stdin.write(command + "\n")
                process.stdin.flush()
            except BrokenPipeError:
                break  # reading says why
        return [self._line(process, "answer") for process in self._processes]

    def end(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        self._file.close()

    def _line(self, process: subprocess.Popen[str], word: str) -> Any:
        assert process.stdout is not None
        for line in process.stdout:  # libraries print as well
            if line.startswith(word + " "):
                return json.loads(line.removeprefix(word))
        process.wait()
        self._file.flush()
        said = [line for line in self._log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        raise Failed(
            f"{self.name} ended with exit status {process.returncode}: {said[-1][:300] if said else 'it said nothing'}"
        )


def _memory_bytes(key: str) -> int:
    """A line of /proc/self/status: VmRSS (now) or VmHWM (the most since it was reset)."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key + ":"))


def _reset_peak() -> None:
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def main(task: dict[str, Any]) -> None:
    """task: system (of SYSTEMS or LIMITS), case, threads, warm_up (steps), rank, ranks, port."""
    import torch

    torch.set_num_threads(task["threads"])
    from benchmarks.training.limit import LIMITS
    from benchmarks.training.systems import SYSTEMS, Case, join_group, load

    case = Case.from_json(task["case"])
    if case.fsdp:
        join_group(case.device, task["rank"], task["ranks"], task.get("port", 0))
    load(task["system"])
    imported_bytes = _memory_bytes("VmRSS")
    step = (SYSTEMS | LIMITS)[task["system"]](case)
    _say("ready", {"losses": [float(step()) for _ in range(task["warm_up"])]})
    for line in sys.stdin:
        command, _, count = line.strip().partition(" ")
        if command == "steps":
            answer: Any = []
            for _ in range(int(count)):
                start = time.perf_counter()
                float(step())
                answer.append(time.perf_counter() - start)
        elif command == "peak":
            _reset_peak()
            float(step())
            answer = {"peak_bytes": _memory_bytes("VmHWM"), "imported_bytes": imported_bytes}
        else:
            answer = _profile(step, int(count))
        _say("answer", answer)


def _profile(step: Any, steps: int) -> dict[str, float]:
    """Shares of the time of some steps, by `orchestrator.ranks.profiling`: exposed communication among them."""
    import torch

    from orchestrator.ranks.profiling import STEP, split_time, what_ran

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        start = time.perf_counter()
        for _ in range(steps):
            with torch.profiler.record_function(STEP):
                float(step())
        wall_s = time.perf_counter() - start
    return split_time(what_ran(profiler.events(), "cpu"), wall_s * 1e6, 0.0)


def _say(word: str, value: Any) -> None:
    print(f"\n{word} {json.dumps(value)}", flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
