"""How a comparison of runs looks on a terminal, from 80 columns on."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from energy.human import digits, human_count, percent

if TYPE_CHECKING:
    from dashboards.comparison import Compared, Comparison

UNKNOWN, APART = "–", "≠"
COLUMN, HEAD = 19, 18  # columns of a run, and of the names of the rows
SHOWN_KEYS = 12
_ENERGY = ((1e3, "MWh"), (0.1, "kWh"), (1e-4, "Wh"), (0.0, "J"))
_PER_TOKEN = ((1.0, "J"), (1e-3, "mJ"), (0.0, "µJ"))
_CARBON = ((1.0, "t"), (1e-3, "kg"), (1e-6, "g"), (0.0, "mg"))
_UNITS = {"MWh": 1e3, "kWh": 1.0, "Wh": 1e-3, "J": 1 / 3.6e6, "mJ": 1e-3, "µJ": 1e-6,
          "t": 1.0, "kg": 1e-3, "g": 1e-6, "mg": 1e-9}  # fmt: skip


def _unit(most: float, scales: tuple[tuple[float, str], ...]) -> tuple[str, float]:
    """(unit, its size) for a row: one for all runs, so that the column can be read down and across."""
    name = next(unit for least, unit in scales if most >= least)
    return name, 1.0 if scales is _PER_TOKEN and name == "J" else _UNITS[name]


def _rows(comparison: Comparison) -> list[tuple[str, str, Callable[[float], str]]]:
    """(key, name with its unit, how a value is said)."""

    def scaled(key: str, name: str, scales: Any, what: str = "") -> tuple[str, str, Callable[[float], str]]:
        values = [v for run in comparison.runs if (v := run.figures[key]) is not None]
        unit, size = _unit(max(values, default=0.0), scales)
        return key, f"{name} ({unit}{what})", lambda value: digits(value / size)

    kinds = {str(run.means["loss_kind"]) for run in comparison.runs if run.figures["loss"] is not None}
    kind = kinds.pop() if len(kinds) == 1 else ""
    rows = [
        ("params", "parameters", human_count),
        ("tokens", "tokens", human_count),
        ("loss", f"{kind} loss".strip(), lambda value: f"{value:.3f}"),
        scaled("energy_it_kwh", "IT energy", _ENERGY),
        scaled("energy_facility_kwh", "facility", _ENERGY),
        scaled("joule_per_token", "per token", _PER_TOKEN),
        scaled("carbon_tco2eq", "carbon", _CARBON, " CO₂eq"),
        ("gpu_hours", "GPU-hours", digits),
        ("mfu", "MFU", percent),
    ]
    known = {key for key, *_ in rows if any(run.figures[key] is not None for run in comparison.runs)}
    return [row for row in rows if row[0] in known or row[0] != "energy_facility_kwh"]


def _change(difference: dict[str, float | None] | None) -> str:
    """The change against the first run: in %, or as a factor where that reads better."""
    relative = None if difference is None else difference["relative"]
    if relative is None:
        return ""
    if relative >= 4:
        return f"×{digits(1 + relative)}"
    return "=" if abs(relative) < 5e-4 else f"{100 * relative:+.3g} %".replace("-", "−")


def _table(comparison: Comparison, runs: list[Compared], rows: list[Any]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", width=HEAD, no_wrap=True)
    for run in runs:
        table.add_column(run.name, width=COLUMN - 2, overflow="fold")
    first = comparison.runs[0]
    blocked = {run.name: comparison.blocked(run) for run in runs if run is not first}
    changes = {run.name: comparison.differences(run) for run in runs if run is not first}
    for key, name, said in rows:
        cells = []
        for run in runs:
            value = run.figures[key]
            text = Text(UNKNOWN if value is None else said(value))
            if run is not first and value is not None:
                apart = key in blocked[run.name] and first.figures[key] is not None
                text.append(f"  {APART if apart else _change(changes[run.name][key])}".rstrip(), "dim")
            cells.append(text)
        table.add_row(name, *cells)
    table.add_row("purpose", *(Text(run.purpose) for run in runs))
    table.add_row("status", *(Text(_status(run)) for run in runs))
    return table


def _status(run: Compared) -> str:
    share = run.trained_fraction
    return f"{run.status}, {percent(share)}" if run.partial and share is not None else run.status


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Tables of as many runs as fit, each with the first; then what does not compare, and what was set otherwise."""
    rows, first, others = _rows(comparison), comparison.runs[0], comparison.runs[1:]
    width = max(80, console.width)
    fit = max(1, (width - HEAD - 2) // COLUMN - 1)
    for at in range(0, len(others), fit):
        if at:
            console.print()
        console.print(_table(comparison, [first, *others[at : at + fit]], rows))

    def say(text: str, indent: str = "  ") -> None:
        lines = textwrap.wrap(text, width - 1, subsequent_indent=indent, break_on_hyphens=False)
        console.print("\n".join(lines), markup=False, soft_wrap=True)

    console.print()
    say(f"Changes are against {first.name}; {UNKNOWN} is not known, which is not zero; {APART} does not compare.")
    for text in comparison.sentences():
        say(f"{text}.")
    for text in comparison.caveats():
        say(f"note: {text}")
    changed = comparison.changed_keys()
    if changed:
        console.print("\nset otherwise in the specs:")
        for key, values in list(changed.items())[:SHOWN_KEYS]:
            say(f"  {key}: {' | '.join(UNKNOWN if value is None else str(value) for value in values)}", "      ")
        if len(changed) > SHOWN_KEYS:
            console.print(f"  and {len(changed) - SHOWN_KEYS} more keys; --json has all")
