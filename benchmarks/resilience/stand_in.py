"""GPUs whose true energy is known (the NVML stand-in of tests/nvml_sim), for processes that meter them."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests" / "nvml_sim"), str(ROOT / "tests" / "shared")]

from build import build  # noqa: E402
from truth import Gpu, parse  # noqa: E402

from energy.accounting.account import account_run  # noqa: E402
from energy.ledger.readings import read_sessions  # noqa: E402
from energy.runs import RunFolder  # noqa: E402

# A load that changes within a reading, and at no rhythm that a reading could keep step with.
GPU = "gpu uuid=GPU-{node:08d}-0000-4000-8000-{gpu:012d} trace=bursts seed={seed} on=0.4 off=0.6 low=90 high=400"


class StandIn:
    """The GPUs of one node. `environment`: in which a process sees them; their time began when this was made."""

    def __init__(self, folder: Path, node: int, gpus: int, epoch_unix_s: float | None = None) -> None:
        self.epoch_unix_s = time.time() if epoch_unix_s is None else epoch_unix_s
        text = "\n".join(GPU.format(node=node, gpu=gpu, seed=100 * node + gpu) for gpu in range(1, gpus + 1)) + "\n"
        self.gpus: list[Gpu] = parse(text)
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / f"node-{node}.txt"
        config.write_text(text)
        self.environment = {
            "LD_LIBRARY_PATH": str(build(folder / "nvml_sim")),
            "NVML_SIM": str(config),
            "NVML_SIM_EPOCH": repr(self.epoch_unix_s),
        }

    def true_j(self, uuid: str, start_unix_s: float, end_unix_s: float) -> float | None:
        """Exact energy of a GPU between two moments; None where it is none of these."""
        for gpu in self.gpus:
            if gpu.uuid == uuid:
                return gpu.energy_j(start_unix_s - self.epoch_unix_s, end_unix_s - self.epoch_unix_s)
        return None


def clean_environment() -> dict[str, str]:
    """This process' own, without what would make a child join another Ray or see other GPUs."""
    left_out = ("RAY_", "NVML_SIM", "CUDA_VISIBLE_DEVICES")
    return {key: value for key, value in os.environ.items() if not key.startswith(left_out)}


def percent_of_truth(run: RunFolder, nodes: Sequence[StandIn]) -> dict[str, float]:
    """{uuid: what the account has in % of the truth}, over the time from the GPU's first reading to its last.

    What was not read in between (its meter was dead) is part of that time: a counter goes on.
    """
    spans: dict[str, list[tuple[float, float]]] = {}
    for path in run.ledgers():
        for session in read_sessions(path)[0]:
            for sensor in session.sensors:
                spans.setdefault(sensor["uuid"], []).append(session.span())
    found = {}
    for device in account_run(run).devices:
        if device.kind != "gpu":
            continue
        own = spans[device.uuid]
        start_s, end_s = min(start for start, _ in own), max(end for _, end in own)
        true_j = next((j for node in nodes if (j := node.true_j(device.uuid, start_s, end_s)) is not None), None)
        if true_j is None:
            raise ValueError(f"{run.path}: {device.uuid} is none of the stand-in's GPUs")
        found[device.uuid] = 100 * device.energy_j / true_j
    missing = {gpu.uuid for node in nodes for gpu in node.gpus} - set(found)
    return found | dict.fromkeys(missing, 0.0)
