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

from energy.factors import read_table
from orchestrator.plan.ranges import Basis, Range, positive

# Grattafiori et al. 2024, section 3.3.1: 2 TB/s sustained, 7 TB/s peak, for up to 16,384 GPUs.
_STORAGE_GPUS = 16384
_BANDWIDTH_GB_S = (2000 / _STORAGE_GPUS, 7000 / _STORAGE_GPUS)
_BANDWIDTH_SOURCE = (
    "Llama 3 405B's storage: 2 TB/s sustained, 7 TB/s peak, shared by 16,384 GPUs (Grattafiori et al. 2024, 3.3.1); "
    "the same share per GPU is assumed"
)
# The same paper, 3.3.4: more than 90 % effective training time in 54 days with 466 interruptions (47 of them planned).
_RESTART_S = 0.10 * 54 * 86400 / 466
_RESTART_SOURCE = (
    "upper bound from Llama 3 405B: at most 10 % of 54 days lost to 466 interruptions (Grattafiori et al. 2024, 3.3.4)"
)


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
    if declared.checkpoint_bandwidth_gb_s is not None:
        slow = fast = declared.checkpoint_bandwidth_gb_s
        basis.assume("checkpoint_bandwidth_gb_s", slow, "GB/s", "--checkpoint-bandwidth-gb-s")
    else:
        slow, fast = (share * workers for share in _BANDWIDTH_GB_S)
        basis.assume("checkpoint_bandwidth_gb_s", slow, "GB/s", _BANDWIDTH_SOURCE)
    if declared.restart_minutes is not None:
        restart = Range.exact(declared.restart_minutes * 60)
        basis.assume("restart_s", restart.likely, "s", "--restart-minutes")
    else:
        restart = Range(0.0, _RESTART_S, _RESTART_S)
        basis.assume("restart_s", _RESTART_S, "s", _RESTART_SOURCE)
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
