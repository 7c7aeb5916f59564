"""Interruptions to expect, the best interval between checkpoints, and what both cost.

For a rate of r interruptions per accelerator-hour, W accelerators are interrupted every M = 1 / (r W) hours. With a
checkpoint that stalls the training for C, the interval that loses least is sqrt(2 C M) (Young 1974; Daly 2006, first
order, for C much less than M). Per second of training is then lost C / tau (writing) + tau / 2M (work done again)
+ R / M (restarting, R each time). All of it comes on top of the planned hours: published hours hold their own losses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from energy.factors import checkpointing, read_table
from orchestrator.plan.ranges import Basis, Range, positive


@dataclass(frozen=True)
class Reliability:
    """What the user declares; None takes the published figure, which stands among the assumptions."""

    failures_per_gpu_hour: float | None = None
    checkpoint_bandwidth_gb_s: float | None = None  # of the whole storage
    restart_minutes: float | None = None

    def __post_init__(self) -> None:
        positive("--failures-per-gpu-hour", self.failures_per_gpu_hour, zero=True)
        positive("--checkpoint-bandwidth-gb-s", self.checkpoint_bandwidth_gb_s)
        positive("--restart-minutes", self.restart_minutes, zero=True)


def failure_rate(basis: Basis, declared: float | None = None) -> Range:
    """Interruptions per accelerator-hour: the declared rate, or the published ones of `failure_rates.csv`."""
    if declared is not None:
        basis.assume("failures_per_gpu_hour", declared, "1/h", "--failures-per-gpu-hour")
        return Range.exact(declared)
    rates = {
        row["case"]: float(row["interruptions"]) / (float(row["gpus"]) * float(row["days"]) * 24)
        for row in read_table("failure_rates")
    }
    for row in read_table("failure_rates"):
        suffix = "" if row["case"] == "likely" else f"_{row['case']}"
        basis.assume(f"failures_per_gpu_hour{suffix}", rates[row["case"]], "1/h", row["source"])
    return Range(rates["low"], rates["likely"], rates["high"])


def storage_bandwidth(workers: int, basis: Basis, declared: float | None = None) -> tuple[float, float]:
    """(sustained, peak) GB/s of the storage that checkpoints go to: declared, or a published one's share per GPU."""
    if declared is not None:
        basis.assume("checkpoint_bandwidth_gb_s", declared, "GB/s", "--checkpoint-bandwidth-gb-s")
        return declared, declared
    published, gpus = checkpointing()["storage_gb_s"], checkpointing()["storage_gpus"].value
    assert published.low is not None and published.high is not None and gpus is not None
    slow, fast = (gb_s * workers / gpus for gb_s in (published.low, published.high))
    told = f"{published.source}: {published.low:,g} GB/s sustained, {published.high:,g} at its peak, for {gpus:,g} GPUs"
    basis.assume("checkpoint_bandwidth_gb_s", slow, "GB/s", f"{told}; the same share per GPU is assumed")
    return slow, fast


def restart_time(basis: Basis, declared_minutes: float | None = None) -> Range:
    """Seconds that a restart takes: declared, or at most what a published training can have lost with each."""
    if declared_minutes is not None:
        basis.assume("restart_s", declared_minutes * 60, "s", "--restart-minutes")
        return Range.exact(declared_minutes * 60)
    days, interruptions, effective = (checkpointing()[key] for key in ("days", "interruptions", "effective_share"))
    assert days.value is not None and interruptions.value is not None and effective.value is not None
    most_s = (1 - effective.value) * days.value * 86400 / interruptions.value
    lost, count = (
        f"{100 * (1 - effective.value):.0f} % of {days.value:g} days",
        f"{interruptions.value:g} interruptions",
    )
    basis.assume("restart_s", most_s, "s", f"upper bound: at most {lost} lost to {count}: {interruptions.source}")
    return Range(0.0, most_s, most_s)


def best_interval_s(checkpoint_s: float, between_failures_s: float) -> float:
    """Young's interval sqrt(2 C M) in s, from the cost C of a checkpoint and the mean time M between failures, in s."""
    return math.sqrt(2 * checkpoint_s * between_failures_s)


def lost_share(interval_s: float, checkpoint_s: float, between_failures_s: float, restart_s: float) -> float:
    """Time lost per time trained: writing, doing again on average half an interval, restarting (first order)."""
    return checkpoint_s / interval_s + (interval_s / 2 + restart_s) / between_failures_s


def failure_plan(
    gpu_hours: Range, workers: int, state_gb: float, spec_interval_s: float, declared: Reliability, basis: Basis
) -> dict[str, Any]:
    """Expected interruptions, checkpoint cost and interval, and hours lost, as the `failures` part of a plan."""
    rate = failure_rate(basis, declared.failures_per_gpu_hour)
    slow, fast = storage_bandwidth(workers, basis, declared.checkpoint_bandwidth_gb_s)
    restart = restart_time(basis, declared.restart_minutes)
    cost = Range(state_gb / fast, state_gb / slow, state_gb / slow)
    expected = gpu_hours.times(rate)
    shared = {
        "expected": expected,
        "checkpoint_gb": state_gb,
        "checkpoint_s": cost.likely,
        "spec_interval_s": spec_interval_s,
    }
    if rate.likely == 0:
        return shared | {"mtbf_hours": None, "best_interval_s": None, "lost_share": None, "lost_gpu_hours": None}
    between = [3600 / (each * workers) for each in (rate.low, rate.likely, rate.high)]
    best = best_interval_s(cost.likely, between[1])
    lost = Range(
        *(
            lost_share(best_interval_s(c, m), c, m, r)
            for c, m, r in zip(
                (cost.low, cost.likely, cost.high), between, (restart.low, restart.likely, restart.high), strict=True
            )
        )
    )
    return shared | {
        "mtbf_hours": between[1] / 3600,
        "best_interval_s": best,
        "lost_share": lost,
        "lost_share_at_spec_interval": lost_share(spec_interval_s, cost.likely, between[1], restart.likely),
        "lost_gpu_hours": lost.times(gpu_hours),
    }
