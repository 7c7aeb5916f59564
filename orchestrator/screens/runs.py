"""How the runs of a folder, and what they took together, look: as tables on a terminal, as plain lines in a pipe."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from energy.boundaries import SHARES
from energy.human import Scales, digits, human_count, percent, scale_of
from energy.records.total import NOT_SAID, Entry

WIDTH, NARROWEST = 80, 40  # of the notes in a pipe, and of the tables on a terminal
UNKNOWN = "–"
NAMED = 4  # runs named of each thing that is missing; the rest is counted
GAP, LEAST_NAME = 2, 8
NAME_WHOLE, NAME_CUT = 40, 16  # columns that a name takes from what may be left out, if it is so long
AT_A_TIME = 200  # rows that are drawn together: the first of thousands are there at once
COLOURS = {"failed": "red", "lost": "red", "running": "cyan", "budget": "yellow", "stopped": "yellow"}
LEFT = ("name", "purpose", "status", "when")
_KWH: Scales = ((1e3, 1e3, "MWh"), (0.1, 1.0, "kWh"), (0.0, 1e-3, "Wh"))
_TONNE: Scales = ((1.0, 1.0, "t"), (1e-3, 1e-3, "kg"), (1e-6, 1e-6, "g"), (0.0, 1e-9, "mg"))


@dataclass
class Column:
    """One column of both forms. head: on a terminal, the unit beneath it; plain: in a pipe, "" for one that is only on
    a terminal, and there only where names have room enough. spare: what is left out first, from 1 on; 0: never."""

    head: str
    plain: str
    cells: list[str]
    unit: str = ""
    spare: int = 0
    styles: list[str] = field(default_factory=list)

    @property
    def width(self) -> int:
        """Terminal cells of its widest text."""
        return max(cell_len(text) for text in (self.head, self.unit, *self.cells))


def run_columns(entries: Sequence[Entry]) -> list[Column]:
    """A column for each figure of the runs, its unit chosen for all rows together."""
    kwh, energy = _unit((entry.energy_it_kwh for entry in entries), _KWH)
    tonnes, carbon = _unit((entry.carbon_tco2eq for entry in entries), _TONNE)
    tokens = [human_count(entry.tokens) if entry.tokens else UNKNOWN for entry in entries]
    losses = [UNKNOWN if entry.loss is None else f"{entry.loss:.3f}" for entry in entries]
    purposes = [UNKNOWN if entry.purpose == NOT_SAID else entry.purpose for entry in entries]
    hours = [_digits(entry.gpu_hours) for entry in entries]
    return [
        Column("name", "name", [entry.name for entry in entries]),
        Column("purpose", "", purposes, spare=1),
        Column("status", "status", [entry.status for entry in entries],
               styles=[COLOURS.get(entry.status, "") for entry in entries]),
        Column("tokens", "tokens", tokens, spare=3),
        Column("loss", "loss", losses, spare=4),
        Column("IT energy", energy, [_digits(entry.energy_it_kwh, kwh) for entry in entries], energy),
        Column("carbon", f"{carbon} CO2eq", [_digits(entry.carbon_tco2eq, tonnes) for entry in entries],
               f"{carbon} CO₂eq"),
        Column("GPU-hours", "", hours, spare=2),
        Column("when", "when", [_when(entry.start_unix_s) for entry in entries], spare=5),
    ]  # fmt: skip


def total_columns(total: Mapping[str, Any]) -> list[Column]:
    """By purpose, then what was metered twice, where that is known, then the total."""
    parts = [*total["by_purpose"].values(), total["total"]]
    kwh, energy = _unit((part[key] for part in parts for key in ("energy_it_kwh", "energy_facility_kwh")), _KWH)
    tonnes, carbon = _unit((part[key] for part in parts for key in ("carbon_tco2eq", "embodied_tco2eq")), _TONNE)
    twice = total["overlap"]
    names = [*total["by_purpose"], *(["metered twice"] if twice else []), "total"]

    def figures(key: str, size: float) -> list[str]:
        """A sum that lacks runs is a lower bound, and marked as one; at least zero says nothing, and is not known."""
        cells = []
        for part in parts:
            lacks = part[f"{key}_unknown_runs"] > 0
            said = _digits(part[key], size) + ("+" if lacks else "")
            cells.append(UNKNOWN if lacks and not part[key] else said)
        if twice:
            summed = key not in ("gpu_hours", "embodied_tco2eq")
            cells.insert(-1, _digits(-twice[key], size) if key in twice else UNKNOWN if summed else "")
        return cells

    counts = [str(part["runs"]) for part in parts]
    return [
        Column("purpose", "purpose", names),
        Column("runs", "runs", [*counts[:-1], *([""] if twice else []), counts[-1]]),
        Column("GPU-hours", "GPU-hours", figures("gpu_hours", 1.0), spare=2),
        Column("IT energy", f"IT {energy}", figures("energy_it_kwh", kwh), energy),
        Column("facility", f"facility {energy}", figures("energy_facility_kwh", kwh), energy, spare=3),
        Column("carbon", f"{carbon} CO2eq", figures("carbon_tco2eq", tonnes), f"{carbon} CO₂eq"),
        Column("embodied", f"embodied {carbon}", figures("embodied_tco2eq", tonnes), f"{carbon} CO₂eq", spare=1),
    ]


def plain(columns: Sequence[Column]) -> list[str]:
    """As lines for a pipe, every name whole."""
    kept = [column for column in columns if column.plain]
    widths = [max(len(text) for text in (column.plain, *column.cells)) for column in kept]
    widths[0] = max(LEAST_NAME, widths[0])
    lines = []
    for row in zip(*([column.plain, *column.cells] for column in kept), strict=True):
        cells = [cell.ljust(width) if column.head in LEFT else cell.rjust(width)
                 for column, cell, width in zip(kept, row, widths, strict=True)]  # fmt: skip
        lines.append((" " * GAP).join(cells).rstrip())
    return lines


def print_table(columns: Sequence[Column], console: Console, last_is_total: bool = False) -> None:
    """A table no wider than the terminal; where columns had to be left out for that, it says which."""
    room = max(NARROWEST, console.width)
    kept, name_width = _fitted(columns, room)
    cells = [_texts(column, 0 if place else name_width) for place, column in enumerate(kept)]
    rows = list(zip(*cells, strict=True))
    for start in range(0, len(rows), AT_A_TIME):
        table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="dim", show_header=start == 0)
        for place, column in enumerate(kept):
            head = f"{column.head}\n{column.unit}" if any(each.unit for each in kept) else column.head
            table.add_column(
                head,
                width=column.width if place else name_width,
                justify="left" if column.head in LEFT else "right",
                no_wrap=True,
            )
        for place, row in enumerate(rows[start : start + AT_A_TIME], start):
            table.add_row(*row, style="bold" if last_is_total and place == len(rows) - 1 else None)
        console.print(table)
    gone = [column.head for column in columns if column not in kept and column.plain]
    if gone:
        console.print(Text(f"no room for {', '.join(gone)}: a wider terminal or --json has it", "dim"))


def _fitted(columns: Sequence[Column], room: int) -> tuple[list[Column], int]:
    """(the columns that there is room for, that of the first one)."""
    kept = list(columns)
    longest = columns[0].width
    while True:
        left = room - sum(column.width + GAP for column in kept[1:])
        spare = min((column for column in kept if column.spare), key=lambda column: column.spare, default=None)
        wanted = min(longest, NAME_CUT if spare is None or spare.plain else NAME_WHOLE)
        if left >= wanted or spare is None:
            return kept, max(LEAST_NAME, min(longest, left))
        kept.remove(spare)


def _texts(column: Column, width: int) -> list[Text]:
    cells = [cut(cell, width) for cell in column.cells] if width else column.cells
    return [Text(cell, style) for cell, style in zip(cells, column.styles or [""] * len(cells), strict=True)]


def cut(name: str, width: int) -> str:
    """A long name without its middle: runs of one experiment differ at the end."""
    if cell_len(name) <= width:
        return name
    head, tail = name[: width - width // 2 - 1], name[len(name) - width // 2 :]
    while cell_len(head) + 1 + cell_len(tail) > width:  # of wide characters fewer fit
        head, tail = (head[:-1], tail) if len(head) >= len(tail) else (head, tail[1:])
    return f"{head}…{tail}"


def total_notes(total: Mapping[str, Any], columns: Sequence[Column], name_width: int = 10_000) -> list[tuple[str, str]]:
    """(what it is, text) of all that must be known of a total: of what it is made, and what of it is not known."""
    notes = []
    whole = total["total"]
    shares = [f"{percent(whole[key])} {key.removeprefix('share_')}" for key in SHARES if whole[key]]
    boundaries = [f"{name} ({count} run{'s' if count != 1 else ''})" for name, count in whole["boundaries"].items()]
    if boundaries:
        notes.append(("", f"of the IT energy {', '.join(shares)}; boundary {', '.join(boundaries)}"))
    if any("+" in cell for column in columns for cell in column.cells):
        notes.append(("", "+ at least: not every run knows this figure"))
    times = total["total_to_final"]["energy_it_kwh"]
    if times is not None and f"{times:.3g}" != "1" and not whole["energy_it_kwh_unknown_runs"]:
        notes.append(("", f"all runs together took {times:.3g} times the energy of the final ones"))
    for gap in total["missing"]:
        names = ", ".join(cut(name, name_width) for name in gap["runs"][:NAMED])
        more = f" and {len(gap['runs']) - NAMED} more" if len(gap["runs"]) > NAMED else ""
        notes.append(("missing", f"{gap['what']} ({names}{more})"))
    return notes


def plain_notes(notes: Iterable[tuple[str, str]]) -> list[str]:
    lines = []
    for what, text in notes:
        said = f"{what}: {text}" if what else text
        lines += textwrap.wrap(said, WIDTH - 1, subsequent_indent="  ", break_on_hyphens=False)  # names have hyphens
    return lines


def print_notes(notes: Iterable[tuple[str, str]], console: Console) -> None:
    console.print()
    for what, text in notes:
        if not what:
            console.print(Text(text))
            continue
        pair = Table.grid(padding=(0, GAP, 0, 0))
        pair.add_column(no_wrap=True)
        pair.add_column(overflow="fold")
        pair.add_row(Text(what, "yellow"), Text(text))
        console.print(Padding(pair, 0), width=max(NARROWEST, console.width))


def _unit(values: Iterable[float | None], scales: Scales) -> tuple[float, str]:
    """(size of the unit, unit) of a column: one for all its rows, by the largest, so that it can be read down."""
    most = max((value for value in values if value is not None), default=0.0)
    return scale_of(most or 1.0, scales)


def _digits(value: float | None, unit: float = 1.0) -> str:
    return UNKNOWN if value is None else digits(value / unit)


def _when(unix_s: float | None) -> str:
    return UNKNOWN if unix_s is None else datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d")
