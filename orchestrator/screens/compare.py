"""How a comparison of runs looks: on a terminal, from 58 columns on, with colours; the same in a pipe, plain."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dashboards.comparison import SAME, sense_of
from energy.human import digits, human_count, percent

if TYPE_CHECKING:
    from dashboards.comparison import Compared, Comparison

UNKNOWN, APART = "–", "≠"
COLUMN, HEAD, HEAD_PIPE = 19, 20, 18  # columns of a run, and of the names of the rows
NARROWEST, PIPE = 58, 80
SHOWN_KEYS = 12
NOTE = "note:"
COLOURS = {"better": "green", "worse": "red"}
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
        ("mfu", "MFU (PaLM)", percent),
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
    return "=" if abs(relative) < SAME else f"{100 * relative:+.3g} %".replace("-", "−")


def _colour(key: str, difference: dict[str, float | None] | None) -> str:
    relative = None if difference is None else difference["relative"]
    return "dim" if relative is None or abs(relative) < SAME else COLOURS.get(sense_of(key, relative), "dim")


def _table(comparison: Comparison, runs: list[Compared], rows: list[Any], head: int) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", width=head, overflow="fold", style="dim")
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
                change = None if apart else changes[run.name][key]
                text.append(f"  {APART if apart else _change(change)}".rstrip(), _colour(key, change))
            cells.append(text)
        table.add_row(name, *cells)
    table.add_row("purpose", *(Text(run.purpose) for run in runs))
    table.add_row("status", *(Text(_status(run)) for run in runs))
    return table


def _add_settings(table: Table, comparison: Comparison, runs: list[Compared]) -> None:
    """The keys of the specs that are not the same in all runs; a value that is the first run's is dim."""
    table.add_row()
    table.add_row(Text("set otherwise", "not dim"))
    for key in list(comparison.changed_keys())[:SHOWN_KEYS]:
        first, *values = (run.spec.get(key) for run in runs)
        told = [(UNKNOWN if value is None else str(value), value == first) for value in values]
        cells = [Text(text, "dim" if same else "") for text, same in told]
        table.add_row(key, Text(UNKNOWN if first is None else str(first)), *cells)


def _status(run: Compared) -> str:
    share = run.trained_fraction
    return f"{run.status}, {percent(share)}" if run.partial and share is not None else run.status


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Tables of as many runs as fit, each with the first; then what does not compare, and what was set otherwise."""
    rows, first, others = _rows(comparison), comparison.runs[0], comparison.runs[1:]
    changed = comparison.changed_keys()
    width, head = max(PIPE, console.width), HEAD_PIPE
    if console.is_terminal:
        width, head = max(NARROWEST, console.width), HEAD
    fit = max(1, (width - head - 2) // COLUMN - 1)
    for at in range(0, len(others), fit):
        if at:
            console.print()
        runs = [first, *others[at : at + fit]]
        table = _table(comparison, runs, rows, head)
        if changed and console.is_terminal:
            _add_settings(table, comparison, runs)
        console.print(table)

    def say(text: str, style: str = "", indent: str = "  ") -> None:
        if console.is_terminal:  # by what a character takes there: of Chinese it is two columns
            lines = [str(line) for line in Text(text).wrap(console, width - len(indent))]
            text = f"\n{indent}".join(line.rstrip() for line in lines)
        else:
            text = "\n".join(textwrap.wrap(text, width - 1, subsequent_indent=indent, break_on_hyphens=False))
        said = Text(text)
        said.stylize(style, 0, len(NOTE) if text.startswith(NOTE) else len(text))
        console.print(said, soft_wrap=True)

    console.print()
    about = f"Changes are against {first.name}; {UNKNOWN} is not known, which is not zero; {APART} does not compare."
    say(about, "dim")
    for text in comparison.sentences():
        say(f"{text}.", "bold")
    for text in comparison.caveats():
        say(f"{NOTE} {text}", "yellow")
    if changed and not console.is_terminal:
        console.print("\nset otherwise in the specs:")
        for key, values in list(changed.items())[:SHOWN_KEYS]:
            said = " | ".join(UNKNOWN if value is None else str(value) for value in values)
            say(f"  {key}: {said}", indent="      ")
    if len(changed) > SHOWN_KEYS:
        console.print(f"  and {len(changed) - SHOWN_KEYS} more keys; --json has all")
