"""CycloneDX 1.7 (ECMA-424): the model as a component, with the energy of its training in its model card.

`energyConsumptions` needs a number: where the energy is not known the entry is left out and a property says so.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from energy.export.facts import Facts, facts_of, utc
from energy.records.record import canonical
from energy.run_version import program_version

NAMESPACE = uuid.UUID("6f8a1d3e-52c4-5b8b-9d0e-1b6f0a6f2c11")  # of hoofprint's exports, for names made by content


def identity(record: Mapping[str, Any], kind: str) -> uuid.UUID:
    """The same record has the same identity on every machine."""
    return uuid.uuid5(NAMESPACE, f"{kind}\n{canonical(dict(record))}")


def _properties(pairs: Mapping[str, Any]) -> list[dict[str, str]]:
    """Name and value; what is None is said to be not known."""
    return [{"name": f"hoofprint:{name}", "value": _plain(value)} for name, value in pairs.items()]


def _plain(value: Any) -> str:
    return "not known" if value is None else str(value)


def _consumption(facts: Facts) -> dict[str, Any] | None:
    at_facility = facts.energy_facility_kwh is not None
    energy_kwh = facts.energy_facility_kwh if at_facility else facts.energy_it_kwh
    if energy_kwh is None:
        return None
    measure = {"value": energy_kwh, "unit": "kWh"}
    consumption: dict[str, Any] = {
        "activity": {"pre-training": "training", "fine-tuning": "fine-tuning"}.get(facts.training_type or "", "other"),
        "energyProviders": [
            {
                "description": f"electricity of the grid of {facts.region}" if facts.region else "the local grid",
                "organization": {"name": facts.provider or "not known"},
                "energySource": "unknown",
                "energyProvided": measure,
            }
        ],
        "activityEnergyCost": measure,
    }
    if facts.location_tco2eq is not None:
        consumption["co2CostEquivalent"] = {"value": facts.location_tco2eq, "unit": "tCO2eq"}
    consumption["properties"] = _properties(
        {
            "boundary": f"facility: {facts.boundary_text}, times PUE" if at_facility else facts.boundary_text,
            "pue": facts.pue,
            "method": facts.methods,
            "carbon_basis": "location",
            "carbon_market_tco2eq": facts.market_tco2eq,
            "intensity_g_per_kwh": facts.intensity_g_per_kwh,
            "embodied_tco2eq": facts.embodied_tco2eq,
            "offsets": "none are subtracted",
        }
    )
    return consumption


def document(record: Mapping[str, Any]) -> dict[str, Any]:
    """A CycloneDX 1.7 BOM of the one model that the run trained."""
    facts = facts_of(record)
    consumption = _consumption(facts)
    environment: dict[str, Any] = {"energyConsumptions": [consumption]} if consumption else {}
    if consumption is None:
        environment["properties"] = _properties({"energy_kwh": None})
    tool = {"type": "application", "name": "hoofprint"}
    version = program_version()
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.7.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.7",
        "serialNumber": identity(record, "cyclonedx").urn,
        "version": 1,
        "metadata": {
            "timestamp": utc(facts.ended_unix_s),
            "tools": {"components": [tool | ({"version": version} if version else {})]},
        },
        "components": [
            {
                "type": "machine-learning-model",
                "bom-ref": f"model-{facts.run_id}",
                "name": facts.name,
                "version": facts.run_id,
                "modelCard": {"considerations": {"environmentalConsiderations": environment}},
                "properties": _properties(
                    {
                        "parameters": facts.params,
                        "tokens_trained": facts.tokens,
                        "compute_flop": facts.compute_flop,
                        "flop_convention": facts.flop_convention,
                        "device_hours": facts.device_hours,
                        "hardware": facts.devices,
                        "status": facts.status,
                    }
                ),
            }
        ],
    }
