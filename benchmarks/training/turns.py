"""Systems that take turns, and what their turns say when they are held side by side."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from benchmarks.training.limit import LIMITS, product_flop
from benchmarks.training.process import Runner
from benchmarks.training.systems import Case

OURS = "hoofprint"  # as it runs on a CPU by default: not compiled
SPEED_TARGET, LIMIT_TARGET = 1.2, 0.8
# Where the best peer has 0.9 of the limit there is no 1.2 x to be had: then it is 0.95 of the limit.
NEAR_LIMIT, NEAR_LIMIT_TARGET = 0.9, 0.95
Seconds = Mapping[str, Sequence[float]]  # of a step, for each system: one figure for each turn


def turn_steps(runner: Runner, turn_s: float) -> int:
    """How many steps of a system make a turn of about `turn_s`, by one step while the others wait."""
    return max(1, round(turn_s / max(max(answer) for answer in runner.ask("steps 1"))))


def take_turns(
    runners: Sequence[Runner], counts: Mapping[str, int], budget_s: float, least: int, most: int
) -> dict[str, list[float]]:
    """Median seconds of a step of each system in each turn. In every turn all work once, one after the other, every
    second time in reverse; turns go on until the budget is used, but `least` are done and at most `most`."""
    seconds: dict[str, list[float]] = {runner.name: [] for runner in runners}
    began_s = time.monotonic()
    for turn in range(most):
        for runner in runners if turn % 2 == 0 else runners[::-1]:
            answers = runner.ask(f"steps {counts[runner.name]}")
            # Of several processes the slowest counts: ranks wait for each other.
            seconds[runner.name].append(max(statistics.median(answer) for answer in answers))
        used_s = time.monotonic() - began_s
        if turn + 1 >= least and used_s * (turn + 2) / (turn + 1) > budget_s:
            break
    return seconds


def compare(case: Case, seconds: Seconds, missing: Collection[str]) -> dict[str, Any]:
    """Rates of all systems, the ratios of ours to each, turn by turn, and whether the targets are met.

    missing: systems that were wanted and not measured; of a peer among them nobody knows whether it is the best.

    share_of_limit: what products and attention alone take, of the time of a step. share_of_products: the products
    alone, that is FLOP/s by 6 N over the measured rate of products.
    """
    rates = {name: [case.tokens / s for s in each] for name, each in seconds.items() if name not in LIMITS}
    found: dict[str, Any] = {
        "turns": len(next(iter(seconds.values()), [])),
        "tokens_per_s": {name: spread(each) for name, each in rates.items()},
        "model_flop_per_s": {
            name: statistics.median(each) * case.config.flop_per_token for name, each in rates.items()
        },
    }
    if OURS not in rates:
        return found
    peers = [name for name in rates if not name.startswith(OURS)]
    ratios = {name: [a / b for a, b in zip(rates[OURS], rates[name], strict=True)] for name in rates if name != OURS}
    found["ratio_hoofprint_to"] = {name: spread(each) for name, each in ratios.items()}
    best = found["best_peer"] = max(peers, key=lambda name: statistics.median(rates[name]), default=None)
    shares: dict[str, list[float]] = {}
    if all(name in seconds for name in LIMITS):
        products, attention = seconds["products"], seconds["attention"]
        limit = [a + b for a, b in zip(products, attention, strict=True)]
        shares = {name: [a / b for a, b in zip(limit, seconds[name], strict=True)] for name in rates}
        found |= {
            "product_flop_per_s": spread([product_flop(case) / s for s in products]),
            "attention_share_of_limit": statistics.median(a / b for a, b in zip(attention, limit, strict=True)),
            "share_of_limit": {name: spread(each) for name, each in shares.items()},
            "share_of_products": {
                name: spread([a / b for a, b in zip(products, seconds[name], strict=True)]) for name in rates
            },
            "limit_met": statistics.median(shares[OURS]) >= LIMIT_TARGET,
        }
    near = best is not None and bool(shares) and statistics.median(shares[best]) >= NEAR_LIMIT
    found["speed_target"] = f">= {NEAR_LIMIT_TARGET} of the limit" if near else f">= {SPEED_TARGET} x the best peer"
    found["peers_missing"] = [name for name in missing if not name.startswith(OURS) and name not in LIMITS]
    found["speed_met"] = None
    if best is not None and not found["peers_missing"]:
        reached = statistics.median(shares[OURS] if near else ratios[best])
        found["speed_met"] = reached >= (NEAR_LIMIT_TARGET if near else SPEED_TARGET)
    return found


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, its 95 % interval, least, most, and every value."""
    low, high = median_interval(values)
    return {
        "median": statistics.median(values),
        "low": low,
        "high": high,
        "least": min(values),
        "most": max(values),
        "turns": list(values),
    }


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the median, by resampling with a fixed seed."""
    draw = random.Random(1)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(2000))
    return medians[50], medians[-51]
