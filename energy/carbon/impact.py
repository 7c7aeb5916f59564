"""From energy to what it did: carbon by location and by market, losses on the way, water, embodied carbon, and SCI.

Each is a column of its own beside the IT energy; none is mixed into another. What a factor is not known for is None.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from energy.carbon.embodied import CONVENTIONS, embodied_rate
from energy.carbon.formula import carbon_tco2eq
from energy.carbon.series import IntensitySeries, carbon
from energy.factors import Factor, common_accelerator, match_accelerator, mixed_bases

Row = Mapping[str, Any]
NO_EMBODIED = "not counted: no embodied figure is known for this hardware, which does not mean zero"
MIXED = "the record does not know which part of the device-hours is of which kind"
MARGINAL = (
    "marginal intensities, what one more kWh emits: they are for decisions; location-based carbon asks for the average"
)
NO_WATER = "not counted: no water usage effectiveness was given"
OFF_SITE_ALONE = "not counted: on site, where no water usage effectiveness was given; off site is, per facility kWh"


def given(run: Row, key: str, lowest: float = 0.0) -> tuple[float | None, str | None]:
    """(value, source) of an accounting figure, (None, None) where there is none; ValueError if it cannot be."""
    stored = (run.get("accounting") or {}).get(key)
    if not stored or stored.get("value") is None:
        return None, None
    value = float(stored["value"])
    if not math.isfinite(value) or value < lowest:
        raise ValueError(f"accounting.{key} must be a finite number of at least {lowest:g}, not {value!r}")
    return value, str(stored.get("source") or "source not given")


def carbon_block(
    run: Row,
    facility_kwh: float | None,
    pue: float | None,
    curve: tuple[Sequence[float], Sequence[float]] | None,
    series: IntensitySeries | None,
    warnings: list[str],
) -> dict[str, Any]:
    """The record's `carbon`: location-based by a constant or hour by hour by `series`, market-based beside it.

    curve: IT energy of the run, cumulative in J at unix s. Losses on the grid's lines are a column of their own.
    """
    intensity, source = given(run, "intensity_g_per_kwh")
    market, market_source = given(run, "intensity_market_g_per_kwh")
    loss, loss_source = given(run, "transmission_loss")
    if loss is not None and loss >= 1:
        raise ValueError(f"accounting.transmission_loss is the share that is lost on the way, below 1, not {loss!r}")
    tonnes = carbon_tco2eq(facility_kwh, intensity) if facility_kwh is not None and intensity is not None else None
    notes: list[str] = []
    if series is not None:
        source, intensity, tonnes = series.source, None, None
        notes += series.warnings
        if series.basis.rate == "marginal":
            notes.append(f"{series.source}: {MARGINAL}")
        if facility_kwh and pue is not None and curve is not None and len(curve[0]) > 1:
            fallback = stored_factor(run, "intensity_g_per_kwh")
            told = carbon(curve[0], [energy_j * pue for energy_j in curve[1]], series, fallback)
            notes += told.notes
            if told.carbon_g is not None:
                tonnes, intensity = told.carbon_g / 1e6, told.carbon_g / facility_kwh
    factors = [f for key in ("intensity_g_per_kwh", "intensity_market_g_per_kwh") if (f := stored_factor(run, key))]
    # Location beside market is what the GHG Protocol asks for, side by side; other differences must be said.
    notes += [text for text in mixed_bases(factors) if "location" not in text]
    warnings += notes
    lost = tonnes * loss / (1 - loss) if tonnes is not None and loss is not None else None
    return {
        "carbon_tco2eq": tonnes,
        "basis": "location",
        "intensity_g_per_kwh": intensity,
        "source": source,
        "carbon_market_tco2eq": carbon_tco2eq(facility_kwh, market)
        if facility_kwh is not None and market is not None
        else None,
        "intensity_market_g_per_kwh": market,
        "market_source": market_source,
        "transmission_loss": loss,
        "transmission_loss_source": loss_source,
        "carbon_transmission_tco2eq": lost,
        "series_sha256": None if series is None else series.sha256,
        "region": (run.get("place") or {}).get("region"),
        "provider": (run.get("place") or {}).get("provider"),
    }


def stored_factor(run: Row, key: str) -> Factor | None:
    """An accounting figure as the factor that it is; None where there is none."""
    stored = (run.get("accounting") or {}).get(key)
    if not stored or stored.get("value") is None:
        return None
    return Factor.from_dict({"key": key, "unit": "", "source": "source not given", **stored})


def water_block(run: Row, it_kwh: float | None, facility_kwh: float | None) -> dict[str, Any]:
    """Litres: on site (evaporated for cooling) per IT kWh, off site (by power stations) per facility kWh."""
    on_site, on_source = given(run, "wue_l_per_kwh")
    off_site, off_source = given(run, "water_intensity_l_per_kwh")
    return {
        "on_site_l": it_kwh * on_site if it_kwh is not None and on_site is not None else None,
        "off_site_l": facility_kwh * off_site if facility_kwh is not None and off_site is not None else None,
        "wue_l_per_kwh": on_site,
        "wue_source": on_source,
        "water_intensity_l_per_kwh": off_site,
        "water_intensity_source": off_source,
        "note": (NO_WATER if off_site is None else OFF_SITE_ALONE)
        if on_site is None
        else "on site per IT kWh; off site per facility kWh",
    }


def embodied_block(run: Row, gpu_names: Sequence[str], device_hours: float) -> dict[str, Any]:
    """The share of making the hardware that falls on the hours in which the run held it; None where it is not known."""
    convention = run.get("embodied_convention") or "calendar"
    on_gpus = run.get("device_type") == "cuda"
    kind = common_accelerator(gpu_names) if on_gpus else None
    kinds = sorted({known.name for name in gpu_names if on_gpus and (known := match_accelerator(name)) is not None})
    why_not = f"not counted: {MIXED}: {', '.join(kinds)}" if len(kinds) > 1 else NO_EMBODIED
    rate = embodied_rate(kind.name, convention) if kind else None
    return {
        "carbon_tco2eq": rate.central_kg_per_h * device_hours / 1e3 if rate else None,
        "low_tco2eq": rate.low_kg_per_h * device_hours / 1e3 if rate else None,
        "high_tco2eq": rate.high_kg_per_h * device_hours / 1e3 if rate else None,
        "convention": CONVENTIONS[convention],
        "factors": [factor.as_dict() for factor in rate.factors] if rate else [],
        "note": f"each GPU and an eighth of a server, for {device_hours:g} device-hours" if rate else why_not,
    }


def sci_block(
    operational_t: float | None, embodied_t: float | None, tokens: float, compute_flop: float | None, params: Any
) -> dict[str, Any]:
    """SCI = (E x I + M) / R (ISO/IEC 21031:2024), in grams, for each R that training knows."""
    units = {
        "million_tokens": tokens / 1e6,
        "exaflop": (compute_flop or 0.0) / 1e18,
        "million_params": (params or 0) / 1e6,
    }

    def per(tonnes: float | None, unit: str) -> float | None:
        return tonnes * 1e6 / units[unit] if tonnes is not None and units[unit] else None

    both = operational_t + embodied_t if operational_t is not None and embodied_t is not None else None
    return {
        **{f"score_g_per_{unit}": per(both, unit) for unit in units},
        **{f"operational_g_per_{unit}": per(operational_t, unit) for unit in units},
        "functional_unit": "1,000,000 tokens trained",
        "note": "reserved and failed work is in E; no market instruments in it"
        if both is not None
        else "the score needs carbon and embodied carbon; what is known of it stands alone",
    }
