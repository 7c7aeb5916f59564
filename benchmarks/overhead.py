"""What Ray and the meter cost: `hoofprint run` beside the same loop under torchrun with no meter, in short turns.

    python benchmarks/overhead.py [--turns 24] [--turn-s 12] [--checkpoints STEPS]

Both train the laptop experiment from the same spec with two workers of one thread each. They are started once, and then
take turns: while one works, every process of the other is stopped (SIGSTOP), Ray's own included. What else the machine
does changes by tens of per cent from minute to minute, which turns of seconds share and whole runs do not. Only steps
that lie wholly within a turn count, without those of its first seconds: timers that ran out while a system was stopped
all fire when it wakes, which no run would see. A rate is over all the time from the first of these steps to the last,
with the checkpoints that lie between them where `hoofprint run` is to write some; the ratio is that of the rates over
all turns, so that a checkpoint weighs as much as it costs, in however few turns there is one. The result is written to
benchmarks/results/overhead.json, or overhead_checkpoints_STEPS.json.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import psutil
from report import machine, write_result

from orchestrator.driver.launch import CPU_RANK_ENVIRONMENT

ROOT = Path(__file__).parents[1]
SPEC, BATCH_TOKENS = ROOT / "experiments" / "laptop.yaml", 8192
WARM_UP_STEPS = 10
START_LIMIT_S = 300.0
SETTLE_S = 2.0  # after waking
HELPERS_S = 30.0
RANK_TITLE = "ray::RayTrainWorker"
NEVER = 10**9
TARGET_RATIO = 0.97


def rank_main(spec: str, run: str, overrides: list[str]) -> None:
    """One rank under torchrun: the same worker, no Ray, no meter."""
    import torch
    import torch.distributed as dist

    from orchestrator.data.prepare import prepare_corpus
    from orchestrator.ranks.worker import Job, run_rank
    from orchestrator.spec.file import load_experiment

    experiment = load_experiment(Path(spec), overrides)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // experiment.cluster.workers))
    dist.init_process_group("gloo")
    corpus = prepare_corpus(experiment, lambda done, total, text: None)
    run_rank(Job(run, str(corpus.path), experiment.model_dump(mode="json"), time.time()))
    dist.destroy_process_group()


class Trainer:
    """One of the two systems: its processes, and the steps that it has written down."""

    def __init__(self, name: str, command: list[str], run: Path):
        self.name, self.metrics = name, run / "metrics" / "rank-0.jsonl"
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        environment |= CPU_RANK_ENVIRONMENT  # what speeds up our ranks must speed up torchrun's as well
        log = run.parent / f"{name}.log"
        self._log = log.open("w")
        self._process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=self._log, stderr=self._log)

    def steps(self) -> list[tuple[float, float]]:
        """(start, end) of each step, unix s."""
        if not self.metrics.exists():
            return []
        lines = [json.loads(line) for line in self.metrics.read_text().splitlines() if line.endswith("}")]
        return [(s["time_unix_s"] - s["seconds"], s["time_unix_s"]) for s in lines if s["event"] == "step"]

    def warm_up(self) -> None:
        until = time.time() + START_LIMIT_S
        while len(self.steps()) <= WARM_UP_STEPS:
            if self._process.poll() is not None or time.time() > until:
                raise RuntimeError(f"{self.name} did not start to train: see {self._log.name}")
            time.sleep(0.5)

    def send(self, sent: signal.Signals) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(self._process.pid)
            for process in [root, *root.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):  # a helper of Ray that ended meanwhile
                    process.send_signal(sent)

    def helpers_cores(self, seconds: float) -> float:
        """How much of a core everything but the ranks takes while it trains: Ray's processes, the meter, the driver."""
        self.send(signal.SIGCONT)
        time.sleep(SETTLE_S)
        before, start = self._helpers_cpu_s(), time.monotonic()
        time.sleep(seconds)
        after, passed_s = self._helpers_cpu_s(), time.monotonic() - start
        self.send(signal.SIGSTOP)
        return sum(after[pid] - before[pid] for pid in after.keys() & before.keys()) / passed_s

    def _helpers_cpu_s(self) -> dict[int, float]:
        found = {}
        root = psutil.Process(self._process.pid)
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                if not process.cmdline()[:1] == [RANK_TITLE]:
                    times = process.cpu_times()
                    found[process.pid] = times.user + times.system
        return found

    def end(self) -> None:
        self.send(signal.SIGCONT)
        self.send(signal.SIGKILL)
        self._process.wait()
        self._log.close()


@dataclasses.dataclass(frozen=True)
class Turn:
    """The whole steps of one system in one turn."""

    tokens: int
    seconds: float


def rate(turns: Iterable[Turn]) -> float:
    """Tokens/s over all of them."""
    turns = list(turns)
    return sum(turn.tokens for turn in turns) / sum(turn.seconds for turn in turns)


