"""The command line. torch, ray, pandas and matplotlib are imported only inside the commands that use them."""

import json
import sys
from pathlib import Path
from typing import Any

import click

RUNS = click.option("--runs", "runs_dir", type=click.Path(path_type=Path), default=Path("runs"), show_default=True)
JSON = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, all else on stderr.")
SET = click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Override a key of the spec.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hoofprint")
def cli() -> None:
    """Trains LLaMA on Ray and FSDP, and accounts for every joule, FLOP and gram of CO2 a run took."""


@cli.command()
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


@cli.command()
@click.option("--gpu", help="Accelerator whose rated power is taken when --gpu-power-w is not given.")
@click.option("--gpu-hours", type=float, required=True)
@click.option("--gpu-power-w", type=float)
@click.option("--pue", type=float)
@click.option("--intensity-g-per-kwh", type=float)
@click.option("--preset", type=click.Choice(["llama_paper"]), help="0.385 kg/kWh, PUE 1.1, 400 W.")
@JSON
def estimate(
    gpu: str | None,
    gpu_hours: float,
    gpu_power_w: float | None,
    pue: float | None,
    intensity_g_per_kwh: float | None,
    preset: str | None,
    as_json: bool,
) -> None:
    """The LLaMA paper's formula: GPU-hours x watts x PUE x grid intensity."""
    from energy.factors import accelerator
    from energy.formula import estimate
    from energy.formula import preset as named_preset

    known: dict[str, Any] = named_preset(preset) if preset else {}
    if gpu and not preset:
        known["gpu_power_w"] = accelerator(gpu).tdp_w
    given = {"gpu_power_w": gpu_power_w, "pue": pue, "intensity_g_per_kwh": intensity_g_per_kwh}
    figures = known | {key: value for key, value in given.items() if value is not None}
    missing = [f"--{key.replace('_', '-')}" for key in given if figures.get(key) is None]
    if missing:
        raise click.UsageError(f"missing {', '.join(missing)}; nothing is guessed (or take --preset llama_paper)")
    result = estimate(gpu_hours=gpu_hours, **figures)
    if as_json:
        _print_json(result)
        return
    click.echo(
        f"{gpu_hours:,.0f} GPU-hours x {result['gpu_power_w']:g} W = {result['energy_it_kwh'] / 1e3:,.2f} MWh IT; "
        f"x PUE {result['pue']:g} = {result['energy_facility_kwh'] / 1e3:,.2f} MWh; "
        f"x {result['intensity_g_per_kwh']:g} g/kWh = {result['carbon_tco2eq']:,.2f} tCO2eq"
    )


@cli.command()
@JSON
def published(as_json: bool) -> None:
    """Published footprints recomputed beside what was printed (LLaMA paper, Table 15)."""
    from energy.published import published

    rows = published()
    if as_json:
        _print_json(rows)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "MWh printed", "recomputed", "t printed", "recomputed", "agrees")
    notes = []
    for row in rows:
        if row["note"]:
            notes.append(row["note"])
        table.add_row(
            row["model"] + (f" [{len(notes)}]" if row["note"] else ""),
            f"{row['printed_mwh']:g}",
            f"{row['energy_facility_mwh']:.2f}",
            f"{row['printed_tco2eq']:g}",
            f"{row['carbon_tco2eq']:.2f}",
            "yes" if row["agrees"] else "no",
        )
    console = Console(highlight=False)
    console.print(table)
    for number, note in enumerate(notes, start=1):
        console.print(f"[{number}] {note}", markup=False)


@cli.command()
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
        _print_json(footprint)
    else:
        click.echo(f"{html}\n{markdown}")


@cli.command()
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


@cli.command()
def schema() -> None:
    """The JSON Schema of an experiment, for editors."""
    from orchestrator.spec import Experiment

    _print_json(Experiment.model_json_schema(mode="validation"))


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def main() -> None:
    """Entry point: a user's mistake is a message and exit code 2, never a traceback."""
    try:
        cli(standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("stopped", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except ValueError as error:
        click.echo(f"hoofprint: {error}", err=True)
        sys.exit(2)
