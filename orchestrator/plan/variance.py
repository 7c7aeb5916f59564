"""A plan beside what happened: the ratio of actual to planned, as a product of causes.

energy = tokens x device-seconds per token x (work done again) x (time outside the steps) x watts; then x PUE; carbon
x grid intensity. Each row is one factor's actual over planned, so the product of the rows is the ratio of the totals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.plan.ranges import SAME

Row = dict[str, Any]
# What each further row completes: device-hours after the first four, and so on.
TOTALS = (
    ("device_hours", ("tokens", "throughput", "repeated", "overhead")),
    ("energy_it_kwh", ("power",)),
    ("energy_facility_kwh", ("pue",)),
    ("carbon_tco2eq", ("intensity",)),
)


def compare(plan: Mapping[str, Any], footprint: Mapping[str, Any]) -> dict[str, Any]:
    """Planned against actual of a run: {totals: [...], factors: [...]}.

    factors: {factor, planned, actual, unit, ratio, share, text}; `ratio` above 1 made the footprint larger, and the
    ratios up to a total multiply to that total's ratio. `share`: the factor's part of the logarithm of the last total
    that is known, so that shares add up to 1 (None when that total came out as planned). A factor that the plan or the
    record does not know has ratio None, and the totals after it have none either.
    """
    planned, actual = _planned(plan), _actual(footprint)
    rows = [
        _row("tokens", planned["tokens"], actual["tokens"], "tokens"),
        # More tokens/s make less energy: the factor is the time per token.
        _row("throughput", planned["rate"], actual["rate"], "tokens/s per device", inverse=True),
        _row("repeated", 1.0, actual["repeated"], "tokens processed per token trained"),
        _row("overhead", planned["overhead"], actual["overhead"], "device time per time in training steps"),
        _row("power", planned["power"], actual["power"], "W per device"),
        _row("pue", planned["pue"], actual["pue"], "1"),
        _row("intensity", planned["intensity"], actual["intensity"], "g CO2eq/kWh"),
    ]
    totals = _totals(plan, footprint, rows)
    known = [total for total in totals if total["ratio"] is not None]
    last = known[-1] if known else None
    within = last["factors"] if last else ()
    for row in rows:
        whole = math.log(last["ratio"]) if last else 0.0
        counts = row["factor"] in within and row["ratio"] and abs(whole) > 1e-12
        row["share"] = math.log(row["ratio"]) / whole if counts else None
    return {"totals": totals, "factors": rows, "explained": last["key"] if last else None}


def _planned(plan: Mapping[str, Any]) -> dict[str, float | None]:
    devices, rate = plan.get("devices"), plan.get("tokens_per_s")
    return {
        "tokens": plan["tokens"],
        "rate": rate / devices if rate and devices else None,
        "overhead": plan.get("overhead"),
        "power": plan.get("device_power_w"),
        "pue": plan.get("pue"),
        "intensity": plan.get("intensity_g_per_kwh"),
    }


def _actual(footprint: Mapping[str, Any]) -> dict[str, float | None]:
    data, compute, time, energy = (footprint[key] for key in ("data", "compute", "time", "energy"))
    trained, processed = data.get("tokens_trained"), data.get("tokens_processed")
    tokens_per_s, hours = compute.get("tokens_per_s"), time.get("device_hours")
    devices = compute.get("mean_devices") or compute.get("devices")  # attempts may have had more or fewer
    step_hours = processed / tokens_per_s / 3600 * devices if processed and tokens_per_s and devices else None
    it_kwh = energy.get("energy_it_kwh")
    return {
        "tokens": trained or None,
        "rate": tokens_per_s / devices if tokens_per_s and devices else None,
        "repeated": processed / trained if processed and trained else None,
        "overhead": hours / step_hours if hours and step_hours else None,
        "power": it_kwh * 1000 / hours if it_kwh and hours else None,
        "pue": energy.get("pue"),
        "intensity": footprint["carbon"].get("intensity_g_per_kwh"),
    }


def _row(factor: str, planned: float | None, actual: float | None, unit: str, inverse: bool = False) -> Row:
    ratio = (planned / actual if inverse else actual / planned) if planned and actual else None
    return {"factor": factor, "planned": planned, "actual": actual, "unit": unit, "ratio": ratio,
            "text": _say(factor, ratio)}  # fmt: skip


def _totals(plan: Mapping[str, Any], footprint: Mapping[str, Any], rows: Sequence[Row]) -> list[Row]:
    by_name = {row["factor"]: row for row in rows}
    actual = {
        "device_hours": footprint["time"].get("device_hours"),
        "energy_it_kwh": footprint["energy"].get("energy_it_kwh"),
        "energy_facility_kwh": footprint["energy"].get("energy_facility_kwh"),
        "carbon_tco2eq": footprint["carbon"].get("carbon_tco2eq"),
    }
    totals: list[Row] = []
    factors: tuple[str, ...] = ()
    for key, more in TOTALS:
        factors += more
        known = plan.get(key) and actual[key] and all(by_name[name]["ratio"] for name in factors)
        ratio = actual[key] / plan[key] if known else None
        totals.append({"key": key, "planned": plan.get(key), "actual": actual[key], "ratio": ratio, "factors": factors})
    return totals


_WORDS = {
    "tokens": ("more tokens were trained than planned", "fewer tokens were trained than planned"),
    "throughput": ("training was slower than planned", "training was faster than planned"),
    "repeated": ("work was lost and done again", "less work was done again than planned"),
    "overhead": ("more time went outside the training steps", "less time went outside the training steps"),
    "power": ("the devices drew more than planned", "the devices drew less than planned"),
    "pue": ("the PUE was higher", "the PUE was lower"),
    "intensity": ("the grid was dirtier", "the grid was cleaner"),
}


def _say(factor: str, ratio: float | None) -> str:
    if ratio is None:
        return "not known on one side"
    if abs(ratio - 1) < SAME:
        return "as planned"
    return f"{_WORDS[factor][0 if ratio > 1 else 1]} (x {ratio:.3g})"
