"""Training on the CPU: ours beside transformers and torchtitan, the limit that products set, memory, and two ranks.

    python benchmarks/training/run.py [--quick] [--only 10M,100M,memory,scaling]

Each system is a process of its own that waits while another works. They take short turns, in alternating order, so
that what else the machine does falls on all of them; each turn gives one ratio. All have the same threads and the same
C library settings (those of a hoofprint rank). Peak memory is that of one step in a fresh process with the C library
as it comes. torchtitan is installed into .cache/peers, transformers is a development dependency.
Written to benchmarks/results/training.json and training.md after each part, so that a run that is cut short leaves what
it has; on two cores about 50 minutes, at most 8 with --quick. With --only the other parts stay as they were,
if they are of the same machine, versions and settings.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]

from benchmarks.report import RESULTS, machine  # noqa: E402
from benchmarks.training.limit import LIMITS, product_flop  # noqa: E402
from benchmarks.training.peers import Peer, find_transformers, install_torchtitan  # noqa: E402
from benchmarks.training.process import Failed, Runner  # noqa: E402
from benchmarks.training.scaling import measure_scaling  # noqa: E402
from benchmarks.training.systems import HOW, SYSTEMS, Case  # noqa: E402
from benchmarks.training.table import markdown  # noqa: E402
from benchmarks.training.turns import compare, take_turns, turn_steps  # noqa: E402
from model.config import LlamaConfig  # noqa: E402
from model.memory import MOMENTS_BYTES  # noqa: E402
from model.sharding import MASTER_BYTES  # noqa: E402
from orchestrator.driver.launch import CPU_RANK_ENVIRONMENT  # noqa: E402

CACHE = ROOT / ".cache"
SIZES = {
    "10M": LlamaConfig(dim=256, n_layers=9, n_heads=4, vocab_size=4096, sequence_length=512),
    "100M": LlamaConfig(dim=768, n_layers=12, n_heads=12, vocab_size=8192, sequence_length=512),
}
DTYPES = ("float32", "bfloat16")
AT_ONCE = 3
MEMORY_TARGET = 0.8
STATE_BYTES = MASTER_BYTES * 2 + MOMENTS_BYTES  # of a parameter, in all systems: weight, gradient, two moments
PARTS = (*SIZES, "memory", "scaling")
HEAD = ("preset", "threads", "versions", "how", "cpu", "cores", "torch")  # what the page says once, of all its parts


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How much is measured. sequences: of a step, by size. turn_s: about what a turn of a system lasts. case_s: for the
    turns of one size and dtype. warm_up: steps, before one more that tells how many make a turn. memory, scaling:
    sizes, and sequences of a step (of a rank): the more, the less of the peak is state, which is the same for all
    systems, and the less of the step is communication, which there is once a step. total_s: after that nothing is begun
    any more, and what was left out says so."""

    systems: tuple[str, ...]
    sequences: dict[str, int]
    warm_up: int
    turn_s: float
    case_s: float
    least_turns: int
    most_turns: int
    memory: tuple[tuple[str, int], ...]
    memory_systems: tuple[str, ...]
    scaling: tuple[tuple[str, int], ...]
    scaling_s: float
    total_s: float


EAGER = tuple(name for name in SYSTEMS if not name.endswith("_compiled"))
QUICK = Preset(
    systems=("hoofprint", "transformers", "transformers_compiled", "torchtitan"),
    sequences={"10M": 4, "100M": 1},
    warm_up=1,
    turn_s=1.5,
    case_s=25.0,
    least_turns=3,
    most_turns=9,
    memory=(("100M", 1), ("100M", 4)),
    memory_systems=EAGER,
    scaling=(("10M", 4),),
    scaling_s=20.0,
    total_s=420.0,
)
FULL = Preset(
    systems=tuple(SYSTEMS),
    sequences={"10M": 8, "100M": 2},
    warm_up=2,
    turn_s=3.0,
    case_s=120.0,
    least_turns=5,
    most_turns=25,
    memory=(("10M", 8), ("100M", 2), ("100M", 4)),
    memory_systems=tuple(SYSTEMS),
    scaling=(("10M", 8), ("100M", 2), ("100M", 4)),
    scaling_s=60.0,
    total_s=3600.0,
)


def environment(kept: bool) -> dict[str, str]:
    settings = {"TORCHINDUCTOR_CACHE_DIR": str(CACHE / "inductor"), "TOKENIZERS_PARALLELISM": "false"}
    return settings | (CPU_RANK_ENVIRONMENT if kept else {})


