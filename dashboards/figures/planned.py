"""What a plan says of itself, read from its JSON: its quantities, and the assumptions that they rest on.

The plan is `plan.json` of a run folder, or what `hoofprint plan SPEC --json` prints. Its energy is a product
(device-hours x power x PUE, x intensity for carbon), so what one assumption moves is its own ratio to its likely value.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dashboards.figures.drawing import Missing
from energy.human import digits

Plan = Mapping[str, Any]
SCHEMA = "hoofprint/plan/1"
ASSUMED = ("assumed", None)
SAME = 5e-4  # a relative width below which a range is a single value


@dataclass(frozen=True)
class Assumption:
    """One thing that a plan rests on: its low, likely and high in `unit`, and the quantities of the plan it moves.

    measured: by own earlier runs, not taken from elsewhere. on_top: it is no factor of the plan's totals: its values
    are shares of them that come on top. ratios: by what its two ends multiply what it moves, the smaller first, where
    that is not proportional to it.
    """

    name: str
    low: float
    likely: float
    high: float
    unit: str
    moves: tuple[str, ...]
    measured: bool = False
    on_top: bool = False
    ratios: tuple[float, float] | None = None

    @property
    def has_range(self) -> bool:
        return self.high - self.low > SAME * abs(self.likely)

    def factors(self) -> tuple[float, float]:
        """By what its low and its high multiply a quantity that it moves, the smaller first."""
        if self.on_top:
            return 1 + self.low, 1 + self.high
        return self.ratios or (self.low / self.likely, self.high / self.likely)

    def said(self) -> str:
        """Its likely value, and its range where it has one."""
        scale, unit = (100.0, "%") if self.on_top else (1.0, self.unit)
        text = digits(self.likely * scale)
        if self.has_range:
            text += f" ({digits(self.low * scale)} to {digits(self.high * scale)})"
        return f"{text} {unit}".rstrip()


def read_plan(path: Path) -> dict[str, Any]:
    """The plan in a file: `hoofprint plan --json`, or the plan.json of a run. ValueError for anything else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path}: not JSON ({error}); write a plan by: hoofprint plan SPEC --json > plan.json"
        ) from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    plan = found.get("plan", found) if isinstance(found, dict) else None
    schema = str(plan.get("schema", "")) if isinstance(plan, dict) else ""
    if isinstance(plan, dict) and schema == SCHEMA:
        return plan
    if schema.startswith(SCHEMA.rpartition("/")[0]):
        raise ValueError(f"{path}: its schema is {schema}, and this hoofprint reads {SCHEMA}: take the newer version")
    sweep = isinstance(found, dict) and "rows" in found
    what = "the plans of a sweep: a figure is of one plan, without --sweep" if sweep else "not a plan"
    raise ValueError(f"{path}: {what}; write one by: hoofprint plan SPEC --json > plan.json")


def three(plan: Plan, key: str) -> tuple[float, float, float] | None:
    """Low, likely and high of a quantity of the plan; None where it is not known."""
    found = [part.get(key) for part in (plan.get("low") or {}, plan, plan.get("high") or {})]
    if any(value is None for value in found):
        return None
    return float(found[0]), float(found[1]), float(found[2])  # type: ignore[arg-type]


def why_unknown(plan: Plan) -> str:
    """What the plan itself says is missing first: the rest of it follows from that."""
    told = [str(text) for text in plan.get("missing") or []]
    return f"; it lacks {told[0]}" if told else ""


def of_time(plan: Plan) -> str | None:
    """The key of the plan's throughput that is known."""
    keys = ("tokens_per_s_per_gpu", "tokens_per_s")
    return next((key for key in keys if three(plan, key) is not None), None)


def assumptions(plan: Plan) -> list[Assumption]:
    """Everything that moves the plan's time, energy or carbon, in the order in which it enters.

    Of the throughput it has what it does to the hours, start-up and evaluation included.
    """
    told = plan.get("quantities") or {}
    energy = ("energy_it_kwh", "energy_facility_kwh", "carbon_tco2eq")
    found: list[Assumption] = []
    rate, hours, power = of_time(plan), three(plan, "wall_days"), three(plan, "device_power_w")
    if rate is not None and hours is not None and hours[1] > 0:
        low, likely, high = three(plan, rate) or (0.0, 0.0, 0.0)
        measured = (told.get(rate) or {}).get("method") not in ASSUMED
        unit = "tokens/s per GPU" if rate == "tokens_per_s_per_gpu" else "tokens/s"
        # The hours that the plan itself has for its slowest and fastest: start-up does not scale with the throughput.
        ratios = (hours[0] / hours[1], hours[2] / hours[1])
        found.append(Assumption("throughput", low, likely, high, unit, ("wall_days", *energy), measured, ratios=ratios))
    if power is not None:
        measured = (told.get("device_power_w") or {}).get("method") not in ASSUMED
        found.append(Assumption("power of a device", *power, "W", energy, measured=measured))
    for key, name, unit, moves in (
        ("pue", "PUE", "", energy[1:]), ("intensity_g_per_kwh", "grid intensity", "g/kWh", energy[2:])
    ):  # fmt: skip
        item = next((item for item in plan.get("assumptions") or [] if item.get("key") == key), None)
        if item is not None and item.get("value"):
            likely = float(item["value"])
            low, high = (likely if item.get(end) is None else float(item[end]) for end in ("low", "high"))
            found.append(Assumption(name, min(low, likely), likely, max(high, likely), unit, moves))
    lost = (plan.get("failures") or {}).get("lost_share")
    if lost:
        shares = (float(lost["low"]), float(lost["likely"]), float(lost["high"]))
        found.append(Assumption("interruptions", *shares, "", ("wall_days", *energy), on_top=True))
    return found


def require_time(plan: Plan) -> tuple[float, float, float]:
    """The plan's days, low to high. Missing where it has none."""
    days = three(plan, "wall_days")
    if days is None or not days[1] > 0:
        raise Missing(f"the plan has no time, and so no energy{why_unknown(plan)}")
    return days
