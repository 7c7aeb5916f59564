"""How a sweep looks on a terminal: a row per value, solid where it was measured, dotted where extrapolated (rich)."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from energy.human import digits
from orchestrator.plan.screen import bare, ending, indented, mass, or_none

_BAR = 6
_LEGEND = """bar: {bar}   ━ measured on as many devices   ╌ extrapolated
tokens/s per GPU are those published, or measured here, on the number of
devices nearest to the row's; no loss from scaling is added"""


def print_sweep(sweep: dict[str, Any], name: str, start_with: str, console: Console) -> None:
    """The table and what it rests on. A bar stands behind the days, or behind the carbon where the days do not change,
    as long as that figure is large."""
    rows = sweep["rows"]
    good = [row for row in rows if not row["error"]]
    bar_key = "wall_days" if len({row["wall_days"] for row in good}) > 1 else "carbon_tco2eq"
    longest = max((row[bar_key] or 0.0 for row in good), default=0.0)
    energy = "energy_facility_kwh" if any(row["energy_facility_kwh"] for row in good) else "energy_it_kwh"
    unit, unit_name = (1e3, "MWh") if max((row[energy] or 0.0) for row in good) >= 1e3 else (1.0, "kWh")
    carbon_unit, carbon_name = mass(max((row["carbon_tco2eq"] or 0.0) for row in good))
    behind = {"wall_days": ["days"], "carbon_tco2eq": [f"{carbon_name} CO2eq"]}
    behind[bar_key].append(" ")
    head = ["GPU-hours", unit_name, *behind["carbon_tco2eq"], "GB/GPU", "recompute", "tok/s/GPU"]
    table = bare(sweep["key"].rpartition(".")[2], *behind["wall_days"], *head)
    for row in rows:
        if row["error"]:
            table.add_row(row["value"], Text("see below", style="red"))
            continue
        length = max(1, round(_BAR * row[bar_key] / longest)) if row[bar_key] else 0
        bar = Text(("╌" if row["extrapolated"] else "━") * length, style="cyan")
        style = "green" if row["fits"] else "" if row["fits"] is None else "red"
        memory = digits(row["memory_gb_per_gpu"]) + ("!" if row["fits"] is False else "")
        hours, carbon = or_none(row["gpu_hours"]), or_none(row["carbon_tco2eq"], carbon_unit)
        speed = or_none(row["tokens_per_s_per_gpu"])
        cells: dict[str, list[str | Text]] = {"wall_days": [or_none(row["wall_days"])], "carbon_tco2eq": [carbon]}
        cells[bar_key].append(bar)
        rest = [Text(memory, style), row["checkpointing"], speed]
        table.add_row(
            row["value"], *cells["wall_days"], hours, or_none(row[energy], unit), *cells["carbon_tco2eq"], *rest
        )
    console.print(Text(f"Plan of {name} for each {sweep['key']}\n", style="bold"))
    console.print(indented(table, below=1))
    if any(row["wall_days"] for row in good):
        shown = {"wall_days": "days", "carbon_tco2eq": "carbon"}[bar_key]
        console.print(indented(Text(_LEGEND.format(bar=shown), style="dim")))
    for text in sorted({row["throughput"] for row in good if row["throughput"]}):
        console.print(indented(Text(f"from {text}", style="dim")))
    for row in rows:
        if row["error"]:
            console.print(indented(Text(f"{row['value']}: {row['error']}", style="red")))
    if any(row["fits"] is False for row in good):
        console.print(indented(Text("! does not fit, even with full activation checkpointing", style="red")))
    console.print()
    ending("one", start_with, console)
