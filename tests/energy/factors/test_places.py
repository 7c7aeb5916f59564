"""Figures by place and by name: residual mixes, marginal intensities, water, losses; what is not known says why."""

from dataclasses import replace
from typing import Any

import pytest

from energy.carbon.grid import country_of, intensity, regions, zones
from energy.carbon.impact import water_block
from energy.factors import (
    FOLDER,
    absent,
    marginal_intensity,
    mixed_bases,
    pue,
    read_table,
    residual_mix,
    stale_versions,
    tables,
    transmission_loss,
    water_intensity,
    wue,
)
from energy.factors.lookup import look_up
from energy.factors.places import KINDS, OF_SPEC, by_place, from_source, named, source_in_spec

CHECKED = (
    "pue",
    "wue",
    "residual_mix",
    "marginal_intensity",
    "water_intensity",
    "transmission_loss",
    "failure_rates",
    "checkpointing",
)


@pytest.mark.parametrize("table", [*CHECKED, "cloud_regions"])
def test_every_row_says_where_it_is_from_and_what_it_was_checked_against(table: str) -> None:
    for row in read_table(table):
        assert row["source"] and row["checked"], row


def test_names_are_unique_and_bounds_hold() -> None:
    bounds = {
        "pue": (1, 2),
        "wue": (0, 3),
        "residual_mix": (10, 900),
        "marginal_intensity": (300, 1000),
        "water_intensity": (1, 20),
        "transmission_loss": (0.02, 0.25),
    }
    for kind in KINDS.values():
        low, high = bounds[kind.file]
        assert len(kind.rows()) == len(read_table(kind.file)), kind.file
        for name, factor in kind.rows().items():
            assert factor.value is None or low <= factor.value <= high, (kind.file, name)
            assert factor.note.startswith(name) and factor.unit


def test_figures_that_can_be_checked_by_hand() -> None:
    assert residual_mix()["DEU"].value == 701.47 and residual_mix()["FRA"].value == 17.11
    assert residual_mix()["eGRID CAMX"].value == pytest.approx(434.22 * 0.45359237, abs=5e-4)
    assert residual_mix()["AUT"].value is None and residual_mix()["NLD"].value is None
    assert marginal_intensity()["FRA"].value == 394.64
    assert water_intensity()["USA"].value == 3.1321 and water_intensity()["world"].value == 3.908
    assert transmission_loss()["DEU"].value == 0.0388 and transmission_loss()["IND"].value == 0.193
    assert pue()["aws eu-central-1 2025"].value == 1.24 and wue()["azure westus3 2022"].value == 2.24


@pytest.mark.parametrize(
    ("fleet", "parts"),
    [
        ("aws fleet 2025", lambda row: row["geography"].startswith("aws:") and row["year"] == "2025"),
        ("google fleet 2025", lambda row: row["geography"].startswith("gcp:") and row["year"] == "2025"),
        ("microsoft fleet FY2025", lambda row: row["name"].startswith("microsoft ") and "FY2025" in row["name"]),
    ],
)
def test_a_fleets_range_is_that_of_the_parts_which_its_owner_publishes(fleet: str, parts: Any) -> None:
    published = [float(row["value"]) for row in read_table("pue") if parts(row)]
    factor = pue()[fleet]
    assert len(published) > 2 and (factor.low, factor.high) == (min(published), max(published))
    assert "range: " in factor.note


def test_every_range_says_of_what_it_is_and_holds_its_value() -> None:
    ranged = [factor for factor in pue().values() if factor.low is not None or factor.high is not None]
    assert len(ranged) == 5 and all("range: " in factor.note for factor in ranged)
    with pytest.raises(ValueError, match="does not hold its value"):
        replace(pue()["aws fleet 2025"], low=1.2)
    assert pue()["llama paper"].low is None and "1.06 to 1.46" in str(pue()["aws fleet 2025"])


def test_bases_are_told_apart() -> None:
    assert residual_mix()["DEU"].basis.market == "market" and residual_mix()["DEU"].unit == "g CO2/kWh"
    assert marginal_intensity()["FRA"].basis.rate == "marginal"
    warnings = mixed_bases([intensity("FR"), residual_mix()["FRA"], marginal_intensity()["FRA"]])
    assert {"marginal", "market"} <= {word for text in warnings for word in text.replace("(", " ").split()}


@pytest.mark.parametrize(
    ("kind", "place", "name"),
    [
        ("residual", "Germany", "DEU"),
        ("residual", "azure:westeurope", "NLD"),
        ("residual", "SE3", "SWE"),
        ("residual", "egrid camx", "eGRID CAMX"),
        ("marginal", "us-west-2", "WattTime BPA"),
        ("marginal", "gcp:us-west1", "WattTime BPA"),
        ("marginal", "eu-west-3", "FRA"),
        ("water", "us-east-1", "USA"),
        ("water", "world", "world"),
        ("loss", "FR", "FRA"),
    ],
)
def test_a_place_finds_its_figure(kind: str, place: str, name: str) -> None:
    assert by_place(kind, place).note.split(";")[0] == name


