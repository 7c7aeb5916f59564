"""Whether a plan fits into the budget of its own spec: a line for each limit, and the same for programs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from energy.units import JOULE_PER_KWH
from orchestrator.budget.watch import Limit, limits_of
from orchestrator.spec.experiment import Experiment

Plan = Mapping[str, Any]


def budgets_of_plan(experiment: Experiment, plan: Plan) -> list[dict[str, Any]]:
    """{key, quantity, limit, low, likely, high, fits, words} of each limit: the plan's figures in the limit's unit, and
    `fits` by the likely one; null where the plan does not know them."""
    return [_against(limit, plan) for limit in limits_of(experiment, plan["intensity_g_per_kwh"] or 0.0)]


def _against(limit: Limit, plan: Plan) -> dict[str, Any]:
    low, likely, high = (_planned(limit, side) for side in (plan["low"], plan, plan["high"]))
    fits = None if likely is None else likely <= limit.limit
    what = f" ({limit.of_what})" if limit.key == "energy" else ""
    said = f"budget of {limit.words(limit.limit)}{what}: "
    if likely is None or high is None:
        said += "not known to the plan"
    elif likely > limit.limit:
        said += f"too small for {limit.words(likely)} (stops at {100 * limit.limit / likely:.0f} %)"
    else:
        said += "holds" if high <= limit.limit else f"holds as likely, not at the most ({limit.words(high)})"
    about = {"key": limit.key, "quantity": limit.quantity, "limit": limit.limit}
    return about | {"low": low, "likely": likely, "high": high, "fits": fits, "words": said}


def _planned(limit: Limit, side: Plan) -> float | None:
    if limit.key in ("gpu_hours", "cost"):
        hours = side["gpu_hours"]
        return None if hours is None else limit.amount(0.0, hours)
    if limit.key == "carbon":
        return side["carbon_tco2eq"]
    kwh = side["energy_it_kwh"]
    return None if kwh is None else limit.amount(kwh * JOULE_PER_KWH, 0.0)
