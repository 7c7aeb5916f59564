"""What own earlier runs say about a plan: tokens/s, watts and start-up time, read from their run folders.

A run counts when it has the same model shape (every size that enters the FLOP, the sequence length included) and
the same hardware: the accelerator that the spec names, or, where it names none, this machine.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from energy.factors import Accelerator, match_accelerator
from energy.run_version import require_known
from energy.runs import RunFolder, list_runs
from model.config import LlamaConfig
from orchestrator.plan.ranges import Range
from orchestrator.plan.throughput import MEASURED, SCALED, Throughput

SHAPE = ("dim", "n_layers", "n_heads", "n_kv_heads", "ffn_hidden", "vocab_size", "sequence_length")
FARTHEST = 4.0  # own runs of a model whose FLOP per token differ by more are not scaled


@dataclass(frozen=True)
class EarlierRun:
    """The figures of one run that a plan can use. `devices`: GPUs, or CPU packages where it ran on the CPU."""

    run_id: str
    device_type: str
    workers: int
    devices: int
    shape: dict[str, int]
    flop_per_token: float
    tokens_per_s: float  # of all devices together, in training steps
    power_w: float | None  # mean of one device over the whole run, all that was metered divided by the devices
    power_boundary: str
    power_method: str  # how the energy was come by (energy.boundaries.METHODS)
    startup_s: float  # of one attempt
    other_share: float  # evaluation, checkpoints and the like, per second of training step


@dataclass(frozen=True)
class Evidence:
    """The earlier runs a plan rests on, all of one kind of device."""

    runs: list[EarlierRun]
    same_shape: bool

    @property
    def device_type(self) -> str:
        return self.runs[-1].device_type

    def power_w(self) -> Range | None:
        """Mean watts of one device, with the spread over the runs."""
        seen = [run.power_w for run in self.runs if run.power_w is not None]
        return Range.around(statistics.median(seen), seen) if seen else None

    def power_method(self) -> str:
        """How those watts were come by: one of energy.boundaries.METHODS, `mixed` where the runs differ."""
        methods = {run.power_method for run in self.runs if run.power_w is not None}
        return methods.pop() if len(methods) == 1 else "mixed"

    def startup_s(self) -> float:
        return statistics.median(run.startup_s for run in self.runs)

    def other_share(self) -> float:
        return statistics.median(run.other_share for run in self.runs)

    def count(self) -> str:
        return f"{len(self.runs)} earlier run{'s' if len(self.runs) > 1 else ''}"

    def names(self, most: int = 3) -> str:
        shown = ", ".join(run.run_id for run in self.runs[-most:])
        return shown if len(self.runs) <= most else f"{shown} and {len(self.runs) - most} more"


def find_evidence(
    runs_dir: Path | None, config: LlamaConfig, workers: int, device: Accelerator | None, hostname: str, cpu: bool
) -> tuple[Evidence | None, list[str]]:
    """The runs of the same shape, else those of a near shape on the same hardware; and what was skipped, in words.

    `cpu`: the spec rules accelerators out. Without a named device only runs of this host count, and of these only
    the newest kind of device.
    """
    if runs_dir is None or not runs_dir.is_dir():
        return None, []
    found: list[EarlierRun] = []
    skipped: list[str] = []
    for folder in list_runs(runs_dir):
        try:
            run = _read(folder, device, hostname, cpu)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
            skipped.append(f"{folder.path.name}: its footprint cannot be used ({error})")
            continue
        if run is not None:
            found.append(run)
    if device is None and found:
        found = [run for run in found if run.device_type == found[-1].device_type]
    shape = {key: getattr(config, key) for key in SHAPE}
    same = [run for run in found if run.shape == shape]
    if same:
        # Of equal runs those on as many workers say most; the others only where there are none.
        exact = [run for run in same if run.workers == workers]
        return Evidence(exact or same, same_shape=True), skipped
    near = [r for r in found if 1 / FARTHEST <= r.flop_per_token / config.flop_per_token <= FARTHEST]
    return (Evidence(near, same_shape=False) if near else None), skipped


def _read(folder: RunFolder, device: Accelerator | None, hostname: str, cpu: bool) -> EarlierRun | None:
    """The figures of one run folder, or None when it is of other hardware, trained nothing, or had now more, now fewer
    workers."""
    path = folder.path / "footprint.json"
    if not path.exists():
        return None
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    require_known(folder.path, {path.name: record})
    compute, hardware, time, energy = (record[key] for key in ("compute", "hardware", "time", "energy"))
    device_type = hardware.get("device_type")
    if not compute.get("tokens_per_s") or device_type not in ("cpu", "cuda") or (cpu and device_type != "cpu"):
        return None
    if device is not None:
        names = [each["name"] for each in hardware["devices"] if each["kind"] == "gpu"]
        if device_type != "cuda" or not names or {match_accelerator(name) for name in names} != {device}:
            return None
    elif hostname not in (hardware.get("hosts") or []):
        return None
    device_hours, workers = float(time["device_hours"]), int(hardware["world_size"])
    attempts = record["run"].get("attempts") or []
    if {attempt.get("world_size", workers) for attempt in attempts} - {workers}:
        return None
    held_s = _held_s(attempts, time)
    # All attempts had as many: the mean that `compute` has, too, is this number.
    devices = compute.get("devices") or (workers if device_type == "cuda" else round(device_hours * 3600 / sum(held_s)))
    it_kwh = energy.get("energy_it_kwh")
    startup_s, step_s, other_s = _seconds(energy.get("phases") or [], held_s)
    tokens_per_s = float(compute["tokens_per_s"])
    if not (math.isfinite(tokens_per_s) and tokens_per_s > 0 and device_hours > 0):
        return None
    return EarlierRun(
        run_id=str(record["run"]["run_id"]),
        device_type=device_type,
        workers=workers,
        devices=max(1, int(devices)),
        shape={key: int(record["model"][key]) for key in SHAPE},
        flop_per_token=float(compute["flop_per_token"]),
        tokens_per_s=tokens_per_s,
        power_w=None if it_kwh is None else float(it_kwh) * 1000 / device_hours,
        power_boundary=str(energy.get("boundary") or "boundary not given"),
        power_method=str(((energy.get("quantities") or {}).get("energy_it_kwh") or {}).get("method") or "unknown"),
        startup_s=startup_s,
        other_share=other_s / step_s if step_s else 0.0,
    )


def _held_s(attempts: Sequence[dict[str, Any]], time: dict[str, Any]) -> list[float]:
    """Of each attempt the s in which it held its devices; of a record that does not tell them those of the whole run.

    The time between two attempts (days, where a run is resumed) is in none of them, nor is what one waited for devices.
    """
    ends = [each.get("ended_unix_s") or time.get("ended_unix_s") for each in attempts]  # the last one may go on
    held_s = [
        max(0.0, end - each["started_unix_s"] - each.get("waited_s", 0.0))
        for each, end in zip(attempts, ends, strict=True)
        if end is not None and "started_unix_s" in each
    ]
    return held_s or [float(time["duration_s"])]


def _seconds(phases: Iterable[dict[str, Any]], held_s: Sequence[float]) -> tuple[float, float, float]:
    """(start-up of an attempt, training steps, evaluation and checkpoints) of a run in s; held_s: of each attempt.

    Start-up is what remains of the time in which devices were held, because data and Ray are prepared before the
    metering begins; steps that were lost are left out: a plan does not repeat them.
    """
    by_name = {str(each["phase"]): float(each["seconds"] or 0.0) for each in phases}
    step, lost = by_name.get("train_step", 0.0), by_name.get("lost", 0.0)
    other = by_name.get("evaluation", 0.0) + by_name.get("checkpoint", 0.0)
    return (max(0.0, sum(held_s) - step - other - lost) / len(held_s) if step else 0.0), step, other


def throughput_from(evidence: Evidence, config: LlamaConfig, workers: int) -> Throughput:
    """Tokens/s per worker: the median of the runs with their spread, scaled at equal FLOP/s where the shape differs."""
    values = [run.tokens_per_s / run.workers * (run.flop_per_token / config.flop_per_token) for run in evidence.runs]
    counts = sorted({run.workers for run in evidence.runs})
    count = evidence.count()
    of = "this model" if evidence.same_shape else "another model, scaled by FLOP per token at equal FLOP/s"
    on = ", ".join(f"{number:,}" for number in counts)
    source = f"measured: {count} of {of} on {on} worker{'s' if counts != [1] else ''} ({evidence.names()})"
    kind = MEASURED if evidence.same_shape else SCALED
    spread = Range.around(statistics.median(values), values)
    short = count if evidence.same_shape else f"{count}, scaled"
    return Throughput(spread, kind, source, short, extrapolated=not evidence.same_shape or counts != [workers])
