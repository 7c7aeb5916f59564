"""Commands around a run of training: run, report, generate, schema."""

import sys
from pathlib import Path

import click

from orchestrator.commands import JSON, RUNS, SET, print_json


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@SET
@RUNS
@JSON
@click.option("--name", "run_id", help="Name of the run folder; default: the experiment's name and the time.")
@click.option("--resume", type=click.Path(path_type=Path), help="Go on with this run from its newest checkpoint.")
@click.option("-q", "--quiet", is_flag=True)
def run(
    spec: Path,
    overrides: tuple[str, ...],
    runs_dir: Path,
    as_json: bool,
    run_id: str | None,
    resume: Path | None,
    quiet: bool,
) -> None:
    """Trains the experiment SPEC on Ray, metered, and writes its footprint and report."""
    from orchestrator.spec_file import load_experiment

    experiment = load_experiment(spec, overrides)
    from orchestrator.run import run_experiment
    from orchestrator.screen import RunScreen

    folder, code = run_experiment(experiment, runs_dir, RunScreen(quiet), run_id, resume)
    if as_json:
        click.echo((folder.path / "footprint.json").read_text(encoding="utf-8"))
    sys.exit(code)


@click.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@JSON
def report(run: Path, as_json: bool) -> None:
    """Writes the record and the report of RUN again, from its files alone."""
    from dashboards.report import write_report
    from energy.record import write_record
    from energy.runs import RunFolder

    folder = RunFolder(run.resolve())
    footprint = write_record(folder)
    html, markdown = write_report(folder)
    if as_json:
        print_json(footprint)
    else:
        click.echo(f"{html}\n{markdown}")


@click.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--prompt", required=True)
@click.option("--max-tokens", type=click.IntRange(min=1), default=100, show_default=True)
@click.option("--temperature", type=click.FloatRange(min=0), default=0.8, show_default=True, help="0 is greedy.")
@click.option("--top-p", type=click.FloatRange(min=0, max=1, min_open=True), default=0.95, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
def generate(run: Path, prompt: str, max_tokens: int, temperature: float, top_p: float, seed: int) -> None:
    """Continues a prompt with the newest checkpoint of RUN."""
    from orchestrator.generation import generate_text

    for text in generate_text(run, prompt, max_tokens, temperature, top_p, seed):
        click.echo(text, nl=False)
    click.echo()


@click.command()
def schema() -> None:
    """The JSON Schema of an experiment, for editors."""
    from orchestrator.spec import Experiment

    print_json(Experiment.model_json_schema(mode="validation"))
