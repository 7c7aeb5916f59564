"""SCI, ISO/IEC 21031:2024: (E x I + M) per R, with R a token, a FLOP and a parameter.

E is the facility's energy with all that was reserved and idle, in kWh; I is location-based and takes no market
instrument; M is the embodied carbon of the hardware that trained, by the standard its share of calendar time: by the
busy hour it is another figure, and no conformity is claimed. For the training of a model the failed and intermediate
runs count too: this is one run's, and says so. Without M there is no score: the operational part stands alone under its
own name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from energy.carbon.embodied import CONVENTIONS
from energy.export.facts import Facts, facts_of


def _per(amount_g: float | None, units: float | None) -> float | None:
    return amount_g / units if amount_g is not None and units else None


def _rates(facts: Facts, units: float | None) -> dict[str, float | None]:
    operational_g = facts.location_g
    embodied_g = None if facts.embodied_tco2eq is None else facts.embodied_tco2eq * 1e6
    whole_g = None if operational_g is None or embodied_g is None else operational_g + embodied_g
    return {
        "r": units,
        "score_g": _per(whole_g, units),
        "operational_g": _per(operational_g, units),
        "embodied_g": _per(embodied_g, units),
    }


def document(record: Mapping[str, Any]) -> dict[str, Any]:
    """E (kWh), I (g/kWh), M (g), and for each functional unit R its count and the grams per one of it."""
    facts = facts_of(record)
    flop, convention = facts.compute_flop, record["embodied"].get("convention")
    missing = [
        name
        for name, value in (
            ("E: facility energy (needs the measurement and a PUE)", facts.energy_facility_kwh),
            ("I: grid intensity", facts.intensity_g_per_kwh),
            ("M: embodied carbon", facts.embodied_tco2eq),
        )
        if value is None
    ]
    return {
        "standard": None if convention == CONVENTIONS["busy-hour"] else "ISO/IEC 21031:2024 (SCI)",
        "run_id": facts.run_id,
        "E_kwh": facts.energy_facility_kwh,
        "I_g_per_kwh": facts.intensity_g_per_kwh,
        "I_source": facts.intensity_source,
        "M_g": None if facts.embodied_tco2eq is None else facts.embodied_tco2eq * 1e6,
        "embodied_convention": convention,
        "per_token": _rates(facts, facts.tokens),
        "per_flop": _rates(facts, flop) | {"flop_convention": facts.flop_convention},
        "per_parameter": _rates(facts, facts.params),
        "boundary": f"E: this run alone, its failed attempts and idle devices included; {facts.boundary_text}, times "
        "PUE. M: the GPUs that trained, each with an eighth of a server, for the hours in which the run held them; "
        "idle devices are not in it",
        "not_in_it": "other runs of the project: `hoofprint runs --total` sums them up",
        "missing": missing,
    }
