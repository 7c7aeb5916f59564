"""The LLaMA paper's estimate (section 6): device-hours x rated power x PUE x grid intensity."""

from __future__ import annotations

import math
from typing import Any

from energy.factors import preset_factors

METHOD = "gpu_hours x gpu_power_w x pue x intensity_g_per_kwh (LLaMA paper, section 6)"


def _checked(name: str, value: float, lowest: float = 0.0) -> float:
    if isinstance(value, bool) or not math.isfinite(value) or value < lowest:
        raise ValueError(f"{name} must be a finite number of at least {lowest:g}, not {value!r}")
    return float(value)


def preset(name: str) -> dict[str, float]:
    """gpu_power_w (W), pue (1) and intensity_g_per_kwh (g/kWh) of a named set of assumptions in presets.csv."""
    return {key: factor.value for key, factor in preset_factors(name).items() if factor.value is not None}


def energy_it_kwh(gpu_hours: float, gpu_power_w: float) -> float:
    """IT energy in kWh from device-hours (h) and the power of one device (W)."""
    return _checked("gpu_hours", gpu_hours) * _checked("gpu_power_w", gpu_power_w) / 1000.0


def energy_facility_kwh(it_kwh: float, pue: float) -> float:
    """Facility energy in kWh: IT energy (kWh) times PUE, which cannot be below 1."""
    return _checked("energy_it_kwh", it_kwh) * _checked("pue", pue, 1.0)


def carbon_tco2eq(facility_kwh: float, intensity_g_per_kwh: float) -> float:
    """Tonnes of CO2eq of facility energy (kWh) at a grid intensity (g/kWh)."""
    intensity = _checked("intensity_g_per_kwh", intensity_g_per_kwh)
    return _checked("energy_facility_kwh", facility_kwh) * intensity / 1e6


def estimate(gpu_hours: float, gpu_power_w: float, pue: float, intensity_g_per_kwh: float) -> dict[str, Any]:
    """Energy (kWh) and carbon (t) of `gpu_hours` (h) at `gpu_power_w` (W); the keys of `estimate --json`."""
    it_kwh = energy_it_kwh(gpu_hours, gpu_power_w)
    facility_kwh = energy_facility_kwh(it_kwh, pue)
    return {
        "gpu_hours": float(gpu_hours),
        "gpu_power_w": float(gpu_power_w),
        "pue": float(pue),
        "intensity_g_per_kwh": float(intensity_g_per_kwh),
        "energy_it_kwh": it_kwh,
        "energy_facility_kwh": facility_kwh,
        "carbon_tco2eq": carbon_tco2eq(facility_kwh, intensity_g_per_kwh),
        "method": METHOD,
    }
