"""The runs of a folder: `hoofprint runs`, and with --total what they took together."""

import shutil
import sys
import textwrap
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.commands import JSON, RUNS, print_json

if TYPE_CHECKING:
    from energy.records.total import Entry

WIDTH = 80
UNKNOWN = "–"
NAMED = 4  # runs named of each thing that is missing; the rest is counted
HEADS = ("name", "status", "tokens", "loss", "kWh", "tCO2eq", "when")
TOTAL_HEADS = ("purpose", "runs", "GPU-hours", "IT kWh", "facility kWh", "tCO2eq", "embodied t")


@click.command()
@RUNS
@click.option("--total", "with_total", is_flag=True, help="Also what they took together, by purpose.")
@JSON
def runs(runs_dir: Path, with_total: bool, as_json: bool) -> None:
    """Lists the runs of a folder: how they ended, and the energy and carbon of each, failed ones too.

    Figures are of each run's record (IT energy and location-based carbon); – is not known, which is not zero.
    """
    from energy.records.total import project_total, read_runs

    if with_total:
        found, total = project_total(runs_dir)
    else:
        found, total = read_runs(runs_dir), None
    if as_json:
        document: dict[str, Any] = {
            "runs": [entry.as_json() for entry in found.entries],
            "left_out": found.left_out,
        }
        print_json(document | ({"total": total} if total is not None else {}))
        return
    if found.entries:
        for line in table(found.entries):
            click.echo(line)
    else:
        click.echo(f"no runs in {runs_dir}")
    if total is not None and found.entries:
        click.echo()
        for line in total_lines(total):
            click.echo(line)
    notes = [f"{entry.name}: {entry.note}" for entry in found.entries if entry.note]
    for text in [*found.left_out, *([] if with_total else _shortened(notes, "runs have a note; --json names them"))]:
        click.echo(f"left out: {text}" if text in found.left_out else text, err=True)


def _shortened(notes: list[str], rest: str) -> list[str]:
    return notes if len(notes) <= NAMED else [*notes[:NAMED], f"and {len(notes) - NAMED} more {rest}"]


def _aligned(rows: Sequence[Sequence[str]], room: int, gap: str = "  ") -> list[str]:
    """Columns, the first to the left and as wide as `room` leaves it, status and date to the left, numbers right."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    rest = sum(widths[1:]) + len(gap) * (len(widths) - 1)
    widths[0] = max(8, min(widths[0], room - rest))
    left = {k for k, head in enumerate(rows[0]) if head in ("name", "status", "when", "purpose")}
    lines = []
    for row in rows:
        cells = [_cut(row[0], widths[0]), *row[1:]]
        parts = [cell.ljust(widths[k]) if k in left else cell.rjust(widths[k]) for k, cell in enumerate(cells)]
        lines.append(gap.join(parts).rstrip())
    return lines


def _cut(name: str, width: int) -> str:
    """A long name without its middle: runs of one experiment differ at the end."""
    if len(name) <= width:
        return name
    tail = width // 2
    return f"{name[: width - tail - 1]}…{name[len(name) - tail :]}"


def _room() -> int:
    """Columns: those of the terminal; a pipe gets every name whole."""
    return max(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns) if sys.stdout.isatty() else 10_000


def table(entries: "Sequence[Entry]", room: int | None = None) -> list[str]:
    """The list of runs as lines of at most `room` columns (80 and more)."""
    from energy.human import human_count

    rows: list[Sequence[str]] = [HEADS]
    for entry in entries:
        rows.append(
            (
                entry.name,
                entry.status,
                human_count(entry.tokens) if entry.tokens else UNKNOWN,
                UNKNOWN if entry.loss is None else f"{entry.loss:.3f}",
                _digits(entry.energy_it_kwh),
                _digits(entry.carbon_tco2eq),
                _when(entry.start_unix_s),
            )
        )
    return _aligned(rows, _room() if room is None else room)


def total_lines(total: dict[str, Any], room: int | None = None) -> list[str]:
    """The total by purpose, what of it is not known, and how many times the final runs it is."""
    room = _room() if room is None else room
    rows: list[Sequence[str]] = [TOTAL_HEADS]
    for name, part in total["by_purpose"].items():
        rows.append((name, str(part["runs"]), *_figures(part)))
    twice = total["overlap"]
    if twice:
        keys = ("energy_it_kwh", "energy_facility_kwh", "carbon_tco2eq")
        rows.append(("metered twice", "", "", *(_digits(-twice[key] if key in twice else None) for key in keys), ""))
    rows.append(("total", str(total["total"]["runs"]), *_figures(total["total"])))
    lines = _aligned(rows, room)
    if any("+" in cell for row in rows for cell in row):
        lines.append("+ at least: not every run knows this figure")
    times = total["total_to_final"]["energy_it_kwh"]
    if times is not None and f"{times:.3g}" != "1":
        lines.append(f"all runs together took {times:.3g} times the energy of the final ones")
    for gap in total["missing"]:
        names = ", ".join(gap["runs"][:NAMED])
        more = f" and {len(gap['runs']) - NAMED} more" if len(gap["runs"]) > NAMED else ""
        lines += textwrap.wrap(f"missing: {gap['what']} ({names}{more})", WIDTH - 1, subsequent_indent="  ")
    return lines


def _figures(part: dict[str, Any]) -> list[str]:
    """A sum that lacks runs is a lower bound, and marked as one; at least zero says nothing, and is not known."""
    keys = ("gpu_hours", "energy_it_kwh", "energy_facility_kwh", "carbon_tco2eq", "embodied_tco2eq")
    cells = []
    for key in keys:
        lacks = part[f"{key}_unknown_runs"] > 0
        cells.append(UNKNOWN if lacks and not part[key] else _digits(part[key]) + ("+" if lacks else ""))
    return cells


def _digits(value: float | None) -> str:
    from energy.human import digits

    return UNKNOWN if value is None else digits(value)


def _when(unix_s: float | None) -> str:
    return UNKNOWN if unix_s is None else datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d")