def ratio_interval(ours: list[Turn], theirs: list[Turn]) -> list[float]:
    """95 % interval of the ratio of the rates, by resampling pairs of turns with a fixed seed."""
    draw, pairs = random.Random(1), list(zip(ours, theirs, strict=True))
    ratios = []
    for _ in range(2000):
        some = draw.choices(pairs, k=len(pairs))
        ratios.append(rate(our for our, _ in some) / rate(their for _, their in some))
    ratios.sort()
    return [ratios[50], ratios[-51]]


def measure(trainers: list[Trainer], turns: int, turn_s: float) -> dict[str, list[Turn]]:
    """What each trainer did in each turn, a turn being one stretch of both."""
    stretches: dict[str, list[tuple[float, float]]] = {trainer.name: [] for trainer in trainers}
    for turn in range(turns):
        for trainer in trainers if turn % 2 else trainers[::-1]:
            start = time.time()
            trainer.send(signal.SIGCONT)
            time.sleep(turn_s)
            trainer.send(signal.SIGSTOP)
            stretches[trainer.name].append((start, time.time()))
        print(f"turn {turn + 1} of {turns}", flush=True)
    done: dict[str, list[Turn]] = {}
    for trainer in trainers:
        steps, done[trainer.name] = trainer.steps(), []
        for start, end in stretches[trainer.name]:
            whole = [(s, e) for s, e in steps if start + SETTLE_S <= s and e <= end]
            if not whole:
                raise RuntimeError(f"no whole step of {trainer.name} in a turn of {turn_s} s: lengthen --turn-s")
            done[trainer.name].append(Turn(BATCH_TOKENS * len(whole), whole[-1][1] - whole[0][0]))
    return done


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--turns", type=int, default=24)
    parser.add_argument("--turn-s", type=float, default=12.0)
    parser.add_argument("--checkpoints", type=int, metavar="STEPS", help="hoofprint run writes one so often")
    arguments = parser.parse_args()
    work = ROOT / "runs" / "bench-overhead"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    overrides = [f"training.tokens={NEVER // BATCH_TOKENS * BATCH_TOKENS}", "cluster.device=cpu"]
    overrides += [f"training.{key}_every_steps={NEVER}" for key in ("evaluate", "checkpoint")]
    sets = [part for override in overrides for part in ("--set", override)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", __file__]
    torchrun += ["--as-rank", str(SPEC), str(work / "torchrun"), *overrides]
    hoofprint = [sys.executable, "-c", "from orchestrator.cli import main; main()", "run", str(SPEC)]
    hoofprint += ["--runs", str(work), "--name", "hoofprint", "-q", *sets]
    if arguments.checkpoints:
        hoofprint += ["--set", f"training.checkpoint_every_steps={arguments.checkpoints}"]
    trainers: list[Trainer] = []
    try:
        for name, command in (("torchrun", torchrun), ("hoofprint", hoofprint)):
            trainers.append(Trainer(name, command, work / name))
            trainers[-1].warm_up()
            trainers[-1].send(signal.SIGSTOP)
        done = measure(trainers, arguments.turns, arguments.turn_s)
        helpers = trainers[-1].helpers_cores(HELPERS_S)
    finally:
        for trainer in trainers:
            trainer.end()
    rates = {system: [turn.tokens / turn.seconds for turn in turns] for system, turns in done.items()}
    ratio = rate(done["hoofprint"]) / rate(done["torchrun"])
    write_result(
        f"overhead_checkpoints_{arguments.checkpoints}" if arguments.checkpoints else "overhead",
        {
            "what": "training tokens/s of the laptop experiment, 2 CPU workers, in short turns of two running systems, "
            "each stopped while the other works; without start and end; with -q, so without the live view",
            "checkpoint_every_steps": arguments.checkpoints,
            "machine": machine(),
            "turn_s": arguments.turn_s,
            "settle_s": SETTLE_S,
            "turns": {system: [dataclasses.asdict(turn) for turn in turns] for system, turns in done.items()},
            "steps_counted": {system: sum(t.tokens for t in turns) // BATCH_TOKENS for system, turns in done.items()},
            "tokens_per_s": {system: rate(turns) for system, turns in done.items()},
            "spread_tokens_per_s": {system: [min(values), max(values)] for system, values in rates.items()},
            "ratio_hoofprint_to_torchrun": ratio,
            "ratio_95_interval": ratio_interval(done["hoofprint"], done["torchrun"]),
            "helpers_cores": helpers,
            "target_ratio": TARGET_RATIO,
            "met": ratio >= TARGET_RATIO,
        },
    )


if __name__ == "__main__":
    if "--as-rank" in sys.argv:
        _, _, spec_path, run_path, *given = sys.argv
        rank_main(spec_path, run_path, given)
    else:
        main()