class Bench:
    """What all parts of the benchmark share."""

    def __init__(self, preset: Preset, threads: int, work: Path) -> None:
        self.preset, self.threads, self.work = preset, threads, work
        self.peers: dict[str, Peer] = {
            "hoofprint": Peer(),
            "transformers": find_transformers(),
            "torchtitan": install_torchtitan(CACHE / "peers" / "torchtitan"),
        }

    def missing(self, system: str) -> str:
        return "" if system in LIMITS else self.peers[_package(system)].missing

    def runner(self, system: str, case: Case, name: str, threads: int, kept: bool) -> Runner:
        task = {"system": system, "case": case.as_json(), "threads": threads, "warm_up": self.preset.warm_up}
        packages = None if system in LIMITS else self.peers[_package(system)].folder
        return Runner(system, task, self.work / name / f"{system}.log", environment(kept), packages=packages)

    def speed(self, size: str, dtype: str) -> dict[str, Any]:
        """All systems and the products on one size in one dtype."""
        case = Case(config=SIZES[size], sequences=self.preset.sequences[size], dtype=dtype)  # type: ignore[arg-type]
        systems = [*self.preset.systems, *LIMITS]
        errors = {system: self.missing(system) for system in systems if self.missing(system)}
        with ExitStack() as at_end:
            runners = []
            for system in systems:
                if system not in errors:
                    runners.append(self.runner(system, case, f"{size}-{dtype}", self.threads, kept=True))
                    at_end.callback(runners[-1].end)
            ready = _ready(runners, errors)
            counts = {runner.name: turn_steps(runner, self.preset.turn_s) for runner in ready}
            seconds = take_turns(ready, counts, self.preset.case_s, self.preset.least_turns, self.preset.most_turns)
            losses = {runner.name: runner.about["losses"][0] for runner in ready if runner.name not in LIMITS}
        return {
            "params": case.config.params,
            "matmul_params": case.config.matmul_params,
            "dtype": dtype,
            "batch_tokens": case.tokens,
            "model_flop": case.flop,
            "product_flop": product_flop(case),
            "first_loss": losses,
            "steps_of_a_turn": counts,
            "errors": errors,
            **compare(case, seconds, errors),
        }

    def memory(self, size: str, sequences: int, dtype: str) -> dict[str, Any]:
        """Peak of a step of each system after the first ones. A thread each and three at a time: what a process holds
        does not depend on how fast it is."""
        case = Case(config=SIZES[size], sequences=sequences, dtype=dtype)  # type: ignore[arg-type]
        systems = self.preset.memory_systems
        errors = {system: self.missing(system) for system in systems if self.missing(system)}
        part = f"memory-{size}-{sequences}-{dtype}"
        found: dict[str, Any] = {}
        waiting = [system for system in systems if system not in errors]
        while waiting:
            some, waiting = waiting[:AT_ONCE], waiting[AT_ONCE:]
            with ExitStack() as at_end:
                runners = [self.runner(system, case, part, 1, kept=False) for system in some]
                for runner in runners:
                    at_end.callback(runner.end)
                for runner in _ready(runners, errors):
                    found[runner.name] = runner.ask("peak")[0]
        for cell in found.values():
            cell["step_bytes"] = cell["peak_bytes"] - cell["imported_bytes"]
            cell["beyond_state_bytes"] = cell["step_bytes"] - STATE_BYTES * case.config.params
        ours = found.get("hoofprint")
        ratios = {
            key: {name: ours[key] / cell[key] for name, cell in found.items() if not name.startswith("hoofprint")}
            for key in ("peak_bytes", "step_bytes", "beyond_state_bytes")
        } if ours else {}  # fmt: skip
        return {
            "dtype": dtype,
            "params": case.config.params,
            "batch_tokens": case.tokens,
            "bytes": found,
            "ratios": ratios,
            "errors": errors,
            "state_bytes": STATE_BYTES * case.config.params,
            "target": MEMORY_TARGET,
            "met": {name: ratio <= MEMORY_TARGET for name, ratio in ratios.get("peak_bytes", {}).items()},
        }


def _package(system: str) -> str:
    return system.removesuffix("_compiled")


def _ready(runners: Sequence[Runner], errors: dict[str, str]) -> list[Runner]:
    """Those that came up; why the others did not goes to `errors`. They start, and compile, at the same time."""
    ready = []
    for runner in runners:
        try:
            runner.await_ready()
            ready.append(runner)
        except Failed as error:
            errors[runner.name] = str(error)
            print(f"  {runner.name}: {error}", flush=True)
    return ready


def parse(text: str) -> list[str]:
    wanted = [part.strip() for part in text.split(",") if part.strip()]
    odd = [part for part in wanted if part not in PARTS]
    if odd:
        raise argparse.ArgumentTypeError(f"{', '.join(odd)}: expected some of {', '.join(PARTS)}")
    return wanted


