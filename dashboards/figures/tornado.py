"""Which assumption of a plan moves its time, energy and carbon most: a bar from the low to the high of each."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from dashboards.figures.drawing import COLOURS, HATCH, INK, Drawing, Missing, time_scale
from dashboards.figures.planned import Assumption, Plan, assumptions, require_time, three
from energy.human import digits, human_carbon, human_energy, human_time, scale_of

DAY_S = 86400.0
Panel = tuple[str, str, float, str]  # (key of the plan, what it is, likely value, unit); the value is in the unit
_KWH = ((1e3, 1e3, "MWh"), (0.1, 1.0, "kWh"), (0.0, 1e-3, "Wh"))
_TONNE = ((0.1, 1.0, "t"), (1e-4, 1e-3, "kg"), (0.0, 1e-6, "g"))


def panels_of(plan: Plan) -> list[Panel]:
    """Time, energy (facility where the PUE is known, else IT) and carbon, as far as the plan has them."""
    days = require_time(plan)[1]
    per, unit = time_scale(days * DAY_S)
    found: list[Panel] = [("wall_days", "Time", days * DAY_S / per, unit)]
    for key, name in (("energy_facility_kwh", "Facility energy"), ("energy_it_kwh", "IT energy")):
        energy = three(plan, key)
        if energy is not None and energy[1] > 0:
            per, unit = scale_of(energy[1], _KWH)
            found.append((key, name, energy[1] / per, unit))
            break
    carbon = three(plan, "carbon_tco2eq")
    if carbon is not None and carbon[1] > 0:
        per, unit = scale_of(carbon[1], _TONNE)
        found.append(("carbon_tco2eq", "Carbon", carbon[1] / per, f"{unit} CO₂eq"))
    return found


def tornado_drawing(plan: Plan) -> Drawing:
    """A panel for each of time, energy and carbon, a row an assumption, the widest first.

    Each bar is the quantity at the low and at the high of one assumption, all others at their likely value; hatched: it
    rests on no run of one's own. Missing where the plan has no time, or none of its assumptions has a range.
    """
    panels, all_of_them = panels_of(plan), assumptions(plan)
    last = panels[-1][0]
    moving = [each for each in all_of_them if each.has_range and any(key in each.moves for key, *_ in panels)]
    if not moving:
        single = "; ".join(f"{each.name} {each.said()}" for each in all_of_them)
        raise Missing(f"no assumption of the plan has a range, so none moves it more than another ({single})")
    moving.sort(key=lambda each: (last in each.moves, _width(each)), reverse=True)
    fixed = [each for each in all_of_them if not each.has_range]

    def draw(figure: Figure) -> None:
        notes = _notes(fixed, moving)
        figure.set_size_inches(7.2, 1.15 + 0.46 * len(moving) + 0.15 * len(notes))
        every = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, panel in zip(every, panels, strict=True):
            _panel(axes, panel, moving)
        every[0].set_yticks(range(len(moving)), [f"{each.name}\n{each.said()}" for each in moving], fontsize=8)
        every[0].set_ylim(len(moving) - 0.5, -0.5)
        figure.supxlabel("\n".join(notes), fontsize=8, x=0.01, ha="left")

    widest = moving[0]
    ends = [human_of(last, three(plan, last)[1] * factor) for factor in widest.factors()]  # type: ignore[index]
    told = f"{widest.name} moves it most, from {ends[0]} to {ends[1]}"
    return Drawing("tornado", f"What moves the plan of {plan.get('name')}: {told}.", draw)


def human_of(key: str, value: float) -> str:
    """A quantity of the plan in words."""
    said: dict[str, Callable[[float], str]] = {
        "wall_days": lambda days: human_time(days * DAY_S), "carbon_tco2eq": human_carbon,
    }  # fmt: skip
    return said.get(key, human_energy)(value)


def _width(each: Assumption) -> float:
    low, high = each.factors()
    return max(high, 1.0) - min(low, 1.0)


def _notes(fixed: list[Assumption], moving: list[Assumption]) -> list[str]:
    notes = []
    if any(not each.measured for each in moving):
        notes.append("Hatched: from no run of your own.")
    if any(each.on_top for each in moving):
        notes.append("Interruptions come on top of the plan's figures.")
    if fixed:
        notes.append(f"Without a range in the plan: {'; '.join(f'{each.name} {each.said()}' for each in fixed)}.")
    return textwrap.wrap(" ".join(notes), 112)


def _panel(axes: Axes, panel: Panel, moving: list[Assumption]) -> None:
    key, what, likely, unit = panel
    ends = [[likely * factor for factor in each.factors()] for each in moving if key in each.moves]
    low, high = min([likely, *(pair[0] for pair in ends)]), max([likely, *(pair[1] for pair in ends)])
    room = 0.32 * (high - low or 0.1 * likely)  # for the figures at the ends
    axes.set_xlim(low - room, high + room)
    for row, each in enumerate(moving):
        if key not in each.moves:
            axes.text(likely, row, "  not moved", va="center", fontsize=7, color=INK, alpha=0.75)
            continue
        start, end = (likely * factor for factor in each.factors())
        for left, right, colour in ((start, min(end, likely), COLOURS[0]), (max(start, likely), end, COLOURS[1])):
            if right > left:
                _bar(axes, row, left, right, colour, each)
        if start < likely or each.on_top:
            axes.annotate(digits(start), (start, row), (-3, 0), textcoords="offset points", ha="right", va="center",
                          fontsize=7.5)  # fmt: skip
        if end > likely:
            axes.annotate(digits(end), (end, row), (3, 0), textcoords="offset points", va="center", fontsize=7.5)
    axes.axvline(likely, color=INK, linewidth=1.0)
    axes.annotate(f"likely {digits(likely)}", (likely, 1.0), (0, 2), xycoords=("data", "axes fraction"),
                  textcoords="offset points", ha="center", fontsize=7.5)  # fmt: skip
    axes.set_title(f"{what} ({unit})", pad=16)
    axes.set_xticks([])
    axes.tick_params(axis="y", length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)


def _bar(axes: Axes, row: int, left: float, right: float, colour: str, each: Assumption) -> None:
    look: dict[str, Any] = {"facecolor": to_rgba(colour, 0.25 if not each.measured else 0.9)}
    axes.barh(row, right - left, left=left, height=0.56, linewidth=0, **look)
    if not each.measured:
        axes.barh(row, right - left, left=left, height=0.56, facecolor="none", edgecolor=colour, hatch=HATCH,
                  linewidth=0.8)  # fmt: skip
