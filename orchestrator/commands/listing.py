"""The runs of a folder: `hoofprint runs`, and with --total what they took together."""

import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.commands import JSON, RUNS, print_json
from orchestrator.commands.printing import FORMS, require_place, write_page

if TYPE_CHECKING:
    from energy.human import Scales
    from energy.records.total import Entry

WIDTH = 80
UNKNOWN = "–"
NAMED = 4  # runs named of each thing that is missing; the rest is counted
COLOURS = {"failed": "red", "lost": "red", "running": "cyan", "budget": "yellow", "stopped": "yellow"}
_KWH = ((1e3, 1e3, "MWh"), (0.1, 1.0, "kWh"), (0.0, 1e-3, "Wh"))
_TONNE = ((1.0, 1.0, "t"), (1e-3, 1e-3, "kg"), (1e-6, 1e-6, "g"), (0.0, 1e-9, "mg"))


@click.command()
@RUNS
@click.option("--total", "with_total", is_flag=True, help="Also what they took together, by purpose.")
@click.option("--format", "form", type=click.Choice(FORMS), help="With --total: a report of the project, into -o FILE.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Where the report goes.")
@JSON
def runs(runs_dir: Path, with_total: bool, form: str | None, output: Path | None, as_json: bool) -> None:
    """Lists the runs of a folder: how they ended, and the energy and carbon of each, failed ones too.

    Figures are of each run's record (IT energy and location-based carbon); – is not known, which is not zero. With
    --total --format html (or markdown, pdf) a report of the project is written: one file, which opens offline and
    prints.
    """
    if form is not None or output is not None:
        _write_total(runs_dir, with_total, form, output, as_json)
        return
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
        for line in _coloured(table(found.entries), found.entries):
            click.echo(line)
    else:
        click.echo(f"no runs in {runs_dir}; make one: hoofprint run experiments/laptop.yaml --runs {runs_dir}")
    if total is not None and found.entries:
        click.echo()
        for line in total_lines(total):
            click.echo(click.style(line, bold=line.startswith(("purpose ", "total "))))
    notes = [f"{entry.name}: {entry.note}" for entry in found.entries if entry.note]
    for text in [*found.left_out, *([] if with_total else _shortened(notes, "runs have a note; --json names them"))]:
        click.echo(f"left out: {text}" if text in found.left_out else text, err=True)


def _write_total(runs_dir: Path, with_total: bool, form: str | None, output: Path | None, as_json: bool) -> None:
    if not with_total or form is None or output is None or as_json:
        raise click.UsageError("a report of a project is written by --total --format html (or markdown, pdf) -o FILE")
    require_place(form, output)
    from dashboards.summaries import total_html, total_markdown
    from energy.records.total import project_total

    found, total = project_total(runs_dir)
    if not found.entries:
        raise click.UsageError(
            f"no runs in {runs_dir}: there is nothing to report; give the folder of the runs: --runs DIR"
        )
    page = total_markdown if form == "markdown" else total_html
    write_page(page(found, total, f"Runs in {runs_dir.resolve().name}"), form, output)
    click.echo(output)


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

    kwh, energy = _unit((entry.energy_it_kwh for entry in entries), _KWH)
    tonnes, carbon = _unit((entry.carbon_tco2eq for entry in entries), _TONNE)
    rows: list[Sequence[str]] = [("name", "status", "tokens", "loss", energy, f"{carbon} CO2eq", "when")]
    for entry in entries:
        rows.append(
            (
                entry.name,
                entry.status,
                human_count(entry.tokens) if entry.tokens else UNKNOWN,
                UNKNOWN if entry.loss is None else f"{entry.loss:.3f}",
                _digits(entry.energy_it_kwh, kwh),
                _digits(entry.carbon_tco2eq, tonnes),
                _when(entry.start_unix_s),
            )
        )
    return _aligned(rows, _room() if room is None else room)


def _unit(values: Iterable[float | None], scales: "Scales") -> tuple[float, str]:
    """(size of the unit, unit) of a column: one for all its rows, by the largest, so that it can be read down."""
    from energy.human import scale_of

    most = max((value for value in values if value is not None), default=0.0)
    return scale_of(most or 1.0, scales)


