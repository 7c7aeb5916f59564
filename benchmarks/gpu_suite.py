"""Everything that needs a GPU, in one command and one JSON, within 9 minutes on one GPU.

    python benchmarks/gpu_suite.py [--wheels DIR] [--output FILE] [--minutes 9] [--only PART,...]
    python benchmarks/gpu_suite.py --tiny --device cpu       # whether it runs at all; its figures mean nothing

Needs a torch from 2.11 on, numpy and Python 3.11 or later; no Ray and no internet. Peers come from the environment or
from wheels in a folder, all of which are installed without their dependencies into .cache/gpu-peers; what is missing is
said in the result. Each part is a process of its own with a limit of time, and keeps what it found when it is cut
short; while one works on the GPU, the next imports its libraries. --help names the parts, in their order, and the
wheels. Where no --output is given, a whole run on a GPU writes to benchmarks/results/gpu.json, and any other to
.cache/gpu-suite/gpu.json."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]

from benchmarks.gpu.compare import markdown, summary  # noqa: E402
from benchmarks.gpu.process import PartProcess  # noqa: E402
from benchmarks.report import RESULTS, machine  # noqa: E402
from benchmarks.training.systems import HOW, Case  # noqa: E402
from model.config import LlamaConfig  # noqa: E402
from model.memory import GB, Batch, Compute, memory_gb  # noqa: E402
from model.sharding import Layout  # noqa: E402

CACHE = ROOT / ".cache"
LOGS = CACHE / "gpu-suite"
LEAST_S = 15.0  # with less time left than that no part is started
LAYERS = 32
# What the environment may lack, with all that each requires but torch and numpy and what these bring.
WHEELS = {
    "torchtitan's Llama": "torchtitan spmd_types tyro docstring-parser typeguard",
    "torchtitan 0.2.2 (the one for torch 2.11), beside these": "torchdata datasets dill multiprocess xxhash pyarrow "
    "pandas python-dateutil six requests urllib3 certifi charset-normalizer idna tensorboard tensorboard-data-server "
    "absl-py grpcio markdown protobuf werkzeug pillow einops tomli",
    "float8": "torchao",
    "energy": "nvidia-ml-py",
    "transformers": "transformers tokenizers huggingface_hub hf-xet httpx2 httpcore2 h11 idna truststore anyio click "
    "typer rich pygments markdown-it-py mdurl shellingham annotated-doc pydantic pydantic-core annotated-types "
    "typing-inspection safetensors regex pyyaml packaging tqdm filelock fsspec",
    "the tests in gpu_tests/": "pytest pluggy iniconfig packaging pygments",
}
# What peers take beside master weights and moments, of what we take there (results/gpu.json: transformers).
PEERS_TAKE = 1.25
USABLE = 0.9  # the rest: the driver's context, libraries, fragmentation
# What each part takes on an H200, the most wanted first: together less than 9 minutes, and not less than in
# results/gpu.json.
EXPECTED_S = {
    "ceiling": 15,
    "training hoofprint": 50,
    "training torchtitan": 45,
    "training transformers": 80,
    "training transformers by layer": 50,
    "training hoofprint again": 35,
    "training float8": 35,
    "metering": 30,
    "generation": 40,
    "training selective": 28,
    "attention": 28,
    "training full": 42,
    "checks": 60,
}
PATIENCE = 2  # times that, a part is cut short


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large everything is."""

    dim: int
    n_heads: int
    vocab_size: int
    lengths: tuple[int, ...]
    tokens: int  # of a step
    square: int  # of a product that shows the ceiling
    batches: tuple[int, ...]  # of generation
    prompt: int
    new: int
    seconds: float  # of a measurement


FULL = Scale(4096, 32, 32000, (2048, 4096), 32768, 8192, (1, 16), 512, 64, 3.0)
TINY = Scale(64, 4, 256, (32, 64), 128, 64, (1, 3), 8, 6, 0.05)


def model(scale: Scale, layers: int, length: int) -> LlamaConfig:
    return LlamaConfig(
        dim=scale.dim, n_layers=layers, n_heads=scale.n_heads, vocab_size=scale.vocab_size, sequence_length=length
    )