def test_a_part_of_a_country_says_that_the_figure_is_the_countrys() -> None:
    assert "of the whole country, US-CA" in by_place("water", "California").note
    assert "whole country" not in by_place("water", "USA").note
    assert country_of("SEN") is None and country_of("SE3") == "SWE" and country_of("US-CA") == "USA"


@pytest.mark.parametrize(
    ("kind", "place", "reason"),
    [
        ("residual", "us-east-1", "eGRID subregion"),
        ("residual", "GB", "outside the EU"),
        ("residual", "Senegal", "grid's average stand in"),
        ("residual", "eGRID XXXX", "eGRID"),
        ("marginal", "US-CA", "not a balancing area"),
        ("water", "Senegal", "world"),
        ("loss", "AU", "World Bank"),
        ("loss", "Frnace", "did you mean"),
    ],
)
def test_what_is_not_known_says_why(kind: str, place: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        by_place(kind, place)


def test_reasons_are_of_tables_that_there_are() -> None:
    assert {row["table"] for row in read_table("absent")} <= {kind.file for kind in KINDS.values()}
    assert look_up("residual").absent == absent("residual_mix") and look_up("loss FR").absent == []
    assert [len(look_up(query).factors) for query in ("losses", "pue google fleet", "wue aws fleet")] == [53, 3, 5]
    with pytest.raises(ValueError, match="gallons by site"):
        look_up("wue google")


def test_a_named_figure_is_found_again_from_the_source_that_a_spec_keeps() -> None:
    names = ("google fleet 2024", "AWS us-east-1 2025", "DE", "FR", "us-west-2")
    for key, name in zip(
        ("pue", "wue", "intensity_market", "transmission_loss", "water_intensity"), names, strict=True
    ):
        factor = named(key, name)
        assert factor.value is not None
        found = from_source(key, factor.value, source_in_spec(factor))
        assert found is not None and (found.key, found.year, found.basis) == (factor.key, factor.year, factor.basis)
        assert from_source(key, factor.value + 0.01, source_in_spec(factor)) is None
        assert from_source(key, factor.value, "our own meter") is None
    assert from_source("device_rated_power", 400, "llama paper: x") is None and set(OF_SPEC) == {
        "pue", "wue", "intensity_market", "transmission_loss", "water_intensity",
    }  # fmt: skip
    with pytest.raises(ValueError, match="full disclosure"):
        named("intensity_market", "AT")
    with pytest.raises(ValueError, match="google fleet 2024"):
        named("pue", "goggle fleet 2024")


def test_other_bases_of_a_grid_stand_beside_it() -> None:
    beside = look_up("grid europe-west3")
    assert {factor.basis.rate for factor in beside.alternatives} == {"average", "marginal"}
    assert any("market" in warning for warning in beside.warnings)
    assert look_up("385 g/kWh").alternatives == []


def test_marginal_rows_name_regions_that_there_are() -> None:
    named_in = [key for row in read_table("marginal_intensity") for key in row["regions"].split("|") if key]
    assert len(named_in) == len(set(named_in)) and set(named_in) <= set(regions())
    for row in read_table("marginal_intensity"):
        assert row["name"] in zones() or row["name"].startswith("WattTime ")


def test_water_on_site_is_by_it_energy_and_off_site_by_the_facilitys() -> None:
    figures = {"wue_l_per_kwh": {"value": 0.18}, "water_intensity_l_per_kwh": {"value": 3.1321}}
    water = water_block({"accounting": figures}, 100.0, 110.0)
    assert water["on_site_l"] == pytest.approx(18.0) and water["off_site_l"] == pytest.approx(344.531)


def test_every_table_of_the_folder_is_listed_with_its_hash() -> None:
    listed = {path.stem for path in FOLDER.glob("*.csv")} - {"versions"}
    assert set(tables.table_versions()) == listed
    assert stale_versions() == [], "a table was changed: run `python -m energy.factors`"


def test_a_changed_new_or_lost_table_is_noticed_and_goes_up_one_version(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tables, "FOLDER", tmp_path)
    (tmp_path / "a.csv").write_text("name\nx\n")
    (tmp_path / "b.csv").write_text("name\ny\n")
    (tmp_path / "versions.csv").write_text(f"table,version,sha256\na,3,{'0' * 64}\ngone,1,{'0' * 64}\n")
    assert tables.stale_versions() == tables.write_versions() == ["a", "b", "gone"]
    assert {name: told["version"] for name, told in tables.table_versions().items()} == {"a": "4", "b": "1"}
    assert tables.stale_versions() == tables.write_versions() == []
