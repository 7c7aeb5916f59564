"""The footprint in one Markdown sentence, for a paper or a model card, with the facts that make it repeatable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from energy.export.facts import Facts, facts_of, figure, share_text
from energy.human import digits, human_carbon, human_count, human_energy


def text(record: Mapping[str, Any]) -> str:
    """A Markdown sentence or two, with a final newline."""
    return say(facts_of(record)) + "\n"


def say(facts: Facts) -> str:
    """What trained and for how long, the energy and its boundary, the carbon and its factors, what is not counted."""
    on = f" on {human_count(facts.tokens)} tokens" if facts.tokens else ""
    what = f"{'Running' if facts.is_command else 'Training'} {facts.name}{on}"
    begun = f" ({facts.status}: the run is partial)" if facts.partial else ""
    if facts.device_hours is None:
        parts = [f"{what}{begun}: on which devices, and for how many device-hours, is not known"]
    else:
        parts = [f"{what}{begun} took {digits(facts.device_hours)} device-hours on {facts.devices}"]
    if facts.energy_it_kwh is None:
        parts.append("its energy was not measured")
    else:
        measured = "" if facts.share_measured is None else f", {share_text(facts.share_measured)} of it measured"
        parts.append(f"{human_energy(facts.energy_it_kwh)} of IT energy ({facts.boundary_text}{measured})")
    if facts.energy_facility_kwh is not None and facts.pue is not None:
        parts.append(f"{human_energy(facts.energy_facility_kwh)} at the facility (PUE {facts.pue:g})")
    if facts.location_tco2eq is None:
        parts.append(f"its carbon is not known: it needs {facts.lacking_carbon}")
    else:
        region = f" in {facts.region}" if facts.region else ""
        parts.append(
            f"{human_carbon(facts.location_tco2eq)} by the location-based method"
            f" at {figure(facts.intensity_g_per_kwh or 0.0)} g/kWh{region}"
        )
    if facts.market_tco2eq is not None:
        parts.append(f"{human_carbon(facts.market_tco2eq)} by the market-based method")
    embodied = "" if facts.embodied_tco2eq is None else f"; embodied carbon adds {human_carbon(facts.embodied_tco2eq)}"
    left = "" if facts.embodied_tco2eq is not None else " Embodied carbon is not known and not in it."
    return f"{'; '.join(parts)}{embodied}. No offsets are subtracted.{left}"
