"""Grid intensity by place: the tables read as data, cloud regions, constants, and errors that help."""

import json

import pytest

from energy.carbon.grid import alternatives, constant, intensity, regions, zone_key, zones
from energy.carbon.grid_data import data_folder
from energy.factors import mixed_bases, read_table


@pytest.mark.parametrize(
    ("said", "zone"),
    [
        ("FR", "FRA"),
        ("fra", "FRA"),
        ("France", "FRA"),
        ("UK", "GBR"),
        ("US", "USA"),
        ("CA", "CAN"),
        ("US-CA", "US-CA"),
        ("California", "US-CA"),
        ("new york", "US-NY"),
        ("Québec", "CA-QC"),
        ("Beijing", "CN-BJ"),
        ("nei mongol", "CN-NM"),
        ("SE3", "SE3"),
        ("FI", "FIN"),
        ("us-east-1", "US-VA"),
        ("us-west-2", "US-OR"),
        ("eu-north-1", "SE3"),
        ("westus2", "US-WA"),
        ("azure:swedencentral", "SWE"),
        ("us-west2", "US-CA"),
        ("gcp:europe-west9", "FRA"),
        ("cn-northwest-1", "CN-NX"),
    ],
)
def test_a_place_finds_its_zone(said: str, zone: str) -> None:
    assert zone_key(said) == zone
    assert intensity(said).geography == zone


def test_values_are_those_of_the_files_with_year_basis_and_source() -> None:
    folder = data_folder() / "private_infra"
    world = json.loads((folder / "global_energy_mix.json").read_text())
    states = json.loads((folder / "2023" / "usa_emissions.json").read_text())
    france, oregon = intensity("France"), intensity("us-west-2")
    assert france.value == world["FRA"]["carbon_intensity"] and france.year == world["FRA"]["year"]
    assert str(france.basis) == "average, lifecycle, generation, location"
    assert oregon.value == pytest.approx(states["oregon"]["emissions"] * 0.45359237)
    assert oregon.year == 2023 and oregon.basis.scope == "direct"
    assert "eGRID2023" in oregon.source and "codecarbon" in oregon.source and "aws us-west-2" in oregon.note
    quebec, alberta = intensity("CA-QC").value, intensity("CA-AB").value
    assert quebec is not None and alberta is not None and quebec < 10 < 500 < alberta < 900


def test_every_zone_states_what_it_is() -> None:
    assert len(zones()) > 300
    for zone, factor in zones().items():
        assert factor.geography == zone and factor.source and factor.year and factor.basis.rate == "average"
        assert factor.value is None or 0 < factor.value < 1400, zone


def test_a_zero_in_the_file_is_unknown_and_not_zero() -> None:
    assert intensity("CAF").value is None and "no source" in intensity("CAF").note


def test_china_is_co2_alone_and_says_so() -> None:
    beijing = intensity("CN-BJ")
    assert beijing.unit == "g CO2/kWh" and "CO2 only" in beijing.note and beijing.basis.side == "consumption"


def test_cloud_regions_lie_in_known_zones_and_are_unique() -> None:
    assert {region.provider for region in regions().values()} == {"aws", "azure", "gcp", "oci"}
    assert len(regions()) == len(read_table("cloud_regions"))
    for key, region in regions().items():
        assert region.zone in zones(), key
        assert intensity(key).value is not None, key
        assert region.source and region.place and region.checked


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("Frnace", "France"),
        ("us-west-9", "us-west-2"),
        ("virgina", "Virginia"),
        ("Georgia", "GEO .*US-GA"),
        ("", "never guessed"),
        ("  ", "never guessed"),
        ("385", "no unit"),
        ("-3 g/kWh", "negative"),
        ("Mars", "unknown place"),
    ],
)
def test_unknown_and_doubtful_places_are_errors_that_help(place: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        intensity(place)


def test_constants_and_presets() -> None:
    assert intensity("385 g/kWh").value == 385
    assert intensity("0.385 kgCO2eq/kWh").value == pytest.approx(385)
    assert intensity("770.884 lb/MWh").value == pytest.approx(349.667, abs=1e-3)
    assert "declared" in intensity("385 g/kWh").source
    assert intensity("llama_paper").value == 385 and "LLaMA paper" in intensity("llama_paper").source
    assert constant("FR") is None


def test_other_figures_for_a_place_stand_beside_it_with_a_warning() -> None:
    iowa = intensity("us-central1")
    others = alternatives("us-central1")
    assert [factor.geography for factor in others] == ["gcp:us-central1", "USA"]
    assert any("direct" in warning and "lifecycle" in warning for warning in mixed_bases([iowa, *others]))
    assert alternatives("US")[0].geography == "US-eGRID"
    assert alternatives("385 g/kWh") == alternatives("llama_paper") == []