def needed_gb(scale: Scale, layers: int, checkpointing: str) -> float:
    """What a step takes: without checkpointing of ours and of the peers, else of ours, which has no peers there."""
    config = model(scale, layers, max(scale.lengths))
    ours = memory_gb(config, Layout(), Batch(scale.tokens, 1), checkpointing, Compute())
    state_gb = ours["parameters"] + ours["optimizer"]
    return state_gb + (PEERS_TAKE if checkpointing == "none" else 1) * (ours["total"] - state_gb)


def fitting_layers(scale: Scale, memory_bytes: float, checkpointing: str) -> int:
    """The most layers, in fours, whose training fits into the device; at least one."""
    usable_gb = USABLE * memory_bytes / GB
    numbers = (*range(LAYERS, 0, -4), 2)
    return next((layers for layers in numbers if needed_gb(scale, layers, checkpointing) <= usable_gb), 1)


def full_layers(scale: Scale, memory_bytes: float) -> tuple[int, str]:
    """Layers with full checkpointing, and in words of how many and why not all."""
    if scale is TINY:
        return 2, f"2 of {LAYERS}, of a tiny model"
    fits = fitting_layers(scale, memory_bytes, "full")
    if fits == LAYERS:
        return fits, f"{fits} of {LAYERS}, the whole model"
    needed, usable, there = needed_gb(scale, LAYERS, "full"), USABLE * memory_bytes / GB, memory_bytes / GB
    return fits, (
        f"{fits} of {LAYERS}; the whole model takes {needed:.0f} GB and does not fit into the {usable:.0f} GB that "
        f"can be used of {there:.0f}"
    )


