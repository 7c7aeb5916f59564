"""What an experiment will take, before anything starts: plan."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.commands import JSON, RUNS, SET, print_json

if TYPE_CHECKING:
    from orchestrator.spec.experiment import Experiment


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@SET
@RUNS
@click.option("--sweep", "sweep_text", metavar="KEY=RANGE", help="One plan per value: cluster.nodes=8..256.")
@click.option("--throughput", default="auto", show_default=True, metavar="FROM",
              help="auto, runs, published, or a published system such as llama_paper.")  # fmt: skip
@click.option("--mfu", type=float, help="Model FLOP utilisation to plan with (PaLM convention, 0 to 1).")
@click.option("--tokens-per-s-per-gpu", type=float, help="Throughput to plan with.")
@click.option("--gpu-hour-price", type=float, help="Price of a GPU-hour, in your currency.")
@click.option("--budget", metavar="LIMIT", help="Show the plan against a limit: 500 MWh, 170 tCO2eq, 30 d.")
@click.option("--failures-per-gpu-hour", type=float, help="Interruptions to expect.  [default: published]")
@click.option("--checkpoint-bandwidth-gb-s", type=float, help="Of the whole storage.  [default: published]")
@click.option("--restart-minutes", type=float, help="From an interruption to training again.  [default: published]")
@click.option("--sharding", is_flag=True, help="Print what lies on each rank instead, parameter by parameter.")
@JSON
def plan(
    spec: Path,
    overrides: tuple[str, ...],
    runs_dir: Path,
    sweep_text: str | None,
    throughput: str,
    mfu: float | None,
    tokens_per_s_per_gpu: float | None,
    gpu_hour_price: float | None,
    budget: str | None,
    failures_per_gpu_hour: float | None,
    checkpoint_bandwidth_gb_s: float | None,
    restart_minutes: float | None,
    sharding: bool,
    as_json: bool,
) -> None:
    """Predicts FLOP, memory, time, energy, carbon and cost of SPEC, low to high; starts nothing.

    Tokens/s come from earlier runs of the same model on the same hardware in --runs, else from published figures.
    """
    from orchestrator.budget.plan import budgets_of_plan
    from orchestrator.plan import PlanOptions, Reliability, make_plan
    from orchestrator.spec.file import load_experiment

    options = PlanOptions(
        throughput=throughput,
        mfu=mfu,
        tokens_per_s_per_gpu=tokens_per_s_per_gpu,
        gpu_hour_price=gpu_hour_price,
        budget=budget,
        reliability=Reliability(failures_per_gpu_hour, checkpoint_bandwidth_gb_s, restart_minutes),
    )
    start_with = shlex.join(["hoofprint", "run", str(spec), *(part for each in overrides for part in ("--set", each))])
    if sweep_text is not None:
        if sharding:
            raise click.UsageError("--sharding is of one plan: leave out --sweep")
        _sweep(spec, overrides, runs_dir, sweep_text, options, start_with, as_json)
        return
    experiment = load_experiment(spec, overrides)
    if sharding:
        if as_json:
            raise click.UsageError("--sharding is a table for people: leave out --json")
        click.echo(_sharding_table(experiment), nl=False)
        return
    result = make_plan(experiment, runs_dir, options)
    result["spec_budget"] = budgets_of_plan(experiment, result)
    if as_json:
        print_json(result)
        return
    from rich.console import Console

    from orchestrator.plan.screen import print_plan

    print_plan(result, start_with, Console(highlight=False))


def _sharding_table(experiment: "Experiment") -> str:
    """What lies where, of the weights alone; a run writes it to logs/sharding.txt. Loads torch, which no plan needs."""
    import torch

    from model.sharding import Layout, sharding_plan
    from model.transformer import Llama
    from orchestrator.plan.planned_model import planned_config

    cluster = experiment.cluster
    warnings: list[str] = []
    layout = Layout.of(cluster.workers, replicas=cluster.replicas, tensor=cluster.tensor_parallel)
    with torch.device("meta"):
        model = Llama(planned_config(experiment, warnings))
    on_gpus = cluster.device != "cpu" and (cluster.accelerator is not None or cluster.device == "cuda")
    for warning in warnings:
        click.echo(f"hoofprint: {warning}", err=True)
    return sharding_plan(model, layout, prefetch=1 if on_gpus else 0).table()


def _sweep(
    spec: Path, overrides: Sequence[str], runs_dir: Path, text: str, options: object, start_with: str, as_json: bool
) -> None:
    from orchestrator.plan import PlanOptions
    from orchestrator.plan.sweep import parse_sweep, run_sweep
    from orchestrator.spec.file import load_experiment

    assert isinstance(options, PlanOptions)
    sweep = parse_sweep(text)
    name = load_experiment(spec, overrides).name
    result = run_sweep(lambda more: load_experiment(spec, [*overrides, *more]), sweep, runs_dir, options)
    if as_json:
        print_json({"name": name, **result})
        return
    from rich.console import Console

    from orchestrator.plan.sweep_screen import print_sweep

    print_sweep(result, name, f"{start_with} --set {sweep.key}=...", Console(highlight=False))
