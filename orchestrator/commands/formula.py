"""Commands that compute from published figures alone: estimate, published."""

from typing import Any

import click

from orchestrator.commands import JSON, print_json


@click.command()
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
        print_json(result)
        return
    click.echo(
        f"{gpu_hours:,.0f} GPU-hours x {result['gpu_power_w']:g} W = {result['energy_it_kwh'] / 1e3:,.2f} MWh IT; "
        f"x PUE {result['pue']:g} = {result['energy_facility_kwh'] / 1e3:,.2f} MWh; "
        f"x {result['intensity_g_per_kwh']:g} g/kWh = {result['carbon_tco2eq']:,.2f} tCO2eq"
    )


@click.command()
@JSON
def published(as_json: bool) -> None:
    """Published footprints recomputed beside what was printed (LLaMA paper, Table 15)."""
    from energy.published import published

    rows = published()
    if as_json:
        print_json(rows)
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
