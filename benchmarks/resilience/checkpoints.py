"""For how long a step stands still for a checkpoint that is written beside the training, and for one that is not."""

from __future__ import annotations

import json
import os
import shutil
import socket
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from model.config import LlamaConfig
from model.init import init_weights
from model.optim import make_optimizer
from model.parallelize import make_mesh, parallelize
from model.sharding import Layout
from model.transformer import Llama
from orchestrator.checkpoints.state import TrainState
from orchestrator.checkpoints.writer import CheckpointWriter
from orchestrator.driver.launch import CPU_RANK_ENVIRONMENT

CONFIG = LlamaConfig(dim=640, n_layers=10, n_heads=10, vocab_size=8192, sequence_length=128)
RANKS = 2
ROUNDS = 9  # of a checkpoint of each way, in turns; the first of each way is told apart
STEPS_BETWEEN = 2
TARGET_SHARE = 0.1


def measure(work: Path, config: LlamaConfig = CONFIG, rounds: int = ROUNDS, start: str = "spawn") -> dict[str, Any]:
    """Stalls in s of both ways, each the longest of the ranks, and the share that one is of the other.

    start: how the ranks' processes come to be; only those that are spawned have the environment of a run's ranks.
    """
    os.environ |= CPU_RANK_ENVIRONMENT  # what the ranks of a run on CPUs have
    told = work / "told.json"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    mp.start_processes(_rank, (port, work, told, config, rounds), nprocs=RANKS, start_method=start)
    costs = json.loads(told.read_text())
    later = {way: costs[way][1:] for way in ("synchronous", "asynchronous")}
    stall_s = {way: statistics.median(each["blocked_s"] for each in some) for way, some in later.items()}
    share = stall_s["asynchronous"] / stall_s["synchronous"]
    shares = [a["blocked_s"] / s["blocked_s"] for a, s in zip(*reversed(later.values()), strict=True)]
    return {
        "what": f"{config.params / 1e6:.0f} M parameters and their optimizer on {RANKS} CPU ranks of one thread; "
        f"checkpoints of {later['synchronous'][0]['bytes'] / 1e6:.0f} MB on disk, the two ways in turns with "
        f"{STEPS_BETWEEN} steps between, the longer stall of the ranks; an asynchronous one waits for none before it",
        "rounds": rounds - 1,
        "median_stall_s": stall_s,
        "first_asynchronous_stall_s": costs["asynchronous"][0]["blocked_s"],
        "median_s_until_whole": {
            way: statistics.median(each["seconds"] for each in some) for way, some in later.items()
        },
        "step_s": {
            "alone": statistics.median(costs["alone_s"]),
            "beside_a_writer": statistics.median(costs["beside_s"]),
        },
        "share": share,
        "share_of_each_round": shares,
        "costs": costs,
        "target_share": TARGET_SHARE,
        "met": share <= TARGET_SHARE,
    }


def _rank(rank: int, port: int, work: Path, told: Path, config: LlamaConfig, rounds: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=RANKS)
    with torch.device("meta"):
        model = Llama(config)
    model = parallelize(model, make_mesh("cpu", Layout.of(RANKS)))
    model.to_empty(device="cpu")
    init_weights(model, 1)
    optimizer = make_optimizer(model, lr=1e-4)
    state = TrainState(model, optimizer, {"step": 0, "data": {"position": 0}})
    draw = torch.Generator().manual_seed(rank)
    batch = torch.randint(config.vocab_size, (1, config.sequence_length + 1), generator=draw)

    def step() -> float:
        began_s = time.perf_counter()
        model(batch[:, :-1], batch[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - began_s

    ways = {
        "synchronous": CheckpointWriter(work / "synchronous", asynchronous=False, keep_last=1),
        "asynchronous": CheckpointWriter(work / "asynchronous", asynchronous=True, keep_last=1),
    }
    costs: dict[str, list[Any]] = {way: [] for way in ways} | {"alone_s": [], "beside_s": []}
    step()
    for round_ in range(1, rounds + 1):
        for way in ways if round_ % 2 else reversed(ways):
            state.progress["step"] += 1
            costs["alone_s"] += [step() for _ in range(STEPS_BETWEEN)]
            dist.barrier()  # what the ranks wait for each other is no checkpoint's stall
            ways[way].save(state, state.progress["step"])
            if way == "asynchronous":
                costs["beside_s"].append(step())
            ways[way].finish()
            [cost] = ways[way].written()
            costs[way].append(cost | {"blocked_s": _longest(cost["blocked_s"])})
    if rank == 0:
        told.write_text(json.dumps(costs))
    dist.barrier()
    dist.destroy_process_group()
    if rank == 0:
        for way in ways:
            shutil.rmtree(work / way)


def _longest(seconds: float) -> float:
    longest = torch.tensor(seconds, dtype=torch.float64)
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    return longest.item()