def _coloured(lines: list[str], entries: "Sequence[Entry]") -> list[str]:
    """The list with its heads and how each run ended in colour; a pipe is sent none."""
    at = lines[0].index("status")
    found = [click.style(lines[0], bold=True)]
    for line, entry in zip(lines[1:], entries, strict=True):
        end = at + len(entry.status)
        found.append(line[:at] + click.style(line[at:end], fg=COLOURS.get(entry.status)) + line[end:])
    return found


def total_lines(total: dict[str, Any], room: int | None = None) -> list[str]:
    """The total by purpose, what of it is not known, and how many times the final runs it is."""
    room = _room() if room is None else room
    parts = [*total["by_purpose"].values(), total["total"]]
    kwh, energy = _unit((part[key] for part in parts for key in ("energy_it_kwh", "energy_facility_kwh")), _KWH)
    tonnes, carbon = _unit((part[key] for part in parts for key in ("carbon_tco2eq", "embodied_tco2eq")), _TONNE)
    sizes = {"energy_it_kwh": kwh, "energy_facility_kwh": kwh, "carbon_tco2eq": tonnes, "embodied_tco2eq": tonnes}
    rows: list[Sequence[str]] = [
        ("purpose", "runs", "GPU-hours", f"IT {energy}", f"facility {energy}", f"{carbon} CO2eq", f"embodied {carbon}")
    ]
    for name, part in total["by_purpose"].items():
        rows.append((name, str(part["runs"]), *_figures(part, sizes)))
    twice = total["overlap"]
    if twice:
        keys = ("energy_it_kwh", "energy_facility_kwh", "carbon_tco2eq")
        cells = [_digits(-twice[key], sizes[key]) if key in twice else UNKNOWN for key in keys]
        rows.append(("metered twice", "", "", *cells, ""))
    rows.append(("total", str(total["total"]["runs"]), *_figures(total["total"], sizes)))
    lines = _aligned(rows, room)
    lines += textwrap.wrap(_of_what(total["total"]), WIDTH - 1, subsequent_indent="  ")
    if any("+" in cell for row in rows for cell in row):
        lines.append("+ at least: not every run knows this figure")
    times = total["total_to_final"]["energy_it_kwh"]
    if times is not None and f"{times:.3g}" != "1":
        lines.append(f"all runs together took {times:.3g} times the energy of the final ones")
    for gap in total["missing"]:
        names = ", ".join(gap["runs"][:NAMED])
        more = f" and {len(gap['runs']) - NAMED} more" if len(gap["runs"]) > NAMED else ""
        text = f"missing: {gap['what']} ({names}{more})"
        lines += textwrap.wrap(text, WIDTH - 1, subsequent_indent="  ", break_on_hyphens=False)  # names have hyphens
    return lines


def _of_what(whole: dict[str, Any]) -> str:
    """What share of the total was measured, modelled or assumed, and which boundaries it sums up; '' of none."""
    from energy.boundaries import SHARES
    from energy.human import percent

    shares = [f"{percent(whole[key])} {key.removeprefix('share_')}" for key in SHARES if whole[key]]
    boundaries = [f"{name} ({count} run{'s' if count != 1 else ''})" for name, count in whole["boundaries"].items()]
    return f"of the IT energy {', '.join(shares)}; boundary {', '.join(boundaries)}" if boundaries else ""


def _figures(part: dict[str, Any], sizes: dict[str, float]) -> list[str]:
    """A sum that lacks runs is a lower bound, and marked as one; at least zero says nothing, and is not known."""
    keys = ("gpu_hours", "energy_it_kwh", "energy_facility_kwh", "carbon_tco2eq", "embodied_tco2eq")
    cells = []
    for key in keys:
        lacks = part[f"{key}_unknown_runs"] > 0
        said = _digits(part[key], sizes.get(key, 1.0)) + ("+" if lacks else "")
        cells.append(UNKNOWN if lacks and not part[key] else said)
    return cells


def _digits(value: float | None, unit: float = 1.0) -> str:
    from energy.human import digits

    return UNKNOWN if value is None else digits(value / unit)


def _when(unix_s: float | None) -> str:
    return UNKNOWN if unix_s is None else datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d")
