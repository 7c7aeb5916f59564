"""A look at a run while it goes on, in whatever process: top."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.commands import JSON, RUNS, print_json
from orchestrator.commands.named import open_run

if TYPE_CHECKING:
    from energy.runs import RunFolder

REFRESH_S = 1.0
LINE_EVERY_S = 60.0


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@RUNS
@JSON
@click.option("--once", is_flag=True, help="Show it once and end.")
def top(run: Path, runs_dir: Path, as_json: bool, once: bool) -> None:
    """Shows a RUN live: step, loss, power, energy, budget. Only looks: Ctrl-C ends the look, not the run.

    RUN is a run's folder, or its name in --runs. Not on a terminal: a line of key=value a minute.
    """
    from orchestrator.live import state as live_state
    from orchestrator.screens import top as screen_top

    folder = open_run(run, runs_dir)
    if as_json:
        print_json(screen_top.as_json(live_state.read(folder)))
        return
    try:
        (_draw if sys.stdout.isatty() else _print)(folder, once)
    except KeyboardInterrupt:
        click.echo(f"the run goes on; `hoofprint stop {folder.path}` stops it", err=True)


def _print(folder: "RunFolder", once: bool) -> None:
    """A line a minute, until the run ends."""
    from orchestrator.live import state as live_state
    from orchestrator.screens import top as screen_top

    while True:
        live = live_state.read(folder)
        click.echo(screen_top.plain(live, time.time()))
        if once or not live.at_work:
            return
        _wait(folder, LINE_EVERY_S)


def _draw(folder: "RunFolder", once: bool) -> None:
    """In place, until the run ends; then it stays on the terminal as it was at last."""
    from rich.console import Console, Group
    from rich.live import Live as Drawing

    from orchestrator.live import state as live_state
    from orchestrator.screens import top as screen_top

    console = Console(highlight=False)
    live = live_state.read(folder)
    if once:
        console.print(Group(*screen_top.lines(live, console.width, time.time())))
        return
    with Drawing(console=console, auto_refresh=False) as drawing:
        while True:
            drawing.update(Group(*screen_top.lines(live, console.width, time.time())), refresh=True)
            if not live.at_work:  # one that has ended still writes its record
                return
            time.sleep(REFRESH_S)
            live = live_state.read(folder)


def _wait(folder: "RunFolder", seconds: float) -> None:
    """Until a run has ended, or for so long."""
    from orchestrator.live import state as live_state

    until = time.monotonic() + seconds
    while time.monotonic() < until and live_state.read(folder).at_work:
        time.sleep(REFRESH_S)
