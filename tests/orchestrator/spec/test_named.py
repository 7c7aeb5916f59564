"""Figures that a spec names: number and source come from the tables, and the record's factor keeps year and basis."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from orchestrator.driver.accounting import accounting_of
from orchestrator.spec.energy_spec import EnergySpec
from orchestrator.spec.file import load_experiment

NAMES = {
    "pue": "google fleet 2024",
    "wue": "aws us-east-1 2025",
    "intensity_market": "DE",
    "transmission_loss": "FR",
    "water_intensity": "us-east-1",
}


def test_names_become_numbers_with_their_source() -> None:
    spec = EnergySpec.model_validate(NAMES)
    assert (spec.pue, spec.wue, spec.intensity_market) == (1.09, 0.06, 701.47)
    assert (spec.transmission_loss, spec.water_intensity) == (0.0634, 3.1321)
    assert spec.pue_source == "google fleet 2024: Google Environmental Report 2025"
    assert "of the whole country" in str(spec.water_intensity_source)
    assert EnergySpec.model_validate(spec.model_dump()) == spec
    over = load_experiment(Path("experiments/llama_7b.yaml"), ["energy.pue=google fleet 2024"])
    assert over.energy.pue_source == spec.pue_source, "the file's source is that of the number it had"
    assert EnergySpec.model_validate({"intensity_market": "0.2 kg/kWh", "intensity_market_source": "PPA"})


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"pue": "gogle"}, "no PUE is known"),
        ({"intensity_market": "AT"}, "full disclosure"),
        ({"wue": "FR"}, "WUE"),
        ({"grid": "38 g/kWh"}, "is a figure: write intensity, with intensity_source"),  # else it would have no source
    ],
)
def test_a_name_that_is_none_says_what_the_table_lacks(given: dict[str, str], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        EnergySpec.model_validate(given)


def test_the_schema_takes_names() -> None:
    import jsonschema

    schema = EnergySpec.model_json_schema()
    jsonschema.validate(NAMES, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"sample_interval": "often"}, schema)


def test_the_account_keeps_year_place_and_basis() -> None:
    experiment = load_experiment(Path("experiments/llama_7b.yaml"))
    named = experiment.model_copy(update={"energy": EnergySpec.model_validate(NAMES)})
    figures = accounting_of(named)["accounting"]
    assert figures["intensity_market_g_per_kwh"]["unit"] == "g CO2/kWh"
    assert figures["intensity_market_g_per_kwh"]["basis"]["market"] == "market"
    assert figures["pue"]["year"] == 2024 and "checked against" in figures["pue"]["note"]
    assert figures["wue_l_per_kwh"]["geography"] == "aws:us-east-1"
    places = [accounting_of(load_experiment(Path("experiments/laptop.yaml"), [f"energy.grid={name}"]))["place"]
              for name in ("us-west-2", "llama_paper")]  # fmt: skip
    assert places == [{"region": "us-west-2", "provider": "aws"}, {"region": None, "provider": None}]
    own = experiment.model_copy(update={"energy": EnergySpec(pue=1.2, pue_source="our meter")})
    assert accounting_of(own)["accounting"]["pue"]["year"] is None
