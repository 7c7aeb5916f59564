"""Figures of runs as files, and runs beside each other: plot, compare."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.commands import JSON, RUNS, print_json
from orchestrator.commands.named import open_run
from orchestrator.commands.printing import FORMS, require_place, write_page

if TYPE_CHECKING:
    from dashboards.figures import Drawing, Source
    from energy.carbon.series import IntensitySeries

OUTPUT = click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="FILE.svg, FILE.png or FILE.pdf."
)


def _source(run: Path, runs_dir: Path) -> "Source":
    from dashboards.figures import Source
    from energy.runs import RunFolder

    return Source(RunFolder(open_run(run, runs_dir).path.resolve()))


def _form(output: Path) -> str:
    from dashboards.figures import FORMATS

    form = output.suffix.removeprefix(".").lower()
    if form not in FORMATS:
        raise click.UsageError(
            f"-o {output}: expected a name that ends in .{', .'.join(FORMATS[:-1])} or .{FORMATS[-1]}"
        )
    require_place(None, output)
    return form


def _write(drawing: "Drawing", output: Path) -> None:
    from energy.runs import replace_file

    replace_file(output, drawing.file(_form(output)))


def _series(given: tuple[str, ...]) -> "dict[str, IntensitySeries]":
    from energy.carbon.series_file import read_series

    found = {}
    for text in given:
        place, sign, file = text.partition("=")
        if not sign or not place or not file:
            raise click.UsageError(f"--series {text!r}: expected PLACE=FILE.csv")
        if place in found:
            raise click.UsageError(f"--series {place} is given twice")
        if not Path(file).is_file():
            raise click.UsageError(f"--series {place}: there is no file {file}")
        found[place] = read_series(file)
    return found


@click.command()
@click.argument("run", required=False, type=click.Path(path_type=Path), metavar="[RUN|PLAN.json]")
@RUNS
@click.option("--figure", "name", help="Which figure; --list names them.")
@OUTPUT
@click.option("--x", help="Of the loss: against energy (default), tokens, flop or hours.")
@click.option("--series", multiple=True, metavar="PLACE=FILE", help="Of places: the grid's intensity elsewhere.")
@click.option("--list", "as_list", is_flag=True, help="The figures and what each needs; with RUN, which it can have.")
@JSON
def plot(
    run: Path | None, runs_dir: Path, name: str | None, output: Path | None, x: str | None, series: tuple[str, ...],
    as_list: bool, as_json: bool,
) -> None:  # fmt: skip
    """Draws one figure of RUN into a file: SVG, PNG or PDF, the same bytes for the same run.

    RUN is a run's folder, or its name in --runs; tornado and fan also take PLAN.json, which `hoofprint plan --json`
    prints. Hatched is what was modelled or assumed, not measured. A figure whose data is not there is not drawn: the
    message says what is missing (exit code 2).
    """
    of_plan = run is not None and run.is_file()
    if as_list:
        if of_plan:
            raise click.UsageError(f"--list is of a run, and {run} is a file; of a plan there are tornado and fan")
        _list(None if run is None else _source(run, runs_dir), as_json)
        return
    if as_json:
        raise click.UsageError("--json is for --list: a figure is a file")
    if name is None:
        raise click.UsageError("name a figure with --figure; `hoofprint plot --list` says which there are")
    if output is None:
        raise click.UsageError(f"say where to: -o {name}.svg (or .png, .pdf)")
    _form(output)
    if x is not None and name != "loss":
        raise click.UsageError(f"--x is for --figure loss, not {name}")
    if series and name != "places":
        raise click.UsageError(f"--series is for --figure places, not {name}")
    from dashboards.figures import AXES, make_figure, read_plan

    if x is not None and x not in AXES:
        raise click.UsageError(f"--x {x}: expected one of {', '.join(AXES)}")
    source = None if run is None or of_plan else _source(run, runs_dir)
    if source is not None:
        source.x, source.more_series = x or AXES[0], _series(series)
    drawing = make_figure(name, source, read_plan(run) if run is not None and of_plan else None)
    _write(drawing, output)
    for damage in source.account.damaged if source is not None and name != "llama-paper" else []:
        click.echo(f"note: {damage}", err=True)
    click.echo(output)


def _list(source: "Source | None", as_json: bool) -> None:
    from dashboards.figures import FIGURES, Missing, make_figure

    lacks: dict[str, str] = {}
    for name, entry in FIGURES.items():
        if source is not None and entry.make is not None:
            try:
                make_figure(name, source)
            except Missing as error:
                lacks[name] = str(error).partition(": ")[2]
    if as_json:
        rows = [{"figure": name, "shows": entry.shows, "needs": entry.needs} for name, entry in FIGURES.items()]
        of_run = [{} if source is None or FIGURES[row["figure"]].make is None else {"missing": lacks.get(row["figure"])}
                  for row in rows]  # fmt: skip
        print_json([row | more for row, more in zip(rows, of_run, strict=True)])
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for head in ("figure", "shows", "needs" if source is None else f"in {source.run.path.name}"):
        table.add_column(head, overflow="fold")
    for name, entry in FIGURES.items():
        state = entry.needs if source is None or entry.make is None else lacks.get(name, "there")
        table.add_row(name, entry.shows, state)
    Console(highlight=False, markup=False).print(table)


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN RUN...")
@RUNS
@click.option("--figure", "name", is_flag=False, flag_value="pareto", help="The figure that -o writes: pareto.")
@click.option("--format", "form", type=click.Choice(FORMS), help="A report of the comparison, into -o FILE.")
@OUTPUT
@JSON
def compare(
    runs: tuple[Path, ...], runs_dir: Path, name: str | None, form: str | None, output: Path | None, as_json: bool
) -> None:
    """Puts runs side by side: their figures, the change against the first, and what does not compare.

    RUN is a run's folder, or its name in --runs. With -o also a figure: loss against energy, and which runs no other
    beats in both. With --format html (or markdown, pdf) a report instead: one file, which opens offline and prints.
    """
    if len(runs) < 2:
        raise click.UsageError("a comparison needs two runs or more")
    if name not in (None, "pareto"):
        raise click.UsageError(f"--figure {name}: of several runs there is pareto (loss against energy)")
    if name is not None and output is None:
        raise click.UsageError("--figure needs -o FILE.svg (or .png, .pdf)")
    if form is not None:
        if output is None or name is not None or as_json:
            raise click.UsageError(
                "a report of a comparison is written by --format html (or markdown, pdf) -o FILE, and is alone"
            )
        require_place(form, output)
    elif output is not None:
        _form(output)
    from dashboards.comparison import compare as compare_runs

    sources = [_source(run, runs_dir) for run in runs]
    found = compare_runs(sources)
    if form is not None and output is not None:
        from dashboards.summaries import comparison_html, comparison_markdown

        page = comparison_markdown if form == "markdown" else comparison_html
        write_page(page(found, [source.record["energy"]["phases"] for source in sources]), form, output)
        click.echo(output)
        return
    if as_json:
        print_json(found.as_json())
    else:
        from rich.console import Console

        from orchestrator.screens.compare import print_comparison

        print_comparison(found, Console(highlight=False))
    if output is not None:
        _write(found.figure(), output)
        click.echo(output, err=True)
