"""Commands around a run of training: run, schema."""

import sys
from pathlib import Path

import click

from orchestrator.commands import JSON, RUNS, SET, print_json
from orchestrator.commands.named import named_run


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@SET
@RUNS
@JSON
@click.option("--name", "run_id", help="Name of the run folder; default: the experiment's name and the time.")
@click.option("--resume", type=click.Path(path_type=Path), help="Go on with this run from its newest checkpoint.")
@click.option(
    "--profile", "profile_steps", type=click.IntRange(min=1), help="Record this many steps of rank 0: where time goes."
)
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but what went wrong.")
@click.option("-v", "--verbose", is_flag=True, help="Also show Ray's log and, of an error, the traceback.")
def run(
    spec: Path,
    overrides: tuple[str, ...],
    runs_dir: Path,
    as_json: bool,
    run_id: str | None,
    resume: Path | None,
    profile_steps: int | None,
    quiet: bool,
    verbose: bool,
) -> None:
    """Trains the experiment SPEC on Ray, metered, and writes its footprint and report."""
    from energy.runs import require_run_name
    from orchestrator.spec.file import load_experiment

    if resume is not None and run_id is not None:
        raise click.UsageError("--resume goes on with a run under its own name: leave --name out")
    if run_id is not None:
        require_run_name(run_id)
    experiment = load_experiment(spec, overrides, need_files=True)
    resume = None if resume is None else named_run(resume, runs_dir)
    from orchestrator.driver.run import run_experiment
    from orchestrator.screens.run import RunScreen

    screen = RunScreen(quiet, verbose)
    folder, code = run_experiment(experiment, runs_dir, screen, run_id, resume, spec, profile_steps or 0)
    footprint = folder.path / "footprint.json"
    if as_json and footprint.exists():
        click.echo(footprint.read_text(encoding="utf-8"), nl=False)
    sys.exit(code)


@click.command()
@click.option("--record", is_flag=True, help="Of a record (footprint.json), instead of an experiment.")
@click.option("--markdown", is_flag=True, help="Of an experiment, for people: each key and what it means.")
def schema(record: bool, markdown: bool) -> None:
    """The JSON Schema of an experiment, for editors, or of a record."""
    if record and markdown:
        raise click.UsageError("--markdown is of an experiment: leave out --record")
    if markdown:
        from orchestrator.spec.keys_page import keys_page

        click.echo(keys_page(), nl=False)
        return
    if record:
        from energy.schemas import record_schema

        print_json(record_schema())
        return
    from orchestrator.spec.experiment import Experiment

    print_json(Experiment.model_json_schema(mode="validation"))
