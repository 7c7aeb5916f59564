"""What a spec declares about energy, as the figures of run.json and the series of intensities beside it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from energy.factors import Factor, accelerator
from energy.grid import region_of
from energy.runs import RunFolder, write_json
from energy.series import IntensitySeries
from orchestrator.spec import Experiment

# Keys of the spec's energy section, and the accounting figures with their units that they become.
FIGURES = {
    "pue": ("pue", "1"),
    "intensity_market": ("intensity_market_g_per_kwh", "g CO2eq/kWh"),
    "transmission_loss": ("transmission_loss", "1"),
    "wue": ("wue_l_per_kwh", "L/kWh"),
    "water_intensity": ("water_intensity_l_per_kwh", "L/kWh"),
    "device_rated_power": ("device_rated_power_w", "W"),
}


def accounting_of(experiment: Experiment) -> dict[str, Any]:
    """{accounting, place, embodied_convention} for run.json: every figure with value, unit, source, and its hash."""
    energy = experiment.energy
    figures: dict[str, Any] = {}
    for key, (name, unit) in FIGURES.items():
        value = getattr(energy, key)
        source = getattr(energy, f"{key}_source")
        figures[name] = None if value is None else Factor(name, value, unit, source).as_dict()
    declared = energy.intensity_factor
    figures["intensity_g_per_kwh"] = declared.as_dict() if declared else None
    if experiment.cluster.accelerator:
        known = accelerator(experiment.cluster.accelerator)
        source = f"{known.name}: {known.source}"
        figures["peak_flops"] = Factor("peak_flops", known.peak_flops, "FLOP/s", source).as_dict()
    region = region_of(energy.grid) if energy.grid else None
    place = {"region": energy.grid, "provider": region.provider if region else None}
    return {"accounting": figures, "place": place, "embodied_convention": energy.embodied_convention}


def keep_series_file(experiment: Experiment, folder: RunFolder) -> None:
    """Puts the user's intensities by the hour into the run's folder before anything is trained. ValueError if unfit."""
    if experiment.energy.grid_series is not None:
        from energy.series_file import read_series

        _keep(folder, read_series(experiment.energy.grid_series))


def ask_for_series(experiment: Experiment, folder: RunFolder) -> None:
    """Puts the provider's intensities of the run's hours into its folder; what was not to be had is noted in run.json.

    A provider that fails ends nothing: the declared constant stands, and the record says so.
    """
    if experiment.energy.grid_zone is None:
        return
    from energy.providers import ElectricityMaps, series_or_declared

    run = folder.read_run()
    constant = experiment.energy.intensity_factor
    provider = ElectricityMaps(cache_folder=folder.path / "grid")
    span = (run["created_unix_s"], run["ended_unix_s"])
    try:
        series, _, notes = series_or_declared(provider, experiment.energy.grid_zone, *span, constant)
    except OSError as error:
        series, notes = None, [f"the grid's intensity could not be kept ({error}): the declared constant stands"]
    if series is not None:
        _keep(folder, series)
    folder.update_run(grid_notes=notes)


def _keep(folder: RunFolder, series: IntensitySeries) -> None:
    write_json(Path(folder.path) / "grid" / "series.json", asdict(series))
