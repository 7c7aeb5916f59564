"""`--sweep key=range`: the same plan for every value of one key of the spec."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.plan.plan import CONTRACT, PlanOptions, make_plan
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.quantities import COUNT, quantity

MOST = 200
EXAMPLE = "expected key=a..b (doubling), key=a..b:step or key=x,y,z, for example cluster.workers=8..256"
_NEED_SOURCE = ("energy.intensity", "energy.pue", "energy.device_rated_power")
_PLAIN = re.compile(r"true|false|-?(0|[1-9][0-9]*)")  # keys that take no text with a unit want these as they are
_PLACE = re.compile(r"^.*?(:\d+:\d+: [\w.]+: | \(from --set or a default\): )")

Load = Callable[[Sequence[str]], Experiment]  # the spec with further `a.b=c` overrides


@dataclass(frozen=True)
class Sweep:
    """One key and the values that it takes, as text."""

    key: str
    values: list[str]


def parse_sweep(text: str) -> Sweep:
    """`cluster.workers=8..256` doubles, `..256:64` adds, commas list; ValueError says what was expected."""
    key, equals, values = (part.strip() for part in text.partition("="))
    if not key or not equals or not values:
        raise ValueError(f"--sweep {text}: {EXAMPLE}")
    if ".." not in values:
        listed = [value.strip() for value in values.split(",")]
        if not all(listed):
            raise ValueError(f"--sweep {text}: a value is empty; {EXAMPLE}")
        return Sweep(key, _few(text, listed))
    ends, colon, step_text = values.partition(":")
    if ends.count("..") != 1:
        raise ValueError(f"--sweep {text}: a range has two ends; {EXAMPLE}")
    try:
        first, last = (quantity(end.strip(), COUNT, "8") for end in ends.split(".."))
        step = quantity(step_text.strip(), COUNT, "8") if colon else None
    except ValueError as error:
        raise ValueError(f"--sweep {text}: {error}; {EXAMPLE}") from None
    if first <= 0 or last < first or (step is not None and step <= 0):
        raise ValueError(f"--sweep {text}: the range must rise from above 0 by a step above 0; {EXAMPLE}")
    if step is None:
        found = [first]
        while len(found) <= MOST and found[-1] * 2 <= last:
            found.append(found[-1] * 2)
        found += [last] if found[-1] < last else []
    else:
        # Not by adding up, which would drop the last value: 1.0 and six times 0.1 are more than 1.6.
        found = [first + i * step for i in range(math.floor(min(MOST, (last - first) / step * (1 + 1e-9))) + 1)]
    return Sweep(key, _few(text, [f"{value:.12g}" if value < 1e6 else str(round(value)) for value in found]))


def _few(text: str, values: list[str]) -> list[str]:
    if len(values) > MOST:
        raise ValueError(f"--sweep {text}: more than {MOST} values; take a larger step")
    return values


def run_sweep(
    load: Load, sweep: Sweep, runs_dir: Path | None = None, options: PlanOptions | None = None
) -> dict[str, Any]:
    """{key, rows}: each row has `value`, the plan's main keys, how far its throughput was measured, or `error`.

    A value that the spec refuses (a batch that does not divide over so many ranks) has its message in `error`; when
    every value is refused, that is the caller's mistake: ValueError.
    """
    rows: list[dict[str, Any]] = []
    first_error: ValueError | None = None
    for value in sweep.values:
        try:
            plan = make_plan(load(_overrides(sweep.key, value)), runs_dir, options)
        except ValueError as error:
            first_error = first_error or error
            rows.append({"value": value, "error": _first_line(str(error))})
            continue
        keys = (*CONTRACT, "tokens_per_s", "workers", "throughput_basis", "extrapolated", "low", "high", "cost")
        row = {"value": value, "error": None, **{key: plan[key] for key in keys}}
        failures, memory = plan["failures"], plan["memory"]
        row["checkpointing"] = memory["checkpointing"]
        row["lost_share"] = failures["lost_share"] if failures else None
        row["throughput"] = plan["sources"].get("tokens_per_s_per_gpu")
        rows.append(row)
    if first_error is not None and all(row["error"] for row in rows):
        raise ValueError(f"--sweep {sweep.key}: no value can be planned; the first: {first_error}") from None
    return {"key": sweep.key, "rows": rows}


def _overrides(key: str, value: str) -> list[str]:
    # Quoted, so that YAML reads neither NO (Norway) as false nor 1:30 as a number of seconds.
    found = [f"{key}={value if _PLAIN.fullmatch(value) else json.dumps(value)}"]
    if key in _NEED_SOURCE:
        found.append(f'{key}_source="--sweep"')
    if key in ("energy.grid", "energy.intensity"):
        # A series' mean would be planned with, whatever the value; a range is of the value that is replaced.
        found += ["energy.grid_series=null", "energy.intensity_range=null"]
    if key == "energy.pue":
        found.append("energy.pue_range=null")
    return found


def _first_line(message: str) -> str:
    """The fault without its place in the file, which holds the value that was replaced."""
    return _PLACE.sub("", message.strip().splitlines()[0])
