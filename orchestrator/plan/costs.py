"""From device-hours to energy, carbon, embodied carbon and money. What is not known stays None, never zero."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from energy.carbon.embodied import CONVENTIONS, embodied_rate
from energy.carbon.formula import carbon_tco2eq, energy_facility_kwh, energy_it_kwh
from energy.carbon.series_file import read_series
from energy.checking.checks import Claim, check_claim
from energy.factors import Accelerator, Factor, rated_power
from energy.units import KWH, TONNES
from orchestrator.driver.accounting import declared
from orchestrator.plan.earlier_runs import Evidence
from orchestrator.plan.ranges import Basis, Range
from orchestrator.spec.budget import money
from orchestrator.spec.energy_spec import EnergySpec
from orchestrator.spec.quantities import quantity

_BUDGET_UNITS = {
    **{unit: ("energy", KWH[unit]) for unit in ("kWh", "MWh", "GWh")},
    **{name: ("carbon", TONNES[unit]) for unit in ("kg", "t") for name in (f"{unit}CO2eq", unit)},
    "GPUh": ("gpu_hours", 1.0),
    "d": ("wall_days", 1.0),
}


@dataclass(frozen=True)
class Energy:
    """Energy in kWh and carbon in t CO2eq; `rated_it_kwh` is the IT energy at rated power, whatever was measured.

    power_w: of one device; power_told: its boundary and method (energy.boundaries); rated_boundary: of rated power
    """

    power_w: Range | None
    power_told: tuple[str, str]
    rated_boundary: str
    it_kwh: Range | None
    rated_it_kwh: Range | None
    facility_kwh: Range | None
    carbon_tco2eq: Range | None
    intensity_g_per_kwh: float | None


def rated_power_of(spec: EnergySpec, device: Accelerator | None) -> Factor | None:
    """The rated power of one device in W: the spec's, else the factor table's; None where neither knows it."""
    by_table = rated_power(device.name) if device is not None and device.tdp_w is not None else None
    return declared(spec, "device_rated_power") or by_table


def energy_of(
    device_hours: Range | None, spec: EnergySpec, device: Accelerator | None, evidence: Evidence | None, basis: Basis
) -> Energy:
    """IT energy at the power that earlier runs drew, else at rated power; then PUE and grid intensity of the spec."""
    rated_factor = rated_power_of(spec, device)
    rated = rated_factor.value if rated_factor else None
    metered = evidence.power_w() if evidence is not None and evidence.same_shape else None
    rated_boundary = "gpu" if device is not None else "node"
    told = (rated_boundary, "assumed")
    if metered is not None and evidence is not None:
        told = boundary, method = evidence.runs[-1].power_boundary, evidence.power_method()
        source = f"mean of the same earlier runs ({evidence.names()}): {method}, boundary {boundary}"
        basis.assume("device_power_w", metered.likely, "W", source)
        basis.sources["energy_it_kwh"] = f"{metered.likely:.3g} W ({method}), {evidence.count()}"
    if rated_factor is not None:
        basis.take(rated_factor)
        if metered is None:
            basis.sources["energy_it_kwh"] = f"rated {rated:g} W per device"
    elif metered is None:
        basis.missing.append("the power of a device: give energy.device_rated_power, or run it once")
    power = metered or (None if rated is None else Range.exact(rated))

    def it(watts: Range | None) -> Range | None:
        if device_hours is None or watts is None:
            return None
        return Range(
            *(energy_it_kwh(hours, power_w) for hours, power_w in zip(_three(device_hours), _three(watts), strict=True))
        )

    it_kwh = it(power)
    pue_factor = declared(spec, "pue")
    if pue_factor is None:
        basis.missing.append("facility energy: give energy.pue and energy.pue_source")
    else:
        basis.take(pue_factor)
        basis.sources["energy_facility_kwh"] = f"PUE {_in_words(pue_factor)}: {spec.pue_source}"
    grid = grid_factor(spec, basis)
    if grid is None or grid.value is None:
        basis.missing.append("carbon: give energy.grid, or energy.intensity with its source (no location is guessed)")
    else:
        basis.take(grid)
        where = f"{grid.geography}, {grid.year}: " if grid.geography else ""
        basis.sources["carbon_tco2eq"] = f"{_in_words(grid)} g/kWh: {where}{grid.source}"
    intensity = grid.value if grid else None
    kind = device.name if device else None
    stated = Claim("", device=kind, power_w=rated, pue=spec.pue, intensity_g_per_kwh=intensity)
    basis.warnings += [f"{finding.check}: {finding.message}" for finding in check_claim(stated)]
    facility = _with_factor(it_kwh, pue_factor, energy_facility_kwh)
    carbon = _with_factor(facility, grid, carbon_tco2eq)
    rated_kwh = it(None if rated is None else Range.exact(rated))
    return Energy(power, told, rated_boundary, it_kwh, rated_kwh, facility, carbon, intensity)


def _with_factor(kwh: Range | None, factor: Factor | None, formula: Callable[[float, float], float]) -> Range | None:
    """`formula` of energy and factor, low with low and high with high; None where either is not known."""
    if kwh is None or factor is None or factor.value is None:
        return None
    return Range(*(formula(each, by) for each, by in zip(_three(kwh), _three(Range.of(factor)), strict=True)))


def _in_words(factor: Factor) -> str:
    """The value, and its source's range where there is one."""
    return f"{factor.value:g}" + (f" ({factor.range_text})" if factor.range_text else "")


