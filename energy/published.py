"""Published footprints recomputed beside what was printed (Table 15 of the LLaMA paper)."""

from __future__ import annotations

from typing import Any

from energy.factors import read_table
from energy.formula import carbon_tco2eq, estimate, preset

# A printed figure is rounded or truncated: it agrees when it lies this close to the recomputed one.
TOLERANCE_MWH = 1.5
TOLERANCE_TCO2EQ = 0.7


def _recompute(row: dict[str, str]) -> dict[str, Any]:
    assumed = preset("llama_paper")
    pue, intensity, power_w = assumed["pue"], assumed["intensity_g_per_kwh"], float(row["gpu_power_w"])
    printed_mwh, printed_t = float(row["printed_mwh"]), float(row["printed_tco2eq"])
    if row["gpu_hours"]:
        gpu_hours = float(row["gpu_hours"])
        result = estimate(gpu_hours, power_w, pue, intensity)
        mwh, tonnes = float(str(result["energy_facility_kwh"])) / 1000, float(str(result["carbon_tco2eq"]))
    else:  # only the energy is printed: the hours are what it implies
        gpu_hours = printed_mwh * 1e6 / (power_w * pue)
        mwh, tonnes = printed_mwh, carbon_tco2eq(printed_mwh * 1000, intensity)
    return {
        "model": row["model"],
        "printed_mwh": printed_mwh,
        "energy_facility_mwh": mwh,
        "printed_tco2eq": printed_t,
        "carbon_tco2eq": tonnes,
        "agrees": abs(mwh - printed_mwh) <= TOLERANCE_MWH and abs(tonnes - printed_t) <= TOLERANCE_TCO2EQ,
        "note": row["note"],
        "gpu_hours": gpu_hours,
        "gpu_hours_printed": bool(row["gpu_hours"]),
        "gpu_power_w": power_w,
        "pue": pue,
        "intensity_g_per_kwh": intensity,
        "source": row["source"],
    }


def published() -> list[dict[str, Any]]:
    """Every row of Table 15: MWh and tCO2eq recomputed, whether they agree, and why not exactly."""
    return [_recompute(row) for row in read_table("llama_table15")]
