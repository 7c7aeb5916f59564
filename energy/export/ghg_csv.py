"""A CSV for a greenhouse gas inventory: scope 2 by location and by market side by side, scope 3 apart, no offsets.

GHG Protocol Scope 2 Guidance (2015), chapter 6: both methods are reported where a market exists. Scope 2 holds direct
emissions of power stations; a lifecycle factor holds some of scope 3 category 3 too, and the column `basis` says so. An
empty cell is not known.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from energy.export.facts import Facts, facts_of, utc

COLUMNS = (
    "run_id", "period_start", "period_end", "scope", "category", "method", "activity", "activity_unit", "factor",
    "factor_unit", "factor_source", "emissions_tco2eq", "note", "basis",
)  # fmt: skip


MEMO = "memo: share over service life; category 2 asks for the whole in the year of purchase"
NO_MARKET = "no contract, certificate or residual mix was given; it is not the location-based figure"


def rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for each line of an inventory; None is not known."""
    facts, carbon, embodied = facts_of(record), record["carbon"], record["embodied"]
    shared = {
        "run_id": facts.run_id,
        "period_start": utc(facts.started_unix_s),
        "period_end": utc(facts.ended_unix_s),
    }
    electricity = shared | {
        "scope": "2",
        "category": "purchased electricity",
        "activity": facts.energy_facility_kwh,
        "activity_unit": "kWh",
        "factor_unit": "g CO2eq/kWh",
    }
    tenant = f"for a tenant of {facts.provider} electricity is scope 3" if facts.provider else ""
    lacking = "" if facts.market_tco2eq is not None else f"not known: {_lacking_market(facts)}"
    by_location = {
        "method": "location-based",
        "factor": facts.intensity_g_per_kwh,
        "factor_source": facts.intensity_source,
        "basis": _basis(record, "intensity_g_per_kwh"),
    }
    by_market = {
        "method": "market-based",
        "factor": facts.market_g_per_kwh,
        "factor_source": facts.market_source,
        "emissions_tco2eq": facts.market_tco2eq,
        "note": "; ".join(filter(None, (lacking, tenant))),
        "basis": _basis(record, "intensity_market_g_per_kwh"),
    }
    told = "; ".join(filter(None, (f"energy of {facts.boundary_text}; times PUE", tenant)))
    found = [
        electricity | by_location | {"emissions_tco2eq": facts.location_tco2eq, "note": told},
        electricity | by_market,
        shared
        | {
            "scope": "3",
            "category": "capital goods (embodied in the hardware, its share of the run)",
            "method": "embodied",
            "activity": facts.device_hours,
            "activity_unit": "device-hours",
            "emissions_tco2eq": facts.embodied_tco2eq,
            "note": f"{MEMO}; {embodied.get('note')}",
            "basis": embodied.get("convention"),
        },
    ]
    lost_tco2eq, loss = carbon.get("carbon_transmission_tco2eq"), carbon.get("transmission_loss")
    if lost_tco2eq is not None and loss is not None and facts.energy_facility_kwh is not None:
        losses = {
            "scope": "3",
            "category": "fuel- and energy-related activities (category 3): losses on the lines",
            "activity": facts.energy_facility_kwh * loss / (1 - loss),
            "emissions_tco2eq": lost_tco2eq,
            "note": f"{loss:.3g} of what the power stations give: {carbon.get('transmission_loss_source')}",
        }
        found.append(electricity | by_location | losses)
    return found


def _lacking_market(facts: Facts) -> str:
    if facts.market_g_per_kwh is None:
        return NO_MARKET
    return "it needs a measurement" if facts.energy_it_kwh is None else "it needs a PUE"


def _basis(record: Mapping[str, Any], key: str) -> str | None:
    """What a factor counts, as its source says: 'average, lifecycle, generation, location'; None where it does not."""
    stored: Mapping[str, Any] = next((factor for factor in record["assumptions"] if factor["key"] == key), {})
    words = [word for word in (stored.get("basis") or {}).values() if word]
    by_hour = key == "intensity_g_per_kwh" and record["carbon"].get("series_sha256") is not None
    return ", ".join(words) if words and not by_hour else None


def text(record: Mapping[str, Any]) -> str:
    """The CSV with its header."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in rows(record))
    return out.getvalue()
