"""Runs metering processes under the NVML stand-in and holds what they say against the truth."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peers import Peer

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "nvml_sim"))

from build import build  # noqa: E402
from truth import Gpu, parse  # noqa: E402

ADAPTERS = Path(__file__).parent / "adapters.py"


def uuid(number: int) -> str:
    return f"GPU-{number:08d}-0000-4000-8000-{number:012d}"


@dataclass
class Job:
    """One metering process: a tool, what it shall do, and how long after the others it begins."""

    tool: str
    options: dict[str, Any] = field(default_factory=dict)
    delay_s: float = 0.0


class Simulation:
    """GPUs with a truth that began at `epoch_s`, and an environment in which processes see them."""

    def __init__(self, gpus: str, work: Path, library: Path) -> None:
        self.gpus: list[Gpu] = parse(gpus)
        self.epoch_s = time.time()
        self.work = work
        work.mkdir(parents=True, exist_ok=True)
        (work / "gpus.txt").write_text(gpus)
        # CodeCarbon looks for nvidia-smi before it believes in NVIDIA GPUs
        smi = work / "nvidia-smi"
        smi.write_text("#!/bin/sh\nexit 0\n")
        smi.chmod(0o755)
        self.environment = {
            **os.environ,
            "LD_LIBRARY_PATH": str(library),
            "NVML_SIM": str(work / "gpus.txt"),
            "NVML_SIM_EPOCH": repr(self.epoch_s),
            "PATH": f"{work}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        }
        self.environment.pop("NVML_SIM_CLOCK", None)
        self.environment.pop("CUDA_VISIBLE_DEVICES", None)

    def true_j(self, start_unix_s: float, end_unix_s: float) -> dict[str, float]:
        """{uuid: J} between two unix times."""
        start, end = start_unix_s - self.epoch_s, end_unix_s - self.epoch_s
        return {gpu.uuid: gpu.energy_j(start, end) for gpu in self.gpus}

    def start(self, peer: Peer, options: dict[str, Any], **environment: str) -> subprocess.Popen[str]:
        """A process that has not begun to meter; it waits for a line with its delay."""
        module = options["tool"]
        environment = self.environment | environment
        if peer.name != "hoofprint":
            environment.pop("PYTHONPATH")
        folder = self.work / f"{module}-{random.randrange(10**9)}"
        folder.mkdir()
        return subprocess.Popen(
            [str(peer.python), str(ADAPTERS), json.dumps({"out": str(folder), **options})],
            env=environment,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )


def peer_of(tool: str, peers: dict[str, Peer]) -> Peer:
    return peers["zeus" if tool == "zeus_power" else tool]


def run_jobs(
    gpus: str,
    jobs: list[Job],
    peers: dict[str, Peer],
    work: Path,
    library: Path,
    lead_s: float = 0.0,
    load: int = 0,
    **env: str,
) -> tuple[Simulation, list[dict[str, Any]]]:
    """Start all, let all import, then meter at the same time; results in the order of the jobs.

    With `lead_s` metering begins at that simulated second, for faults that are to come in the middle of a window.
    With `load` so many processes compute without pause beside the metering, from before it begins to its end.
    """
    simulation = Simulation(gpus, work, library)
    running: list[subprocess.Popen[str] | None] = []
    for job in jobs:
        peer = peer_of(job.tool, peers)
        running.append(None if peer.missing else simulation.start(peer, {"tool": job.tool, **job.options}, **env))
    alive = [process for process in running if process]
    for each in alive:
        await_line(each, "ready")
    late_s = time.time() - simulation.epoch_s - lead_s
    if lead_s and late_s > 0:
        for each in alive:
            each.kill()
        raise TimeoutError(f"the tools were imported {late_s:.0f} s too late for the faults to come")
    time.sleep(max(0.0, -late_s))
    with busy(load):
        _begin(jobs, running)
        return simulation, _collect(jobs, running, peers)


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes that compute without pause, at the priority that a trainer has."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: sum(range(10**6))"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def _begin(jobs: list[Job], running: list[subprocess.Popen[str] | None]) -> None:
    for job, waiting in zip(jobs, running, strict=True):
        if waiting:
            send(waiting, job.delay_s)


def _collect(
    jobs: list[Job], running: list[subprocess.Popen[str] | None], peers: dict[str, Peer]
) -> list[dict[str, Any]]:
    results = []
    for job, process in zip(jobs, running, strict=True):
        if process is None:
            results.append({"error": peer_of(job.tool, peers).missing})
            continue
        try:
            results.append(result_of(process, job.options.get("seconds", 0.0) + job.delay_s + 120))
        except subprocess.TimeoutExpired:
            process.kill()
            results.append({"error": "did not end"})
    return results


def await_line(process: subprocess.Popen[str], word: str) -> str:
    """The rest of the first line that begins with the word; tools print as well."""
    assert process.stdout
    for line in process.stdout:
        if line.startswith(word):
            return line.removeprefix(word).strip()
    return ""


def send(process: subprocess.Popen[str], delay_s: float) -> None:
    assert process.stdin
    process.stdin.write(f"{delay_s}\n")
    process.stdin.flush()


def result_of(process: subprocess.Popen[str], timeout_s: float) -> dict[str, Any]:
    output, _ = process.communicate(timeout=timeout_s)
    for line in output.splitlines():
        if line.startswith("RESULT "):
            result: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
            return result
    return {"error": f"ended without a result, exit status {process.returncode}"}


def library_folder(cache: Path) -> Path:
    return build(cache / "nvml_sim")