def grid_factor(spec: EnergySpec, basis: Basis) -> Factor | None:
    """The intensity to plan with: the mean of the spec's series by the hour, else what it declares.

    When the training will run is not known here, so that every hour of the series counts alike.
    """
    path = spec.grid_series
    if path is None:
        return spec.intensity_factor
    if not path.exists():
        basis.warnings.append(f"energy.grid_series: no such file: {path}; the plan is without it")
        return spec.intensity_factor
    series = read_series(path)
    mean, hours = series.mean_g_per_kwh, (series.end_unix_s[-1] - series.start_unix_s[0]) / 3600
    source = f"mean over the {hours:,.0f} hours of {path.name}; the record takes each hour's own"
    return Factor("intensity_g_per_kwh", mean, "g CO2eq/kWh", source, geography=series.geography)


def embodied_tco2eq(gpu_hours: Range | None, device: Accelerator | None, convention: str, basis: Basis) -> Range | None:
    """The share of making GPU and server that falls on these hours, t CO2eq; None where no figure is known."""
    if gpu_hours is None or device is None:
        return None
    rate = embodied_rate(device.name, convention)
    if rate is None:
        basis.missing.append(f"embodied carbon: no figure is known for {device.name}, which does not mean zero")
        return None
    for factor in rate.factors:
        basis.take(factor)
    source = f"{' and an eighth of '.join(str(each.geography) for each in rate.factors)}: {CONVENTIONS[convention]}"
    basis.assume("embodied_g_per_gpu_hour", rate.central_kg_per_h * 1000, "g CO2eq/h", source)
    basis.sources["embodied_tco2eq"] = f"{device.name} and 1/8 server, {convention}"
    return gpu_hours.times(Range(rate.low_kg_per_h, rate.central_kg_per_h, rate.high_kg_per_h)).times(1e-3)


def price_of_gpu_hour(option: float | None, told: str | None, basis: Basis) -> tuple[float | None, str | None]:
    """(price, its currency where one is told) of a GPU-hour: the command line's, else `told` in the spec (2.50 EUR)."""
    if option is not None:
        price, currency, source = option, "", "--gpu-hour-price"
    elif told is not None:
        (price, currency), source = money(told), "cluster.gpu_hour_price"
    else:
        return None, None
    unit = f"{currency} per GPU-hour".lstrip()
    basis.assume("gpu_hour_price", price, unit, source)
    basis.sources["cost"] = f"{price:g} {unit}"
    return price, currency or None


@dataclass(frozen=True)
class Budget:
    """A limit on one quantity: kWh, t CO2eq, GPU-hours or days."""

    quantity: str
    limit: float
    text: str


def parse_budget(text: str) -> Budget:
    """`500 MWh`, `170 tCO2eq`, `1000000 GPUh`, `30 d`; ValueError says what would have been understood."""
    known = {unit: factor for unit, (_, factor) in _BUDGET_UNITS.items()}
    try:
        value = quantity(text, known, "500 MWh")
    except ValueError as error:
        raise ValueError(f"--budget: {error}") from None
    unit = text.strip().lstrip("+-0123456789.,_eE ").strip()
    if unit not in _BUDGET_UNITS or not value > 0:
        raise ValueError(
            f"--budget: expected a limit above 0 such as 500 MWh (units: {', '.join(known)}), got {text!r}"
        )
    return Budget(_BUDGET_UNITS[unit][0], value, text.strip())


def budget_plan(text: str | None, ranges: dict[str, Range | None]) -> dict[str, Any] | None:
    """The budget, and the share of it that the plan takes (facility energy where it is known, else IT energy)."""
    if text is None:
        return None
    budget = parse_budget(text)
    keys = {
        "energy": ("energy_facility_kwh", "energy_it_kwh"), "carbon": ("carbon_tco2eq",),
        "gpu_hours": ("gpu_hours",), "wall_days": ("wall_days",),
    }[budget.quantity]  # fmt: skip
    key = next((key for key in keys if ranges[key] is not None), keys[0])
    planned = ranges[key]
    share = None if planned is None else {
        "low": planned.low / budget.limit, "likely": planned.likely / budget.limit, "high": planned.high / budget.limit
    }  # fmt: skip
    return {"text": budget.text, "key": key, "limit": budget.limit, "share": share}


def _three(interval: Range) -> tuple[float, float, float]:
    return interval.low, interval.likely, interval.high
