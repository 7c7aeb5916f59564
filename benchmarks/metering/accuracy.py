"""How far each tool's energy is from the truth, over traces and faults."""

from __future__ import annotations

import math
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import Job, Simulation, run_jobs, uuid
from peers import Peer

WINDOW_S = 30.0
TOOLS = ("hoofprint", "codecarbon", "zeus", "carbontracker")
LEAD_S = 40.0  # simulated second at which metering begins, where a fault is to come in its window
FAULT_AFTER_S = (7.0, 23.0)  # a fault comes at a random moment so long after
FAULTS_AT_ONCE = 3  # so many simulations with all tools beside each other: their imports are heavy

TRACES = {
    "constant": "trace=constant power=300",
    "square 0.35 s": "trace=square low=100 high=400 period=0.35",
    "bursts": "trace=bursts low=80 high=400 on=0.15 off=0.25",
    "ramp": "trace=ramp low=60 high=400 period=13",
    "training steps": "trace=steps low=80 mid=250 high=400 step=0.7 every=12 dip=3",
}
SLOW_TRACES = {
    "square 1 s": "trace=square low=100 high=400 period=1",
    "training steps 2 s": "trace=steps low=80 mid=250 high=400 step=2 optimizer=0.25 every=5 dip=3",
}


@dataclass
class Measured:
    """One tool's result of one draw: errors in % of the truth, of the total and of the worst device."""

    tool: str
    total: float | None
    worst: float | None
    inside: bool | None
    result: dict[str, Any]

    def text(self) -> str:
        if self.total is None:
            return str(self.result.get("error", "no result"))
        return f"{self.worst if self.worst is not None else self.total:+.2f} %"


def with_draws(trace: str, gpus: int, more: str = "", seed: int = 0) -> str:
    """Configuration of GPUs with this trace, each with its own phase and its sensors' own offsets."""
    draw = random.Random(f"{trace} {gpus} {seed}")
    lines = []
    for number in range(gpus):
        offsets = f"counter_offset={draw.uniform(0, 0.1):.4f} offset={draw.uniform(0, 0.1):.4f}"
        own = f"phase={draw.uniform(0, 10):.3f} seed={draw.randrange(1000)} {offsets}"
        lines.append(f"gpu uuid={uuid(number + 1)} {trace} {own} {more}")
    return "\n".join(lines) + "\n"


def judge(
    tool: str, simulation: Simulation, result: dict[str, Any], true_j: dict[str, float] | None = None
) -> Measured:
    """Against the truth of exactly the window in which the tool says that it measured, or a truth that is given."""
    if "joules" not in result:
        return Measured(tool, None, None, None, result)
    truth = true_j or simulation.true_j(result["start"], result["end"])
    total_j = sum(truth.values())
    result["true_j"], result["true_by_device"] = total_j, truth
    # Zeus counts from 0, hoofprint says UUIDs
    keys = {str(number): gpu.uuid for number, gpu in enumerate(simulation.gpus)} | {u: u for u in truth}
    errors = [
        100 * ((joules or 0.0) / truth[keys[key]] - 1)
        for key, joules in result.get("devices", {}).items()
        if keys.get(key) in truth
    ]
    inside = None
    if "intervals" in result:
        bounds = {key: pair for key, pair in result["intervals"].items() if key in truth}
        inside = all(low is not None and low <= truth[key] <= high for key, (low, high) in bounds.items())
    worst = max(errors, key=abs) if errors else None
    return Measured(tool, 100 * (result["joules"] / total_j - 1), worst, inside, result)


