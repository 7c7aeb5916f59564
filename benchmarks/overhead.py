"""What Ray and the meter cost: `hoofprint run` against the same loop under torchrun with no meter, alternating.

    python benchmarks/overhead.py [--repeats 3] [--steps 60] [--autogroup -15]

Both train the laptop experiment from the same spec with two workers of one thread each; tokens/s are batch tokens over
the median step time after a warm-up. The two take turns, and each turn gives one ratio, because what else the machine
does changes from minute to minute. On a machine that others use, `--autogroup` (Linux, as root) gives both systems the
same priority over them. The result is written to benchmarks/results/overhead.json.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from report import machine, write_result

from orchestrator.launch import CPU_RANK_ENVIRONMENT

ROOT = Path(__file__).parents[1]
WARM_UP_STEPS = 10
PRIORITY = "HOOFPRINT_BENCHMARK_AUTOGROUP"


def tokens_per_s(run: Path, batch_tokens: int) -> float:
    lines = [json.loads(line) for line in (run / "metrics" / "rank-0.jsonl").read_text().splitlines() if line.strip()]
    seconds = [line["seconds"] for line in lines if line["event"] == "step" and line["step"] > WARM_UP_STEPS]
    return batch_tokens / statistics.median(seconds)


def raise_session(priority: str) -> None:
    """Linux weighs sessions, not processes, against each other: niceness alone acts within one."""
    if priority:
        Path("/proc/self/autogroup").write_text(priority)


def rank_main(spec: str, run: str, overrides: list[str]) -> None:
    """One rank under torchrun: the same worker, no Ray, no meter."""
    import torch
    import torch.distributed as dist

    from orchestrator.corpus import prepare_corpus
    from orchestrator.spec_file import load_experiment
    from orchestrator.worker import Job, run_rank

    raise_session(os.environ.get(PRIORITY, ""))  # torchrun gives each rank a session of its own
    experiment = load_experiment(Path(spec), overrides)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // experiment.cluster.workers))
    dist.init_process_group("gloo")
    corpus = prepare_corpus(experiment, lambda done, total, text: None)
    run_rank(Job(run, str(corpus.path), experiment.model_dump(mode="json"), time.time()))
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--autogroup", default="", help="priority of both systems' sessions, -20 to 19")
    arguments = parser.parse_args()
    raise_session(arguments.autogroup)
    work = ROOT / "runs" / "bench-overhead"
    shutil.rmtree(work, ignore_errors=True)
    spec, batch = ROOT / "experiments" / "laptop.yaml", 8192
    never = "1000000"
    overrides = [
        f"training.tokens={arguments.steps * batch}",
        f"training.evaluate_every_steps={never}",
        f"training.checkpoint_every_steps={never}",
        "cluster.device=cpu",
    ]
    sets = [part for override in overrides for part in ("--set", override)]
    rates: dict[str, list[float]] = {"torchrun": [], "hoofprint": []}
    for repeat in range(arguments.repeats):
        for system in sorted(rates, reverse=repeat % 2 == 0):
            run = work / f"{system}-{repeat}"
            if system == "torchrun":
                command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
                command += [__file__, "--as-rank", str(spec), str(run), *overrides]
            else:
                command = [sys.executable, "-c", "from orchestrator.cli import main; main()", "run", str(spec)]
                command += ["--runs", str(work), "--name", run.name, "-q", *sets]
            environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), PRIORITY: arguments.autogroup}
            environment |= CPU_RANK_ENVIRONMENT  # what speeds up our ranks must speed up torchrun's as well
            subprocess.run(command, check=True, cwd=ROOT, env=environment)
            rates[system].append(tokens_per_s(run, batch))
            print(f"{system}: {rates[system][-1]:,.0f} tokens/s", flush=True)
    ratios = [ours / theirs for ours, theirs in zip(rates["hoofprint"], rates["torchrun"], strict=True)]
    medians = {system: statistics.median(values) for system, values in rates.items()}
    write_result(
        "overhead",
        {
            "what": "training tokens/s of the laptop experiment, 2 CPU workers, median step after warm-up",
            "machine": machine(),
            "steps": arguments.steps,
            "autogroup_priority": arguments.autogroup or None,
            "tokens_per_s": rates,
            "median_tokens_per_s": medians,
            "spread_tokens_per_s": {system: [min(values), max(values)] for system, values in rates.items()},
            "ratio_of_each_turn": ratios,
            "ratio_hoofprint_to_torchrun": statistics.median(ratios),
            "target_ratio": 0.97,
        },
    )


if __name__ == "__main__":
    if "--as-rank" in sys.argv:
        _, _, spec_path, run_path, *given = sys.argv
        rank_main(spec_path, run_path, given)
    else:
        main()
