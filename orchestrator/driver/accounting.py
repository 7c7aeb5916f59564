"""What a spec declares, as the figures of run.json that its account needs, and the grid's intensities beside it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from energy.carbon.grid import region_of
from energy.carbon.series import IntensitySeries
from energy.factors import Factor, peak_flops, presets
from energy.factors.places import from_source
from energy.runs import SERIES, RunFolder, write_json
from model.config import LlamaConfig
from orchestrator.spec.energy_spec import EnergySpec, with_range
from orchestrator.spec.experiment import Experiment

# Keys of the spec's energy section, and the accounting figures with their units that they become.
FIGURES = {
    "pue": ("pue", "1"),
    "intensity_market": ("intensity_market_g_per_kwh", "g CO2eq/kWh"),
    "transmission_loss": ("transmission_loss", "1"),
    "wue": ("wue_l_per_kwh", "L/kWh"),
    "water_intensity": ("water_intensity_l_per_kwh", "L/kWh"),
    "device_rated_power": ("device_rated_power_w", "W"),
}


def declared(energy: EnergySpec, key: str) -> Factor | None:
    """A figure of the spec's energy section, by one of the keys of FIGURES; None where it is not declared.

    One that was named keeps the year, place and basis that the table has for it.
    """
    name, unit = FIGURES[key]
    value, source = getattr(energy, key), getattr(energy, f"{key}_source")
    if value is None:
        return None
    factor = from_source(key, value, source) or Factor(name, value, unit, source)
    return with_range(factor, energy.pue_range) if key == "pue" else factor


def accounting_of(experiment: Experiment) -> dict[str, Any]:
    """{accounting, place, embodied_convention} for run.json: every figure with value, unit, source, and its hash."""
    energy = experiment.energy
    found = {name: declared(energy, key) for key, (name, _) in FIGURES.items()}
    found["intensity_g_per_kwh"] = energy.intensity_factor
    figures = {name: factor.as_dict() if factor else None for name, factor in found.items()}
    if experiment.cluster.accelerator:
        figures["peak_flops"] = peak_flops(experiment.cluster.accelerator).as_dict()
    region = region_of(energy.grid) if energy.grid else None
    named = None if energy.grid is None or energy.grid.strip() in presets() else energy.grid  # a preset is nowhere
    place = {"region": named, "provider": region.provider if region else None}
    return {"accounting": figures, "place": place, "embodied_convention": energy.embodied_convention}


def model_figures(config: LlamaConfig) -> dict[str, Any]:
    """The model as run.json has it: its shape, parameters, and FLOP per token by the PaLM convention."""
    counted = {key: getattr(config, key) for key in ("params", "matmul_params", "flop_per_token")}
    return asdict(config) | counted


def keep_series_file(experiment: Experiment, folder: RunFolder) -> None:
    """Puts the user's intensities by the hour into the run's folder at each attempt; ValueError if unfit.

    One that the spec no longer names is taken out: it would go on to price the run. A zone's of earlier attempts stays:
    no record may lose it because a later attempt does not come to ask.
    """
    if experiment.energy.grid_series is not None:
        from energy.carbon.series_file import read_series

        _keep(folder, read_series(experiment.energy.grid_series))
    elif not _is_of_zone(folder, experiment.energy.grid_zone):
        (folder.path / SERIES).unlink(missing_ok=True)


def not_asked_for(experiment: Experiment) -> list[str]:
    """`grid_notes` of run.json until the end of an attempt, and for good if it is lost before; [] without a zone."""
    zone, constant = experiment.energy.grid_zone, experiment.energy.intensity_factor
    if zone is None:
        return []
    instead = "no constant was declared to fall back on"
    if constant is not None and constant.value is not None:
        instead = f"for hours without one stands the declared {constant}"
    when = (
        "are asked for when an attempt ends in order, and not yet of this one (a lost run has them once it is resumed)"
    )
    return [f"the intensities of zone {zone} by the hour {when}: {instead}"]


def ask_for_series(experiment: Experiment, folder: RunFolder) -> None:
    """Puts the provider's intensities of the run's hours into its folder; what was not to be had is noted in run.json.

    A provider that fails ends nothing: the declared constant stands, and the record says so.
    """
    if experiment.energy.grid_zone is None:
        return
    from energy.carbon.providers import ElectricityMaps, series_or_declared

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
    elif (folder.path / SERIES).exists():
        notes.append("the intensities that an earlier attempt was given stand for the hours that they cover")
    folder.update_run(grid_notes=notes)


def _is_of_zone(folder: RunFolder, zone: str | None) -> bool:
    """Whether the intensities that lie in the folder are those that the provider gave of this zone."""
    if zone is None or not (folder.path / SERIES).exists():
        return False
    from energy.carbon.providers import ElectricityMaps
    from energy.records.record import series_of

    try:
        series = series_of(folder)
    except ValueError:
        return False
    return series is not None and series.source == ElectricityMaps.source(zone)


def _keep(folder: RunFolder, series: IntensitySeries) -> None:
    write_json(folder.path / SERIES, asdict(series))
