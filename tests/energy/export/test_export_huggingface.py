"""Model cards: grams, only our own bytes, and kilograms caught."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from record_fakes import make_run

from energy.export.huggingface import BEGIN, END, FRONT, card_faults, text, write_card
from energy.records.record import write_record

OTHERS = "license: apache-2.0\ntags:\n- llama\n- text  # ours\nmodel-index:\n- name: x\n  results: []\n"
BODY = "# A model\n\nIt   has trailing spaces.  \n\n\ttabs, ünïcode, and no newline at its end"


@pytest.fixture
def record(tmp_path: Path) -> dict[str, Any]:
    return json.loads(json.dumps(write_record(make_run(tmp_path / "r"))))


@pytest.fixture
def llama(record: dict[str, Any]) -> dict[str, Any]:
    record["carbon"]["carbon_tco2eq"] = 173.19
    return record


def emissions(card: str) -> dict[str, Any]:
    front = FRONT.match(card)
    assert front is not None
    return yaml.safe_load(front.group(3))["co2_eq_emissions"]


def test_the_yaml_is_in_grams(llama: dict[str, Any]) -> None:
    value = emissions(text(llama))
    assert value["emissions"] == 173_200_000
    assert value["training_type"] == "pre-training"
    assert value["hardware_used"] == "1 x fake GPU-1, 1 x fake GPU-2"
    assert "geographical_location" not in value  # not known: no key, and no guess
    assert card_faults(text(llama), llama) == []


def test_small_figures_are_numbers_too(record: dict[str, Any]) -> None:
    """YAML 1.1 reads 1e-05 as text."""
    record["carbon"]["carbon_tco2eq"] = 1.2345e-11
    value = emissions(text(record))["emissions"]
    assert isinstance(value, float) and value == pytest.approx(1.2345e-5, rel=1e-3)


def test_without_carbon_there_is_no_number(record: dict[str, Any]) -> None:
    record["carbon"] |= {"carbon_tco2eq": None, "intensity_g_per_kwh": None}
    card = text(record)
    assert "co2_eq_emissions" not in card and "not known" in card
    with pytest.raises(ValueError, match="no grams"):
        write_card(f"---\n{OTHERS}---\n{BODY}", record)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize(
    "old",
    [
        "", "co2_eq_emissions: 173.2\n", "co2_eq_emissions:\n  emissions: 173.2\n\n  source: me  # a comment\n",
        "'co2_eq_emissions': {emissions: 1,\n  source: x}\n",
    ],
)  # fmt: skip
def test_only_our_own_bytes_change(llama: dict[str, Any], old: str, newline: str) -> None:
    own = f"{BEGIN}\nwhat stood here\n{END}"
    body = f"---\n{BODY}\n\n"
    card = f"---\nbase_model: x\n{old}{OTHERS}{body}{own}\n\nAfter us.".replace("\n", newline)
    written = write_card(card, llama)
    assert emissions(written)["emissions"] == 173_200_000
    assert written.startswith("---\nbase_model: x\n".replace("\n", newline))
    assert OTHERS.replace("\n", newline) in written and body.replace("\n", newline) in written
    assert written.endswith(f"{END}\n\nAfter us.".replace("\n", newline))
    assert "what stood here" not in written and "173.2\n" not in written
    assert written.count("co2_eq_emissions") == 1
    if newline == "\r\n":
        assert "\n" not in written.replace("\r\n", "")
    assert write_card(written, llama) == written


def test_a_card_without_a_yaml_block_or_markers_gets_them(llama: dict[str, Any]) -> None:
    written = write_card(BODY, llama)
    assert written.startswith("---\nco2_eq_emissions:") and BODY in written
    assert written.rstrip().endswith(END)
    assert write_card(written, llama) == written
    assert emissions(write_card("", llama))["emissions"] == 173_200_000


@pytest.mark.parametrize(
    "card, what",
    [
        (f"---\n{OTHERS}bad: [\n---\n", "not YAML"),
        (f"---\n{OTHERS}---\n{BEGIN}\nno end", "torn"),
        (f"---\n{OTHERS}---\n{END}\n{BEGIN}", "torn"),
        (f"---\n{OTHERS}---\n{BEGIN}\n{END}\n{BEGIN}\n{END}", "torn"),
        ("---\nco2_eq_emissions: 1\nco2_eq_emissions: 2\n---\n", "2 times"),
        ("---\n- a list\n---\n", "no keys"),
    ],
)
def test_a_card_that_cannot_be_edited_is_refused(llama: dict[str, Any], card: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        write_card(card, llama)


@pytest.mark.parametrize(
    "said, what",
    [
        ("173190", "kilograms"), ("173.2", "tonnes"), ("173190000000", "milligrams"), ("170000000", "the record has"),
        ("173 kg", "expected a number"), ("173190000", None), ("173200000", None),
    ],
)  # fmt: skip
def test_kilograms_are_caught(llama: dict[str, Any], said: str, what: str | None) -> None:
    found = card_faults(f"---\nco2_eq_emissions:\n  emissions: {said}\n---\n", llama)
    assert found == [] if what is None else what in found[0]


def test_kilograms_are_caught_by_the_energy_where_the_carbon_is_not_known(record: dict[str, Any]) -> None:
    record["carbon"]["carbon_tco2eq"] = None
    record["energy"]["energy_facility_kwh"] = 1000.0
    assert "kilograms?" in card_faults("---\nco2_eq_emissions: 385\n---\n", record)[0]
    assert card_faults("---\nco2_eq_emissions: 385000\n---\n", record) == []
    assert "not in the card" in card_faults(BODY, record)[0]
