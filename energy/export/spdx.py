"""SPDX 3.0.1, AI profile, as JSON-LD: the model as an AIPackage with the energy of its training.

`ai_energyConsumption` is left out where the energy is not known: the profile has no word for that. The document does
not claim to conform to the whole AI profile, which asks for a supplier, a download location and a release time: a
training knows none of them, and whoever publishes the model adds them.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from energy.export.cyclonedx import identity
from energy.export.facts import Facts, facts_of, utc
from energy.run_version import program_version

CONTEXT = "https://spdx.org/rdf/3.0.1/spdx-context.jsonld"
CREATION = "_:creation"


def _decimal(value: float) -> str:
    """xsd:decimal has no exponent."""
    return format(Decimal(repr(float(value))), "f")


def _energy(facts: Facts) -> dict[str, Any] | None:
    energy_kwh = facts.energy_facility_kwh if facts.energy_facility_kwh is not None else facts.energy_it_kwh
    if energy_kwh is None:
        return None
    activity = "finetuning" if facts.training_type == "fine-tuning" else "training"
    return {
        "type": "ai_EnergyConsumption",
        f"ai_{activity}EnergyConsumption": [
            {
                "type": "ai_EnergyConsumptionDescription",
                "ai_energyQuantity": _decimal(energy_kwh),
                "ai_energyUnit": "kilowattHour",
            }
        ],
    }


def _training(facts: Facts) -> str:
    """What SPDX has no property for: the boundary of the energy, its carbon, compute and hardware."""

    def known(value: float | None, unit: str) -> str:
        return "not known" if value is None else f"{value:.6g} {unit}"

    hours = "not known" if facts.device_hours is None else f"{facts.device_hours:,.3f}"
    where = f"facility (IT energy times PUE {facts.pue:g})" if facts.energy_facility_kwh is not None else "IT"
    return (
        f"Energy: {where}; {facts.boundary_text}; by {facts.methods or 'no sensor'}. "
        f"IT energy {known(facts.energy_it_kwh, 'kWh')}, facility energy {known(facts.energy_facility_kwh, 'kWh')}. "
        f"Carbon, location-based {known(facts.location_tco2eq, 'tCO2eq')}, market-based "
        f"{known(facts.market_tco2eq, 'tCO2eq')}, embodied {known(facts.embodied_tco2eq, 'tCO2eq')}. "
        f"Compute {known(facts.compute_flop, 'FLOP')} ({facts.flop_convention}). "
        f"Trained on {known(facts.tokens, 'tokens')}. Hardware {facts.devices}, {hours} device-hours."
    )


def document(record: Mapping[str, Any]) -> dict[str, Any]:
    """An SPDX 3.0.1 document of the one model that the run trained."""
    facts = facts_of(record)
    base = identity(record, "spdx").urn
    created = utc(facts.ended_unix_s)
    agent, package, document_id = f"{base}#agent", f"{base}#model", f"{base}#document"
    version = program_version()
    model: dict[str, Any] = {
        "type": "ai_AIPackage",
        "spdxId": package,
        "creationInfo": CREATION,
        "name": facts.name,
        "software_packageVersion": facts.run_id,
        "software_primaryPurpose": "model",
        "builtTime": created,
        "ai_typeOfModel": ["transformer", "causal language model"] if facts.params else [],
        "ai_informationAboutTraining": _training(facts),
    }
    if not model["ai_typeOfModel"]:
        del model["ai_typeOfModel"]
    if facts.params:
        entry = {"type": "DictionaryEntry", "key": "parameters", "value": f"{facts.params:.0f}"}
        model["ai_hyperparameter"] = [entry]
    energy = _energy(facts)
    if energy is not None:
        model["ai_energyConsumption"] = energy
    return {
        "@context": CONTEXT,
        "@graph": [
            {
                "type": "CreationInfo",
                "@id": CREATION,
                "specVersion": "3.0.1",
                "created": created,
                "createdBy": [agent],
            },
            {
                "type": "SoftwareAgent",
                "spdxId": agent,
                "creationInfo": CREATION,
                "name": f"hoofprint {version}" if version else "hoofprint",
            },
            {
                "type": "SpdxDocument",
                "spdxId": document_id,
                "creationInfo": CREATION,
                "profileConformance": ["core", "software"],
                "rootElement": [package],
                "element": [agent, package],
            },
            model,
        ],
    }
