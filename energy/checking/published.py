"""Published footprints recomputed beside what was printed: agreeing, or with the reason why not.

Table 15 of the LLaMA paper comes first, then the rows of `published_footprints.csv`, with two printed totals. Each row
keeps the boundary of its own energy: `energy_facility_mwh` is None where a source stops at the IT equipment, and
`energy_mwh` with `energy_boundary` is what stands beside the printed figure.
"""

from __future__ import annotations

import math
import re
from typing import Any

from energy.carbon.embodied import hourly_kg
from energy.carbon.formula import carbon_tco2eq, energy_facility_kwh, energy_it_kwh, estimate, preset
from energy.checking.checks import Claim, check_claim
from energy.factors import read_table

# A printed figure is rounded or truncated: it agrees when it lies this close to the recomputed one.
TOLERANCE_MWH = 1.5
TOLERANCE_TCO2EQ = 0.7
_IDLE = re.compile(r"([\d.]+) kW x ([\d.]+) h")
# Luccioni et al. 2022: 8 GPUs to a server, 6 years of service of which 85 % are in use, kg CO2eq of each.
BLOOM_SERVER_KG, BLOOM_GPU_KG, BLOOM_LIFE_YEARS, BLOOM_GPUS = 2500.0, 150.0, 6, 8
LLAMA_2_PRINTED_T, BLOOM_PRINTED_T = 539.00, 50.5
DEVELOPMENT = "all development (2048 GPUs, about 5 months)"

Row = dict[str, Any]


def bloom_hourly_kg() -> tuple[float, float]:
    """BLOOM's embodied carbon per hour in use, kg CO2eq: (of a server, of a GPU)."""
    server_kg, gpu_kg = (hourly_kg(kg, BLOOM_LIFE_YEARS, "busy-hour") for kg in (BLOOM_SERVER_KG, BLOOM_GPU_KG))
    return server_kg, gpu_kg


def _table_15(row: dict[str, str]) -> Row:
    assumed = preset("llama_paper")
    pue, intensity, power_w = assumed["pue"], assumed["intensity_g_per_kwh"], float(row["gpu_power_w"])
    printed_mwh, printed_t = float(row["printed_mwh"]), float(row["printed_tco2eq"])
    if row["gpu_hours"]:
        gpu_hours = float(row["gpu_hours"])
        result = estimate(gpu_hours, power_w, pue, intensity)
        mwh, tonnes = float(result["energy_facility_kwh"]) / 1000, float(result["carbon_tco2eq"])
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
        "energy_mwh": mwh,
        "energy_boundary": "facility",
        "gpu_hours": gpu_hours,
        "gpu_hours_printed": bool(row["gpu_hours"]),
        "gpu_power_w": power_w,
        "pue": pue,
        "intensity_g_per_kwh": intensity,
        "method": "LLaMA formula",
        "source": row["source"],
    }


def _optional(text: str) -> float | None:
    return float(text) if text else None


def _device_hours(row: dict[str, str]) -> float | None:
    if row["device_hours"]:
        return float(row["device_hours"])
    if row["devices"] and row["hours_or_days"].endswith(" d"):
        return float(row["devices"]) * float(row["hours_or_days"].removesuffix(" d")) * 24
    return None


def _it_kwh(row: dict[str, str], hours: float | None) -> float | None:
    """IT energy (kWh) by the row's own method: metered power and time, the GPUs' printed energy, or hours x power."""
    idle = _IDLE.fullmatch(row["method"])
    if idle:
        return float(idle[1]) * float(idle[2])
    if row["energy_boundary"].startswith("gpu"):
        printed_mwh = _optional(row["published_mwh"])
        return None if printed_mwh is None else printed_mwh * 1000
    power_w = _optional(row["power_w"])
    return energy_it_kwh(hours, power_w) if hours is not None and power_w is not None else None


def _embodied_t(hours: float) -> float:
    server_kg, gpu_kg = bloom_hourly_kg()
    return hours / BLOOM_GPUS * server_kg / 1000 + hours * gpu_kg / 1000


def _near(value: float | None, printed: float | None, relative: float | None, absolute: float | None) -> bool | None:
    if value is None or printed is None:
        return None
    return abs(value - printed) <= max((relative or 0.0) * printed, absolute or 0.0)


