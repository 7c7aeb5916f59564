"""The runs of a folder: `hoofprint runs`, and with --total what they took together."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.commands import JSON, RUNS, print_json
from orchestrator.commands.printing import FORMS, require_place, write_page

if TYPE_CHECKING:
    from energy.records.total import Entry

NAMED = 4  # runs that have a note; the rest is counted


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
        _print(found.entries, total)
    else:
        click.echo(f"no runs in {runs_dir}; make one: hoofprint run experiments/laptop.yaml --runs {runs_dir}")
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


def _print(entries: "Sequence[Entry]", total: dict[str, Any] | None) -> None:
    """Tables that fit the terminal; a pipe gets plain lines, with every name whole."""
    from orchestrator.screens import runs as screen

    columns = screen.run_columns(entries)
    sums = None if total is None else screen.total_columns(total)
    if not sys.stdout.isatty():
        for line in screen.plain(columns):
            click.echo(line)
        if total is not None and sums is not None:
            click.echo()
            for line in [*screen.plain(sums), *screen.plain_notes(screen.total_notes(total, sums))]:
                click.echo(line)
        return
    from rich.console import Console

    console = Console(highlight=False)
    screen.print_table(columns, console)
    if total is not None and sums is not None:
        console.print()
        screen.print_table(sums, console, last_is_total=True)
        screen.print_notes(screen.total_notes(total, sums, screen.NAME_WHOLE), console)


def _shortened(notes: list[str], rest: str) -> list[str]:
    return notes if len(notes) <= NAMED else [*notes[:NAMED], f"and {len(notes) - NAMED} more {rest}"]