def parts(scale: Scale, layers: int, full: int, device: str) -> dict[str, tuple[float, dict[str, Any]]]:
    """{name: (limit in s, what `benchmarks.gpu.part` takes)}, in the order of `EXPECTED_S`.

    layers: without checkpointing and with a selective one. full: with a full one.

    A GPU at its limit of power may be faster while it is cool: ours, which comes first, has a second turn after the
    peers, at all lengths.
    """
    lengths, longest = list(scale.lengths), max(scale.lengths)
    case = Case(
        config=model(scale, layers, longest), sequences=scale.tokens // longest, dtype="bfloat16", device=device
    )
    whole = model(scale, LAYERS if device == "cuda" else layers, longest)  # fits where nothing is trained
    compiled = "_compiled" if device == "cuda" else ""

    def train(system: str, only: list[int] | None = None, **changed: Any) -> dict[str, Any]:
        given = dataclasses.replace(case, **changed).as_json()
        name = system + compiled
        seconds = 1.5 * scale.seconds
        return {"part": "training", "system": name, "case": given, "lengths": only or lengths, "seconds": seconds}

    def kernels(part: str, seconds: float, **more: Any) -> dict[str, Any]:
        return {"part": part, "case": case.as_json(), "seconds": seconds, **more}

    generation = {
        "part": "generation",
        "case": dataclasses.replace(case, config=whole, sequences=1).as_json(),
        "batches": list(scale.batches),
        "prompt": scale.prompt,
        "new": scale.new,
        "seconds": scale.seconds,
    }
    documents = {"lengths": lengths, "document": longest // 8}
    tasks = {
        "ceiling": kernels("ceiling", scale.seconds / 4, square=scale.square),
        "training hoofprint": train("hoofprint"),
        "training torchtitan": train("torchtitan"),
        "training transformers": train("transformers"),
        "training transformers by layer": train("transformers_by_layer"),
        "training hoofprint again": train("hoofprint"),
        "training float8": train("hoofprint", lengths[:1], float8=True),
        "metering": {"part": "metering", "gpu": 0, "seconds": scale.seconds, "gpus": "visible"},
        "generation": generation,
        "training selective": train("hoofprint", [longest], checkpointing="selective"),
        "attention": kernels("attention", scale.seconds / 20, **documents),
        "training full": train("hoofprint", [longest], config=model(scale, full, longest), checkpointing="full"),
        "checks": {"part": "checks"},
    }
    return {name: (PATIENCE * expected_s, tasks[name]) for name, expected_s in EXPECTED_S.items()}


def unreached(why: str) -> dict[str, Any]:
    return {"found": {}, "error": why, "seconds": 0.0}


def install(wheels: Path | None) -> tuple[Path | None, str | None]:
    """The folder of the peers that came as wheels, and why there is none."""
    if wheels is None:
        return None, None
    files = sorted(str(file) for file in wheels.glob("*.whl"))
    if not files:
        return None, f"{wheels} holds no wheels"
    folder = CACHE / "gpu-peers"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    done = subprocess.run([*command, "--upgrade", "--target", str(folder), *files], capture_output=True, text=True)
    said = done.stderr.strip().splitlines()
    return folder, f"pip: {said[-1][:300]}" if done.returncode and said else None


def main() -> None:
    names = list(EXPECTED_S)
    wrapped = functools.partial(textwrap.fill, width=118, subsequent_indent="    ", break_on_hyphens=False)
    wheels = (wrapped(f"{what}: {each}") for what, each in WHEELS.items())
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="\n".join((wrapped(f"Parts: {', '.join(names)}."), "", "Wheels:", *wheels)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--wheels", type=Path, help="a folder of wheels of peers")
    parser.add_argument("--output", type=Path, help="the JSON file; a table for people is written beside it")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--only", default=",".join(names), help="parts, with commas between")
    parser.add_argument("--layers", type=int, help=f"without full checkpointing; default: what fits, at most {LAYERS}")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small sizes")
    options = parser.parse_args()
    wanted = [name.strip() for name in options.only.split(",")]
    if odd := [name for name in wanted if name not in names]:
        parser.error(f"--only {', '.join(odd)}: expected some of {', '.join(names)}")
    whole = options.device == "cuda" and not options.tiny and options.layers is None and set(wanted) == set(names)
    output: Path = options.output or (RESULTS if whole else LOGS) / "gpu.json"
    began_s = time.monotonic()
    # One device: the meter counts those that are visible.
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    packages, fault = install(options.wheels)

    def start(name: str, task: dict[str, Any]) -> PartProcess:
        return PartProcess(task, LOGS / f"{name.replace(' ', '-')}.log", packages, CACHE / "inductor")

    told = start("about", {"part": "about", "device": options.device}).run(120.0)
    about = told["found"].get("about")
    if about is None:
        raise SystemExit(f"{options.device}: {told['error']}")
    scale = TINY if options.tiny else FULL
    memory_bytes = about.get("memory_bytes", 16e9)
    fits = 2 if options.tiny else fitting_layers(scale, memory_bytes, "none")
    full, why_full = full_layers(scale, memory_bytes)
    layers = options.layers or fits
    result: dict[str, Any] = {
        "what": "LLaMA-7B shapes on one GPU: training, generation, attention, products, sensors",
        "machine": machine() | about,
        "wheels": fault or (None if packages is None else sorted(file.name for file in options.wheels.glob("*.whl"))),
        "tiny": options.tiny,
        "how": HOW,
        "layers": layers,
        "why_layers": f"{layers} of {LAYERS}: "
        + ("as asked" if options.layers else "what fits beside master weights and moments, without checkpointing"),
        "why_full_layers": why_full,
        "parts": {},
    }
    chosen = [(name, *part) for name, part in parts(scale, layers, full, options.device).items() if name in wanted]
    result["parts"] = {name: unreached("the suite was ended before it came to it") for name, _, _ in chosen}
    ahead = start(chosen[0][0], chosen[0][2])
    for at, (name, limit_s, _) in enumerate(chosen):
        part, left_s = ahead, options.minutes * 60 - (time.monotonic() - began_s)
        following = chosen[at + 1] if at + 1 < len(chosen) and left_s >= LEAST_S else None
        if following and name != "metering":  # which times calls of microseconds: nothing else works beside it
            ahead, following = start(following[0], following[2]), None
        cell = part.run(min(limit_s, left_s)) if left_s >= LEAST_S else unreached("skipped: no time left")
        part.end()
        if following:
            ahead = start(following[0], following[2])
        result["parts"][name] = cell
        print(f"{time.monotonic() - began_s:5.0f} s  {name}: {cell['error'] or 'done'}", flush=True)
        result |= {"seconds": time.monotonic() - began_s, "summary": summary(result["parts"])}
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        output.with_suffix(".md").write_text(markdown(result), encoding="utf-8")
    print(f"{json.dumps(result.get('summary'), indent=2)}\n{output}")


if __name__ == "__main__":
    main()
