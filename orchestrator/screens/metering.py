"""How a measurement and the doctor's findings look on a terminal, from 80 columns on (rich)."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from energy.boundaries import METHODS, boundary_text
from energy.human import digits, energy_scale, human_carbon, human_energy, human_time, percent
from energy.metering.measure import ending
from energy.metering.measurement import Measurement
from energy.metering.windows import DeviceWindow

STATES = {"ok": ("ok", "green"), "modelled": ("modelled", "yellow"), "missing": ("missing", "yellow")}
STATES |= {"broken": ("BROKEN", "bold red")}


def opening(sensors: Sequence[dict[str, Any]], address: str | None) -> list[str]:
    """What is metered, in a line or two, before the command starts."""
    by_method: dict[str, list[str]] = {}
    for sensor in sensors:
        by_method.setdefault(sensor["method"], []).append(sensor["kind"])
    parts = [f"{_and(kinds)} by {METHODS[method]}" for method, kinds in by_method.items()]
    text = f"hoofprint: metering {', '.join(parts) or 'nothing, as no sensor works here'}"
    lines = textwrap.wrap(text, 79, subsequent_indent="  ")
    return [*lines, f"hoofprint: serving {address}"] if address else lines


def _and(kinds: list[str]) -> str:
    """'8 GPUs, CPU and memory'."""
    names = {"gpu": "GPU", "cpu": "CPU", "dram": "memory"}
    counts = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    said = [
        names.get(kind, kind) if count == 1 else f"{count} {names.get(kind, kind)}{'' if kind == 'dram' else 's'}"
        for kind, count in counts.items()
    ]
    return " and ".join([*([", ".join(said[:-1])] if said[:-1] else []), said[-1]])


def print_measurement(result: Measurement, report: Path | None, console: Console) -> None:
    """The table at the end: each device, the total with its parts and its boundary, and where the report lies."""
    window, totals = result.window, result.as_json()
    console.print()
    console.print(_title(result))
    scale, unit = energy_scale(window.energy_j or 0.0)
    table = Table(box=None, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("device", ratio=1, overflow="fold")
    table.add_column(f"energy ({unit})", justify="right", no_wrap=True)
    table.add_column("95 % interval", no_wrap=True)
    table.add_column("method", no_wrap=True)
    for d in result.devices:
        table.add_row(_device(d), *_energy(scale, d.energy_j, d.low_j, d.high_j), d.method)
    table.add_section()
    covered = [f"{percent(share)} {key.removeprefix('share_')}" for key, share in result.shares().items() if share]
    table.add_row(Text("total", "bold"), *_energy(scale, window.energy_j, window.low_j, window.high_j, "bold"), "")
    console.print(Padding(table, (0, 0, 0, 2)))
    boundary = boundary_text(result.boundary, {device.kind for device in window.counted})
    rows = [("of it", ", ".join(covered) or "nothing was read"), ("boundary", boundary)]
    pue, intensity = result.factors.pue, result.factors.intensity
    if pue is not None and totals["energy_facility_kwh"] is not None:
        facility = human_energy(*(side["energy_facility_kwh"] for side in (totals, totals["low"], totals["high"])))
        rows.append(("facility", f"{facility}, PUE {pue}"))
    if intensity is not None and totals["carbon_tco2eq"] is not None:
        carbon = human_carbon(*(side["carbon_tco2eq"] for side in (totals, totals["low"], totals["high"])))
        rows.append(("carbon", f"{carbon}, {intensity}"))
    else:
        rows.append(("carbon", "not known: it needs --pue and --intensity-g-per-kwh, with sources"))
    rows += [("note", text) for text in _notes(result)]
    if report is not None:
        rows.append(("report", _short(report)))
    _pairs(rows, console)


def _title(result: Measurement) -> Text:
    _, error = ending(result.exit_code)
    took = human_time(result.window.duration_s)
    end = (error or "exit code 0").removeprefix("the command ").removeprefix("was ").removeprefix("ended with ")
    if "exit code" not in end:
        end += f", exit code {result.exit_code}"
    text = Text(result.folder.path.name, "bold")
    return text.append(f"  {took}, {end}", "not bold")


def _device(device: DeviceWindow) -> Text:
    name, _, basis = device.name.partition(" (")
    text = Text(name)
    if device.kind == "gpu":
        text.append(f" {device.uuid[:12]}", "dim")
    if basis:
        text.append(f" ({basis}", "dim")
    return text


def _energy(
    scale: float, energy_j: float | None, low_j: float | None, high_j: float | None, style: str = ""
) -> tuple[Text, Text]:
    """Energy and interval in units of `scale` J, the same in all rows."""
    if energy_j is None:
        return Text("missing", "yellow"), Text("")
    interval = "" if low_j is None or high_j is None else f"{digits(low_j / scale)} to {digits(high_j / scale)}"
    return Text(digits(energy_j / scale), style), Text(interval, style)


def _notes(result: Measurement) -> list[str]:
    """What was not plain with a device, and what the user should know of the sensors; models say theirs by name."""
    notes = [f"{d.name} {d.uuid[:12]}: {d.note}" for d in result.devices if d.note]
    named = {d.uuid for d in result.devices if d.note}
    plain = [
        text
        for text in result.warnings
        if not text.startswith(("host model:", "no PUE", "no grid intensity", "RAPL:"))
        and "has no energy counter" not in text  # the column of methods says so
        and not any(uuid in text for uuid in named)
    ]
    return [*notes, *plain]


def _pairs(rows: list[tuple[str, str]], console: Console) -> None:
    table = Table(box=None, pad_edge=False, show_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True, min_width=8)
    table.add_column(ratio=1, overflow="fold")
    shown = ""
    for key, value in rows:
        table.add_row("" if key == shown else key, Text(value))
        shown = key
    console.print(Padding(table, (0, 0, 0, 2)))


def _short(path: Path) -> str:
    """The path from here where that is shorter."""
    return min(os.path.relpath(path), str(path), key=len)


def print_checks(checks: Sequence[Any], console: Console) -> None:
    """One screen: a line a check, what to do under what is not right."""
    width = max(len(check.name) for check in checks)
    section = ""
    for check in checks:
        if check.section != section:
            section = check.section
            console.print(Text(section, "bold"))
        table = Table(box=None, pad_edge=False, show_edge=False, show_header=False, padding=(0, 1, 0, 0))
        table.add_column(width=width, overflow="fold")
        table.add_column(width=8)
        table.add_column(ratio=1, overflow="fold")
        word, style = STATES[check.state]
        table.add_row(check.name, Text(word, style), Text(check.found))
        if check.todo:
            table.add_row("", "", Text(check.todo, "italic"))
        console.print(Padding(table, (0, 0, 0, 2)))
