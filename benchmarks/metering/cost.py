"""What each tool costs while it only meters: CPU, memory, and how long until it has a first reading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accuracy import TRACES, with_draws
from harness import Job, run_jobs
from peers import Peer

TOOLS = ("hoofprint", "codecarbon", "zeus", "zeus_power", "carbontracker")
WARM_UP_S = 15.0  # some tools import and look around in the background after their start


def steady(
    tool: str, seconds: float, peers: dict[str, Peer], work: Path, library: Path, options: dict[str, Any] | None = None
) -> dict[str, Any]:
    """One tool alone at its defaults, on 8 GPUs, ours with its ledger on."""
    job = Job(tool, {"mode": "steady", "seconds": seconds, "warm_up": WARM_UP_S, "ledger": True, **(options or {})})
    _, [result] = run_jobs(with_draws(TRACES["training steps"], 8), [job], peers, work, library)
    return result