def _footprint(row: dict[str, str], told: dict[str, str]) -> Row:
    hours, boundary = _device_hours(row), row["energy_boundary"]
    pue = _optional(row["pue"]) or _optional(told["assumed_pue"])
    intensity = _optional(row["g_per_kwh"]) or _optional(told["assumed_g_per_kwh"])
    printed_mwh, printed_t = _optional(row["published_mwh"]), _optional(row["published_tco2eq"])
    it_kwh = _it_kwh(row, hours)
    facility_kwh = energy_facility_kwh(it_kwh, pue) if it_kwh is not None and pue and boundary != "it" else None
    counted = it_kwh if boundary == "it" else facility_kwh
    tonnes = carbon_tco2eq(counted, intensity) if counted is not None and intensity is not None else None
    if boundary == "embodied" and hours is not None:
        tonnes = _embodied_t(hours)
    shown = it_kwh if boundary == "it" or boundary.startswith("gpu") else facility_kwh
    relative = _optional(told["relative_tolerance"])
    fits = [
        _near(None if shown is None else shown / 1000, printed_mwh, relative, _optional(told["tolerance_mwh"])),
        _near(tonnes, printed_t, relative, _optional(told["tolerance_tco2eq"])),
    ]
    known = [fit for fit in fits if fit is not None]
    agrees = all(known) if known else None
    if _flagged(row, it_kwh, pue):
        agrees = False
    return {
        "model": row["model"],
        "printed_mwh": printed_mwh,
        "energy_facility_mwh": None if facility_kwh is None else facility_kwh / 1000,
        "printed_tco2eq": printed_t,
        "carbon_tco2eq": tonnes,
        "agrees": agrees,
        "note": told["note"],
        "energy_mwh": None if shown is None else shown / 1000,
        "energy_boundary": boundary,
        "gpu_hours": hours,
        "gpu_hours_printed": bool(row["device_hours"]),
        "gpu_power_w": _optional(row["power_w"]),
        "pue": pue,
        "intensity_g_per_kwh": intensity,
        "method": row["method"],
        "source": row["source"],
    }


def _flagged(row: dict[str, str], it_kwh: float | None, pue: float | None) -> bool:
    """Whether the plausibility checks object to the row as it was printed."""
    claim = Claim(
        name=row["model"],
        pue=pue,
        intensity_g_per_kwh=_optional(row["g_per_kwh"]),
        energy_gpu_kwh=it_kwh if row["energy_boundary"].startswith("gpu") else None,
        energy_it_kwh=None if row["energy_boundary"].startswith("gpu") else it_kwh,
        carbon_t=_optional(row["published_tco2eq"]),
        measured=True,
        embodied=row["energy_boundary"] == "embodied",
        text=row["method"],
    )
    return bool(check_claim(claim))


def _add_total(rows: list[Row], prefix: str, model: str, printed_t: float, note: str) -> None:
    """Puts a printed total after the rows that it is the sum of."""
    parts = [row for row in rows if row["model"].startswith(prefix)]
    tonnes = math.fsum(row["carbon_tco2eq"] for row in parts)
    total = dict.fromkeys(parts[0]) | {
        "model": model,
        "printed_tco2eq": printed_t,
        "carbon_tco2eq": tonnes,
        "agrees": abs(tonnes - printed_t) <= 0.05,
        "note": note,
        "energy_boundary": parts[0]["energy_boundary"],
        "gpu_hours_printed": False,
        "method": "sum of the rows",
        "source": parts[0]["source"],
    }
    rows.insert(rows.index(parts[-1]) + 1, total)


def identities() -> dict[str, float]:
    """What the printed figures say about each other.

    development_days: how long 2048 GPUs take for the LLaMA paper's declared total; development_ratio: that total over
    the four final runs; llama_2_missing_t: the card's total less its rows; bloom_server_kg_per_h, bloom_gpu_kg_per_h
    """
    table = {row["model"]: row for row in map(_table_15, read_table("llama_table15"))}
    rows = {row["model"]: row for row in read_table("published_footprints")}
    development = table[DEVELOPMENT]
    finals = math.fsum(row["energy_facility_mwh"] for name, row in table.items() if name.startswith("LLaMA-"))
    visible = math.fsum(float(rows[f"Llama-2-{size}"]["published_tco2eq"]) for size in ("7B", "13B", "70B"))
    server_kg, gpu_kg = bloom_hourly_kg()
    return {
        "development_days": development["gpu_hours"] / 2048 / 24,
        "development_ratio": development["printed_mwh"] / finals,
        "llama_2_missing_t": LLAMA_2_PRINTED_T - visible,
        "bloom_server_kg_per_h": server_kg,
        "bloom_gpu_kg_per_h": gpu_kg,
    }


def published() -> list[Row]:
    """Every published row: MWh and tCO2eq recomputed, whether they agree, and why not exactly.

    agrees is None where nothing that was printed can be recomputed.
    """
    told = {row["model"]: row for row in read_table("published_notes")}
    rows = [_table_15(row) for row in read_table("llama_table15")]
    rows += [_footprint(row, told[row["model"]]) for row in read_table("published_footprints")]
    same = identities()
    for row in rows:
        if row["model"] == DEVELOPMENT:
            row["note"] += f"; {same['development_ratio']:.2f} times the four final runs"
    visible_t = LLAMA_2_PRINTED_T - same["llama_2_missing_t"]
    _add_total(
        rows,
        "Llama-2-",
        "Llama 2, total",
        LLAMA_2_PRINTED_T,
        f"the card prints {LLAMA_2_PRINTED_T:.2f} t over rows of {visible_t:.2f} t: what is missing, "
        f"{same['llama_2_missing_t']:.2f} t, is the 34B row (153.90 t)",
    )
    note = "24.69 t dynamic, 14.63 t idle and 11.21 t embodied; without PUE"
    _add_total(rows, "BLOOM-176B ", "BLOOM-176B, total", BLOOM_PRINTED_T, note)
    return rows
