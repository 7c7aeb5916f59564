"""Table 15 of the LLaMA paper as bars: what was printed, what its formula gives, and the same energy on other grids."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dashboards.figures.drawing import COLOURS, INK, Drawing
from energy.carbon.formula import carbon_tco2eq
from energy.carbon.grid import intensity
from energy.checking.published import DEVELOPMENT, published
from energy.factors import Factor, read_table
from energy.human import digits, human_count

HATCHES = ("////", "\\\\\\\\", "||||", "----")  # here they tell grids apart in grey; no bar is modelled
OTHER_GRIDS = ("France", "Germany", "China", "India")


def table_15() -> list[dict[str, Any]]:
    """The rows for single models, smallest energy last."""
    names = {row["model"] for row in read_table("llama_table15")} - {DEVELOPMENT}
    rows = [row for row in published() if row["model"] in names]
    return sorted(rows, key=lambda row: -float(row["energy_facility_mwh"]))


def _bars(axes: Axes, rows: list[dict[str, Any]], kinds: list[tuple[str, list[float], dict[str, Any]]]) -> None:
    """Groups of bars, a group a model; the name of each kind stands beside its bar in the first group."""
    height = 0.84 / len(kinds)
    longest = max(value for _, values, _ in kinds for value in values)
    for place, (name, values, look) in enumerate(kinds):
        for group, value in enumerate(values):
            y = group - 0.42 + (place + 0.5) * height
            axes.barh(y, value, height=0.88 * height, linewidth=0.7, **look)
            figure = f"{value:.0f}" if name == "printed" else digits(value)  # the paper prints whole numbers
            text = figure + (f"  {name}" if group == 0 else "")
            axes.annotate(text, (value, y), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, longest * 1.62)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")


def paper_drawing() -> Drawing:
    """Needs no run: the table and the grids are those of our factor tables."""
    rows = table_15()
    grids: list[Factor] = [intensity(place) for place in OTHER_GRIDS]
    energy = [float(row["energy_facility_mwh"]) for row in rows]
    printed = {"facecolor": "none", "edgecolor": INK}
    again = {"facecolor": COLOURS[0], "edgecolor": COLOURS[0]}

    def draw(figure: Figure) -> None:
        figure.set_size_inches(7.2, 6.4)
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1, 1.35])
        _bars(
            left,
            rows,
            [("printed", [float(row["printed_mwh"]) for row in rows], printed), ("recomputed", energy, again)],
        )
        kinds = [
            ("printed", [float(row["printed_tco2eq"]) for row in rows], printed),
            (f"recomputed, {digits(rows[0]['intensity_g_per_kwh'])} g/kWh",
             [float(row["carbon_tco2eq"]) for row in rows], again),
        ]  # fmt: skip
        for index, (place, factor) in enumerate(zip(OTHER_GRIDS, grids, strict=True)):
            assert factor.value is not None, place
            per_kwh = factor.value
            values = [carbon_tco2eq(mwh * 1000, per_kwh) for mwh in energy]
            look = {"facecolor": "white", "edgecolor": COLOURS[index + 1], "hatch": HATCHES[index]}
            kinds.append((f"{place}, {digits(per_kwh)}", values, look))
        _bars(right, rows, kinds)
        names = [f"{row['model']}\n{human_count(row['gpu_hours'])} GPU-hours" for row in rows]
        left.set_yticks(range(len(rows)), names, fontsize=8)
        left.set_title("Facility energy (MWh)")
        right.set_title("Carbon (t CO₂eq)")
        years = ", ".join(sorted({str(factor.year) for factor in grids if factor.year}))
        figure.supxlabel(
            f"{digits(rows[0]['gpu_power_w'])} W a GPU, PUE {rows[0]['pue']}; other grids: the year's mean "
            f"({years}), {grids[0].basis}".rstrip(", "),
            fontsize=8,
        )

    told = "; ".join(
        f"{row['model']}: printed {row['printed_mwh']:.0f} MWh and {row['printed_tco2eq']:.0f} t, recomputed "
        f"{row['energy_facility_mwh']:.0f} MWh and {row['carbon_tco2eq']:.0f} t"
        for row in rows
    )
    return Drawing("llama-paper", f"Table 15 of the LLaMA paper. {told}.", draw)
