"""Runs as they are named on the command line: by their folder, or by their name in --runs."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from energy.runs import RunFolder


def named_run(run: Path, runs_dir: Path) -> Path:
    """The folder that is meant; it need not be there."""
    return run if (run / "run.json").exists() or not (runs_dir / run).exists() else runs_dir / run


def open_run(run: Path, runs_dir: Path) -> "RunFolder":
    """The run that is meant. UsageError where there is none, ValueError for one that a newer hoofprint wrote."""
    from energy.run_version import require_known
    from energy.runs import RunFolder

    path = named_run(run, runs_dir)
    folder = RunFolder(path)
    if not folder.run_file.exists():
        raise click.UsageError(
            f"{path} is not a run: it has no run.json; `hoofprint runs --runs DIR` lists those there"
        )
    require_known(path)
    return folder
