"""How well runs survive: kills, recovery, the stall of a checkpoint, many meters.

    python benchmarks/resilience/run.py [--only kills recovery checkpoints meters] [--kills 100] [--seed 1]
        [--first-run 0] [--minutes M] [--more] [--times 4] [--summarise]
        [--output NAME]

Writes benchmarks/results/resilience.json and resilience.md after each part, and after each run of `kills`; with --only
the other parts stay as they were. All of it takes about an hour on two cores, which should have nothing else to do for
`recovery`, `checkpoints` and `meters`. --summarise measures nothing: it counts and judges the stored runs of `kills`
anew and writes both files. A run of `kills` that was not as it should be is repeated by its seed and number:
`--only kills --seed S --first-run N --kills 5 --output again`.

What the meters and Ray cost a training together is in benchmarks/overhead.py.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "shared"), str(ROOT / "tests" / "nvml_sim")]

from benchmarks.report import RESULTS, machine  # noqa: E402
from benchmarks.resilience import checkpoints, kills, meters, recovery  # noqa: E402
from benchmarks.resilience.table import OVERHEADS, markdown  # noqa: E402

STEPS = 800
Keep = Callable[[dict[str, Any]], None]  # writes what a part has so far
Part = Callable[[argparse.Namespace, Path, Keep], dict[str, Any]]


def _kills(options: argparse.Namespace, work: Path, keep: Keep) -> dict[str, Any]:
    reference = kills.uninterrupted(work, STEPS)
    before = _read(options).get("kills") if options.more else None
    if before and before["seed"] != options.seed:
        raise SystemExit(f"the runs of before have seed {before['seed']}: give --seed {before['seed']}")
    return kills.many(options.kills, options.seed, reference, work, options.first_run, options.minutes, before, keep)


def _read(options: argparse.Namespace) -> dict[str, Any]:
    file = RESULTS / f"{options.output}.json"
    return dict(json.loads(file.read_text())) if file.exists() else {}


def _write(result: dict[str, Any], file: Path) -> None:
    RESULTS.mkdir(exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    there = {name: RESULTS / f"{name}.json" for name in OVERHEADS if (RESULTS / f"{name}.json").exists()}
    overheads = {name: json.loads(path.read_text()) for name, path in there.items()}
    file.with_suffix(".md").write_text(markdown(result, overheads), encoding="utf-8")


PARTS: dict[str, Part] = {
    "kills": _kills,
    "recovery": lambda options, work, _: recovery.measure(work, options.times),
    "checkpoints": lambda _, work, __: checkpoints.measure(work),
    "meters": lambda _, work, __: meters.measure(work),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=math.inf, help="after which no run of `kills` is begun")
    parser.add_argument("--seed", type=int, default=1, help="of the kills")
    parser.add_argument("--first-run", type=int, default=0, help="number of the first run of `kills`")
    parser.add_argument("--more", action="store_true", help="go on from the `kills` that the output has, up to --kills")
    parser.add_argument("--times", type=int, default=4, help="recoveries")
    parser.add_argument("--summarise", action="store_true", help="measure nothing, judge the stored runs anew")
    parser.add_argument("--output", default="resilience", help="name of the files under benchmarks/results")
    options = parser.parse_args()
    file = RESULTS / f"{options.output}.json"
    result = _read(options)
    if options.summarise:
        if "kills" not in result:
            parser.error(f"--summarise: no run of kills is stored in benchmarks/results/{file.name}")
        _write(result | {"kills": kills.again(result["kills"])}, file)
        options.only = []
    for name in options.only:
        print(name, flush=True)
        work = Path(tempfile.mkdtemp(prefix=f"resilience-{name}-"))
        about = machine() | {"load_before": os.getloadavg()[0], "ray": importlib.metadata.version("ray")}

        def keep(part: dict[str, Any], name: str = name, about: dict[str, Any] = about) -> None:
            result[name] = {"machine": about, **part}
            _write(result, file)

        keep(PARTS[name](options, work, keep))
        if result[name]["met"]:
            shutil.rmtree(work, ignore_errors=True)
        else:
            print(f"the target of {name} is not met; its files: {work}")
    print(file.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
