"""EU AI Act: the energy and compute items of the Model Documentation Form (Code of Practice, July 2025).

Annex XI 1(2)(d) and (e) of Regulation (EU) 2024/1689 ask for the compute, the training time and the known or estimated
energy. The form wants two significant figures or more and, where the energy is unknown, "N/A" and what is missing. It
defines no boundary for energy: ours stands in the methodology. Keys ending in _ncas are for national authorities, those
in _aio for the AI Office.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from energy.export.facts import SECONDS_PER_DAY, Facts, facts_of, figure, share_text, utc

GENERAL_PURPOSE_FLOP = 1e23  # indicative: Commission guidelines on general-purpose models, July 2025
SYSTEMIC_RISK_FLOP = 1e25  # presumption: Article 51(2)
DAYS_PER_MONTH = 365.25 / 12
RANGES = ((1.0, "less than 1 month"), (3.0, "1-3 months"), (6.0, "3-6 months"), (math.inf, "more than 6 months"))
NOT_KNOWN = "N/A"


def two(value: float) -> str:
    """Two significant figures as the form writes them: 4.5 x 10^2."""
    if value == 0:
        return "0"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa} x 10^{int(exponent)}"


def training_range(days: float) -> str:
    """The form's range for a training time in days."""
    return next(name for months, name in RANGES if days < months * DAYS_PER_MONTH)


def _compute(facts: Facts) -> tuple[str, str, str]:
    """(order of magnitude, FLOP with two figures, methodology)."""
    flop, tokens, params = facts.compute_flop, facts.tokens, facts.params
    if flop is None:
        return NOT_KNOWN, NOT_KNOWN, "Missing: the model's structure or the number of tokens it was trained on."
    six_nd = facts.compute_flop_6nd
    if six_nd is None and tokens and params:
        six_nd = 6 * params * tokens
    other = "" if six_nd is None else f" By 6 x parameters x tokens it is {two(six_nd)} FLOP."
    method = (
        f"Counted from the structure of the model and the tokens trained ({figure(tokens or 0.0)}), forward and "
        f"backward, by the convention {facts.flop_convention}. Recomputed activations, evaluation and steps that were "
        f"lost in crashes are not in it.{other}"
    )
    return f"10^{math.floor(math.log10(flop))} FLOP" if flop else "0 FLOP", f"{two(flop)} FLOP", method


def _missing(facts: Facts) -> str | None:
    if facts.energy_it_kwh is None:
        return "no sensor of the hardware could be read"
    if facts.energy_facility_kwh is None:
        return "the power usage effectiveness (PUE) of the facility was not given, so its energy is not known"
    return None


def _energy(facts: Facts) -> tuple[str, str]:
    """(MWh with two figures or N/A and what is missing, methodology in about a hundred words)."""
    missing = _missing(facts)
    if missing is not None:
        it = "" if facts.energy_it_kwh is None else f" IT energy alone: {two(facts.energy_it_kwh / 1000)} MWh."
        return f"{NOT_KNOWN} ({missing}).{it}", _methodology(facts, None)
    assert facts.energy_facility_kwh is not None
    return f"{two(facts.energy_facility_kwh / 1000)} MWh", _methodology(facts, facts.pue)


def _methodology(facts: Facts, pue: float | None) -> str:
    if facts.energy_it_kwh is None:
        return "Energy was neither measured nor estimated for this training."
    share = "" if facts.share_measured is None else f" ({share_text(facts.share_measured)} of it measured)"
    unread = f"; not in it, because no sensor told: {facts.unread}" if facts.unread else ""
    facility = (
        "No PUE is known: facility energy is not stated."
        if pue is None
        else f"Multiplied by the declared PUE of {pue:g} for cooling and power distribution."
    )
    error = "" if facts.relative_error is None else f" 95 % interval: ±{figure(100 * facts.relative_error, 2)} %."
    if facts.facility_low_kwh is not None and facts.facility_high_kwh is not None:
        low, high = (two(kwh / 1000) for kwh in (facts.facility_low_kwh, facts.facility_high_kwh))
        error = f" 95 % interval: {low} to {high} MWh."
    return (
        f"Electricity of this run from {utc(facts.started_unix_s)[:10]} to {utc(facts.ended_unix_s)[:10]}, metered on "
        f"its nodes by {facts.methods}{share}{unread}. Boundary: {facts.boundary_text}. All from the start of metering "
        "in each attempt to its end is included: compilation, data waits, checkpoints, evaluation, idle devices, work "
        f"lost in crashes. {facility}{error} Checksummed ledgers keep the readings, from which the figure can be "
        "computed again. Not included: other experiments, data preparation, inference and embodied emissions. No "
        "certificates or offsets are deducted."
    )


def document(record: Mapping[str, Any]) -> dict[str, Any]:
    """The form's fields as text, with the thresholds beside them."""
    facts = facts_of(record)
    days = facts.duration_s / SECONDS_PER_DAY
    hardware_days = NOT_KNOWN if facts.device_hours is None else two(facts.device_hours / 24)
    magnitude, flop, flop_method = _compute(facts)
    energy, energy_method = _energy(facts)
    partial = " The run is partial: its training was not finished." if facts.partial else ""
    return {
        "form": "Model Documentation Form, Code of Practice for general-purpose AI models (July 2025)",
        "run_id": facts.run_id,
        "training_time_ncas": f"{training_range(days)}, from the start of the first attempt to the end of the last",
        "training_time_aio": f"{two(days)} wall-clock days; {hardware_days} hardware days ({facts.devices})",
        "computation_used_ncas": magnitude,
        "computation_used_aio": flop,
        "computation_methodology": flop_method + partial,
        "energy_used": energy,
        "energy_methodology": energy_method,
        "benchmark_computation": f"{NOT_KNOWN} (the record is of training; inference was not benchmarked)",
        "computation_measurement_methodology": NOT_KNOWN,
        "thresholds": {
            "general_purpose_flop": GENERAL_PURPOSE_FLOP,
            "reaches_general_purpose": None
            if facts.compute_flop is None
            else facts.compute_flop > GENERAL_PURPOSE_FLOP,
            "systemic_risk_flop": SYSTEMIC_RISK_FLOP,
            "reaches_systemic_risk": None if facts.compute_flop is None else facts.compute_flop > SYSTEMIC_RISK_FLOP,
            "note": "of this run alone: the compute of all that went into the model counts together",
        },
    }
