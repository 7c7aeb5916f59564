"""Commands that compute from published figures alone: estimate, published."""

import textwrap
from typing import Any

import click

from orchestrator.commands import JSON, print_json


@click.command()
@click.option("--gpu", help="Accelerator whose rated power is taken when --gpu-power-w is not given.")
@click.option("--gpu-hours", type=float, required=True)
@click.option("--gpu-power-w", type=float)
@click.option("--pue", type=float)
@click.option("--intensity-g-per-kwh", type=float)
@click.option(
    "--grid", metavar="PLACE", help="Take the intensity of a country, US state or cloud region: FR, us-west-2."
)
@click.option(
    "--preset", metavar="NAME", help="llama_paper: 0.385 kg/kWh, PUE 1.1, 400 W. `hoofprint factors preset` has all."
)
@JSON
def estimate(
    gpu: str | None,
    gpu_hours: float,
    gpu_power_w: float | None,
    pue: float | None,
    intensity_g_per_kwh: float | None,
    grid: str | None,
    preset: str | None,
    as_json: bool,
) -> None:
    """The LLaMA paper's formula: GPU-hours x watts x PUE x grid intensity."""
    from energy.carbon.formula import estimate
    from energy.checking.checks import Claim, check_claim, power_warning
    from energy.factors import preset_factors, rated_power
    from energy.human import digits, human_carbon, human_energy

    # Of a figure the last one named stands: a preset's, then a table's by the name of a device or place, then a number.
    factors = dict(preset_factors(preset)) if preset else {}
    if gpu:
        factors["gpu_power_w"] = rated_power(gpu)
    if grid is not None and intensity_g_per_kwh is not None:
        raise click.UsageError("--grid and --intensity-g-per-kwh both give the intensity; take one")
    if grid is not None:
        from energy.carbon.grid import intensity

        factors["intensity_g_per_kwh"] = intensity(grid)
    given = {"gpu_power_w": gpu_power_w, "pue": pue, "intensity_g_per_kwh": intensity_g_per_kwh}
    factors = {key: factors[key] for key, value in given.items() if value is None and key in factors}
    figures: dict[str, Any] = given | {key: factor.value for key, factor in factors.items()}
    ways = {"gpu_power_w": " (or --gpu NAME)", "intensity_g_per_kwh": " (or --grid PLACE)"}
    if gpu and figures["gpu_power_w"] is None:
        raise click.UsageError(f"no rated power is known for {gpu}: give --gpu-power-w")
    missing = [f"--{key.replace('_', '-')}{ways.get(key, '')}" for key in given if figures.get(key) is None]
    if missing:
        raise click.UsageError(f"missing {', '.join(missing)}; nothing is guessed (or take --preset llama_paper)")
    result = estimate(gpu_hours=gpu_hours, **figures)
    odd = power_warning(result["gpu_power_w"], gpu)
    told = check_claim(Claim("", pue=result["pue"], intensity_g_per_kwh=result["intensity_g_per_kwh"]))
    result["warnings"] = [*([odd] if odd else []), *(finding.message for finding in told)]
    result["factors"] = [factor.as_dict() for factor in factors.values()]
    if grid is not None:
        result["intensity_factor"] = factors["intensity_g_per_kwh"].as_dict()
    for warning in result["warnings"]:
        click.echo(f"warning: {warning}", err=True)
    if as_json:
        print_json(result)
        return
    click.echo(
        f"{digits(gpu_hours)} GPU-hours x {result['gpu_power_w']:g} W = {human_energy(result['energy_it_kwh'])} IT; "
        f"x PUE {result['pue']:g} = {human_energy(result['energy_facility_kwh'])}; "
        f"x {result['intensity_g_per_kwh']:g} g/kWh = {human_carbon(result['carbon_tco2eq'])}"
    )
    if grid is not None:
        click.echo(f"intensity of {grid}: {factors['intensity_g_per_kwh']}")


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 9999.5 else f"{value:,.2f}"


def _printed(value: float | None) -> str:
    return "-" if value is None else f"{value:,.10g}"


@click.command()
@JSON
def published(as_json: bool) -> None:
    """Published footprints recomputed beside what was printed, agreeing or explained.

    Table 15 of the LLaMA paper, Patterson et al. 2021, Llama 2 and 3, BLOOM, OPT and OLMo.
    """
    from energy.checking.published import published

    rows = published()
    if as_json:
        print_json(rows)
        return
    click.echo(f"{'':<27}{'MWh':>9}{'MWh ':>11}{'tCO2eq':>9}{'tCO2eq':>10}")
    click.echo(f"{'':<27}{'printed':>9}{'again ':>11}{'printed':>9}{'again':>10}  agrees")
    notes: list[str] = []
    source = ""
    for row in rows:
        if row["source"] != source:
            source = row["source"]
            click.echo(source)
        if row["note"] and row["note"] not in notes:
            notes.append(row["note"])
        name = row["model"] if len(row["model"]) <= 24 else row["model"][:23] + "…"
        inside = row["energy_mwh"] is not None and row["energy_boundary"] != "facility"
        again = _figure(row["energy_mwh"]) + ("*" if inside else " ")
        agrees = {True: "yes", False: "no", None: "-"}[row["agrees"]]
        agrees += f" [{notes.index(row['note']) + 1}]" if row["note"] else ""
        click.echo(
            f"  {name:<25}{_printed(row['printed_mwh']):>9}{again:>11}{_printed(row['printed_tco2eq']):>9}"
            f"{_figure(row['carbon_tco2eq']):>10}  {agrees}"
        )
    click.echo("* energy of the IT equipment or of the GPUs alone, before PUE")
    for number, note in enumerate(notes, start=1):
        mark = f"[{number}] "
        click.echo(textwrap.fill(note, 80, initial_indent=mark, subsequent_indent=" " * len(mark)))
