"""A CSV for a greenhouse gas inventory: scope 2 by location and by market side by side, scope 3 apart, no offsets.

GHG Protocol Scope 2 Guidance (2015), chapter 6: both methods are reported where a market exists. An empty cell is not
known.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from energy.export.facts import facts_of, utc

COLUMNS = (
    "run_id", "period_start", "period_end", "scope", "category", "method", "activity", "activity_unit", "factor",
    "factor_unit", "factor_source", "emissions_tco2eq", "note",
)  # fmt: skip


def rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for each line of an inventory; None is not known."""
    facts = facts_of(record)
    shared = {
        "run_id": facts.run_id,
        "period_start": utc(facts.started_unix_s),
        "period_end": utc(facts.ended_unix_s),
    }
    electricity = {
        "scope": "2",
        "category": "purchased electricity",
        "activity": facts.energy_facility_kwh,
        "activity_unit": "kWh",
        "factor_unit": "g CO2eq/kWh",
    }
    market_g_per_kwh = (
        facts.market_tco2eq * 1e6 / facts.energy_facility_kwh
        if facts.market_tco2eq is not None and facts.energy_facility_kwh
        else None
    )
    no_market = "not known: no contract, certificate or residual mix was given; it is not the location-based figure"
    return [
        shared
        | electricity
        | {
            "method": "location-based",
            "factor": facts.intensity_g_per_kwh,
            "factor_source": facts.intensity_source,
            "emissions_tco2eq": facts.location_tco2eq,
            "note": f"energy of {facts.boundary_text}; times PUE",
        },
        shared
        | electricity
        | {
            "method": "market-based",
            "factor": market_g_per_kwh,
            "factor_source": facts.market_source,
            "emissions_tco2eq": facts.market_tco2eq,
            "note": no_market if facts.market_tco2eq is None else "",
        },
        shared
        | {
            "scope": "3",
            "category": "capital goods (embodied in the hardware, its share of the run)",
            "method": "embodied",
            "activity": facts.device_hours,
            "activity_unit": "device-hours",
            "emissions_tco2eq": facts.embodied_tco2eq,
            "note": record["embodied"].get("note"),
        },
    ]


def text(record: Mapping[str, Any]) -> str:
    """The CSV with its header."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in rows(record))
    return out.getvalue()
