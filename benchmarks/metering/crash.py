"""The energy of a run whose meter is killed at a random moment and started again: what is found on the disk."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from accuracy import TRACES, with_draws
from harness import Simulation, await_line, peer_of, result_of, send
from peers import Peer

AT_ONCE = 6


def one(tool: str, number: int, peers: dict[str, Peer], simulation: Simulation, work: Path) -> dict[str, Any]:
    """Session, kill -9, pause, session to its end, then what is saved, in % of the truth over the same time."""
    peer, draw = peer_of(tool, peers), random.Random(f"{tool} {number}")
    if peer.missing:
        return {"error": peer.missing}
    folder = work / f"{tool}-{number}"
    folder.mkdir(parents=True)
    options = {"tool": tool, "out": str(folder), "ledger": True, "mode": "session"}
    first = simulation.start(peer, {**options, "seconds": 600.0})
    await_line(first, "ready")
    send(first, draw.uniform(0.0, 8.0))  # those that run at once do not all begin at once
    began_s = float(await_line(first, "BEGIN"))
    time.sleep(draw.uniform(3.0, 20.0))
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    killed_s = time.time()
    time.sleep(draw.uniform(0.2, 4.0))
    second = simulation.start(peer, {**options, "seconds": draw.uniform(8.0, 12.0), "attempt": 2})
    await_line(second, "ready")
    send(second, 0)
    try:
        ended = result_of(second, 60)
    except subprocess.TimeoutExpired:
        second.kill()
        return {"error": "the second session did not end"}
    if "error" in ended:
        return ended
    reader = simulation.start(peer, {**options, "mode": "saved"})
    await_line(reader, "ready")
    send(reader, 0)
    saved = result_of(reader, 60)
    if "joules" not in saved:
        return saved
    # All alike: the time in which the tool was to meter, from the call that starts it to the one that ends it.
    wall_j = sum(simulation.true_j(began_s, ended["end"]).values())
    found = {
        "joules": saved["joules"],
        "wall_j": wall_j,
        "percent_of_wall": 100 * saved["joules"] / wall_j,
        "killed_after_s": killed_s - began_s,
        "gap": saved.get("gap"),
    }
    if "start" in saved:  # and where the tool states the start and end of what it measured, exactly those
        own_j = sum(simulation.true_j(saved["start"], saved["end"]).values())
        found |= {
            "own_j": own_j,
            "percent_of_own": 100 * saved["joules"] / own_j,
            "edges_s": [saved["start"] - began_s, saved["end"] - ended["end"]],
        }
    return found


def many(tool: str, times: int, peers: dict[str, Peer], work: Path, library: Path) -> list[dict[str, Any]]:
    simulation = Simulation(with_draws(TRACES["training steps"], 1), work / "simulation", library)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda number: one(tool, number, peers, simulation, work), range(times)))