def windows(
    gpus: str, tools: tuple[str, ...], draws: int, peers: dict[str, Peer], work: Path, library: Path, load: int = 0
) -> dict[str, list[Measured]]:
    """Every tool, several times at once, each beginning at its own moment, beside `load` busy processes."""
    draw = random.Random(gpus)
    jobs = [
        Job(tool, {"mode": "window", "seconds": WINDOW_S}, delay_s=draw.uniform(0, 3))
        for tool in tools
        for _ in range(draws)
    ]
    simulation, results = run_jobs(gpus, jobs, peers, work, library, load=load)
    measured: dict[str, list[Measured]] = {tool: [] for tool in tools}
    for job, result in zip(jobs, results, strict=True):
        measured[job.tool].append(judge(job.tool, simulation, result))
    return measured


def faults(draw: random.Random, reload: bool, peers: dict[str, Peer], work: Path, library: Path) -> dict[str, Measured]:
    """All tools over a window in which two GPUs' driver is reloaded, or one of them lost, at a random moment."""
    fault_s = LEAD_S + draw.uniform(*FAULT_AFTER_S)
    lines = []
    for number in (1, 2):
        fault = f"reset={fault_s!r}" if reload else f"lost={fault_s!r}" if number == 2 else ""
        offsets = f"counter_offset={draw.uniform(0, 0.1):.4f} offset={draw.uniform(0, 0.1):.4f}"
        lines.append(
            f"gpu uuid={uuid(number)} {TRACES['training steps']} phase={draw.uniform(0, 10):.3f} {offsets} {fault}\n"
        )
    jobs = [Job(tool, {"mode": "window", "seconds": WINDOW_S}, delay_s=draw.uniform(0, 1)) for tool in TOOLS]
    simulation, results = run_jobs("".join(lines), jobs, peers, work, library, lead_s=LEAD_S)
    measured = {}
    for job, result in zip(jobs, results, strict=True):
        result["fault_s"] = fault_s
        measured[job.tool] = judge(job.tool, simulation, result, known_j(simulation, result))
        # of the total: a lost device's own figure is small, and nobody asks for it alone
        measured[job.tool].worst = None
    return measured


def many_faults(
    name: str, reload: bool, times: int, peers: dict[str, Peer], work: Path, library: Path
) -> list[dict[str, Measured]]:
    """Every time with another moment, and other phases and offsets of the sensors: the same for all tools."""

    def one(number: int) -> dict[str, Measured]:
        return faults(random.Random(f"{name} {number}"), reload, peers, work / str(number), library)

    with ThreadPoolExecutor(FAULTS_AT_ONCE) as pool:
        return list(pool.map(one, range(times)))


def known_j(simulation: Simulation, result: dict[str, Any]) -> dict[str, float]:
    """What could be known: of a GPU that is lost at some time, up to the last update of its counter before that."""
    if "start" not in result:
        return {}
    start, end = (result[key] - simulation.epoch_s for key in ("start", "end"))
    known = {}
    for gpu in simulation.gpus:
        lost_s, period_s, offset_s = gpu.spans["lost"][0], gpu.config["counter_period"], gpu.config["counter_offset"]
        told_s = math.inf if math.isinf(lost_s) else offset_s + math.floor((lost_s - offset_s) / period_s) * period_s
        known[gpu.uuid] = gpu.energy_j(start, min(end, told_s))
    return known


def with_uuids(peers: dict[str, Peer], work: Path, library: Path) -> dict[str, Measured]:
    """CUDA_VISIBLE_DEVICES names two of three GPUs by UUID: the truth is theirs."""
    gpus = "".join(f"gpu uuid={uuid(n)} power={100 * n}\n" for n in (1, 2, 3))
    visible = [uuid(3), uuid(1)]
    jobs = [Job(tool, {"mode": "window", "seconds": 10.0}) for tool in TOOLS]
    simulation, results = run_jobs(gpus, jobs, peers, work, library, CUDA_VISIBLE_DEVICES=",".join(visible))
    measured = {}
    for job, result in zip(jobs, results, strict=True):
        truth = None
        if "start" in result:
            truth = {key: j for key, j in simulation.true_j(result["start"], result["end"]).items() if key in visible}
        measured[job.tool] = judge(job.tool, simulation, result, truth)
    return measured