def others(before: dict[str, Any], parts: Iterable[str], about: dict[str, Any]) -> dict[str, Any]:
    """Of an earlier result, what is not measured again; nothing of one that the page's head would not be true of."""
    kept: dict[str, Any] = {"speed": {}, "memory": {}, "scaling": {}, "left_out": [], "measured": {}}
    rest = set(PARTS) - set(parts)
    if not before or not rest:
        return kept
    then, now = before | before["machine"], about | about["machine"]
    if differ := [key for key in HEAD if then.get(key) != now[key]]:
        print(f"{', '.join(sorted(rest))}: dropped, they were measured with other {', '.join(differ)}", flush=True)
        return kept
    for part in rest:
        where = "speed" if part in SIZES else part
        cells = before.get(where, {})
        kept[where] |= {name: cell for name, cell in cells.items() if where == part or name.split()[0] == part}
        begins = f"{where}, " if where == part else f"{where}, {part} "
        kept["left_out"] += [text for text in before.get("left_out", []) if text.startswith(begins)]
        when = before.get("measured", {}).get(part, {"date": then["date"]})
        kept["measured"][part] = {"load_before": then.get("load_before")} | when
    return kept


def run(bench: Bench, parts: Iterable[str], result: dict[str, Any], keep: Callable[[dict[str, Any]], None]) -> None:
    """All that is wanted, in the order of the tables, until the time of the preset is used. `result`: of `others`. What
    there is goes to `keep` after each part."""
    parts, preset = list(parts), bench.preset
    result = result | {"measured": dict(result["measured"])}
    began_s = time.monotonic()

    def measure(part: str, name: str, work: Callable[[], dict[str, Any]]) -> None:
        used_s = time.monotonic() - began_s
        if used_s > preset.total_s:
            result["left_out"].append(f"{part}, {name}: no time left")
            return keep(result | {"met": targets_met(result)})
        print(f"{used_s:5.0f} s  {part}, {name}", flush=True)
        result["measured"].setdefault(name.split()[0] if part == "speed" else part, {"date": machine()["date"]})
        try:
            result[part][name] = work()
        except Failed as error:
            result["left_out"].append(f"{part}, {name}: {error}")
        keep(result | {"met": targets_met(result)})

    for size in (size for size in SIZES if size in parts):
        for dtype in DTYPES:
            measure("speed", f"{size} {dtype}", partial(bench.speed, size, dtype))
    for size, sequences in preset.scaling if "scaling" in parts else ():
        case = Case(config=SIZES[size], sequences=sequences, fsdp=True)
        folder = bench.work / f"scaling-{size}-{sequences}"
        work = partial(measure_scaling, case, folder, environment(kept=True), preset.scaling_s, preset.warm_up)
        measure("scaling", f"{size} float32, {case.tokens:,} tokens", work)
    for size, sequences in preset.memory if "memory" in parts else ():
        for dtype in DTYPES:
            name = f"{size} {dtype}, {sequences * SIZES[size].sequence_length:,} tokens"
            measure("memory", name, partial(bench.memory, size, sequences, dtype))
    print(f"{time.monotonic() - began_s:5.0f} s  done", flush=True)


def targets_met(result: dict[str, Any]) -> dict[str, bool | None]:
    """Every target by a name that says where; None: not all that it is judged by was measured."""
    met: dict[str, bool | None] = {}
    for part in ("speed", "scaling"):
        for name, cell in result[part].items():
            met |= {f"{name}: {key.removesuffix('_met')}": cell[key] for key in cell if key.endswith("_met")}
    for name, cell in result["memory"].items():
        met |= {f"{name}: memory beside {peer}": found for peer, found in cell["met"].items()}
    return met


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="at most 8 minutes on two cores")
    parser.add_argument("--only", type=parse, default=list(PARTS), help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    bench = Bench(QUICK if options.quick else FULL, options.threads, CACHE / "bench-training")
    about = {
        "what": "training step (forward, loss, backward, fused AdamW) on the CPU: tokens/s by turns, memory, two ranks",
        "machine": machine(),
        "threads": options.threads,
        "preset": "quick" if options.quick else "full",
        "versions": {name: peer.version or None for name, peer in bench.peers.items() if name != "hoofprint"},
        "missing": {name: peer.missing for name, peer in bench.peers.items() if peer.missing},
        "how": HOW,
    }
    RESULTS.mkdir(exist_ok=True)

    def keep(found: dict[str, Any]) -> None:
        (RESULTS / "training.json").write_text(json.dumps(about | found, indent=2) + "\n", encoding="utf-8")
        (RESULTS / "training.md").write_text(markdown(about | found), encoding="utf-8")

    written = RESULTS / "training.json"
    before = json.loads(written.read_text(encoding="utf-8")) if written.exists() else {}
    run(bench, options.only, others(before, options.only, about), keep)
    page = (RESULTS / "training.md").read_text(encoding="utf-8")
    print(f"\n{page}\nwrote training.json and training.md to {RESULTS.name}")


if __name__ == "__main__":
    main()
