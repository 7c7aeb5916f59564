"""A very small experiment on text that is made here, and ranks of it without Ray."""

import multiprocessing
import os
import random
import socket
import time
from collections.abc import Callable, Sequence
from functools import partialmethod
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import yaml

from energy.runs import RunFolder
from orchestrator.data.prepare import prepare_corpus
from orchestrator.ranks.worker import Job, run_rank
from orchestrator.spec.file import load_experiment

STEPS = 20


def write_spec(folder: Path, workers: int = 1, steps: int = STEPS) -> Path:
    """A spec, with its text beside it, of `steps` steps of 8 sequences of 32 tokens."""
    text = folder / "text"
    if not text.exists():
        text.mkdir(parents=True)
        draw = random.Random(1)
        words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(3, 7))) for _ in range(150)]
        for number in range(60):
            lines = [" ".join(draw.choices(words, weights=range(1, 151), k=12)) for _ in range(40)]
            (text / f"{number:02d}.txt").write_text("\n".join(lines), encoding="utf-8")
    spec = {
        "spec_version": 1,
        "name": "tiny",
        "model": {"dim": 32, "n_layers": 2, "n_heads": 2, "sequence_length": 32},
        "data": {
            "tokenizer": {"vocab_size": 400},
            "validation_fraction": 0.1,
            "cache": str(folder / "cache"),
            "sources": [{"name": "made", "kind": "text-folder", "path": str(text), "proportion": 1.0}],
        },
        "training": {
            "tokens": steps * 256,
            "batch_tokens": 256,
            "micro_batch_sequences": 2,
            "peak_lr": 0.003,
            "warmup_steps": 5,
            "evaluate_every_steps": 10,
            "evaluation_sequences": 7,
            "checkpoint_every_steps": 8,
        },
        "cluster": {"workers": workers, "device": "cpu"},
    }
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(spec), encoding="utf-8")
    return path


# A process that has imported torch and is copied from then on: a rank starts in a moment, and not in five seconds.
multiprocessing.set_forkserver_preload(["orchestrator.ranks.worker"])


def plain_rank(rank: int, world: int, port: int, job: Job) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // world))  # as under Ray: more would wait for each other
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    run_rank(job)
    dist.destroy_process_group()


def eager_rank(rank: int, world: int, port: int, job: Job) -> None:
    """A rank whose compiler only traces: `training.compile` as it is, in seconds and without a C++ compiler."""
    torch.nn.Module.compile = partialmethod(torch.nn.Module.compile, backend="eager")
    plain_rank(rank, world, port, job)


def train(
    spec: Path,
    run_dir: Path,
    world: int = 1,
    initial_weights: str | None = None,
    overrides: Sequence[str] = (),
    rank: Callable[[int, int, int, Job], None] = plain_rank,
    start: str = "forkserver",
    profile_steps: int = 0,
) -> RunFolder:
    """Trains the spec with `world` gloo processes into `run_dir`, without Ray and without a meter.

    start: "spawn" where the processes must have the limits and the environment that the test has set.
    """
    experiment = load_experiment(spec, overrides)
    corpus = prepare_corpus(experiment, lambda done, total, text: None)
    port = _free_port()
    plain = experiment.model_dump(mode="json")
    job = Job(str(run_dir), str(corpus.path), plain, time.time(), initial_weights, profile_steps)
    mp.start_processes(rank, (world, port, job), nprocs=world, start_method=start)
    return RunFolder(run_dir)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _in_group(rank: int, world: int, port: int, function: Callable[..., None], arguments: tuple) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    function(rank, *arguments)
    dist.destroy_process_group()


def spawn(function: Callable[..., None], world: int, *arguments: object) -> None:
    """Calls `function(rank, *arguments)` in `world` processes of a gloo group."""
    mp.start_processes(_in_group, (world, _free_port(), function, arguments), nprocs=world, start_method="forkserver")


def losses(run: RunFolder) -> dict[int, float]:
    """The loss of each step, as it was computed last."""
    return {step["step"]: step["loss"] for step in run.steps()}
