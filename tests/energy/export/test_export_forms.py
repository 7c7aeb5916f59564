"""Each form against its own schema or rule: CycloneDX, SPDX, the EU form, SCI, the inventory, the sentences."""

import copy
import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from record_fakes import make_run

from energy.carbon.embodied import CONVENTIONS
from energy.export import FORMATS, OF_MODELS, render
from energy.export.eu_form import training_range, two
from energy.export.facts import figure, significant
from energy.export.ghg_csv import COLUMNS
from energy.records.record import write_record

LLAMA_FLOP = 1.4e12 * 406_239_313_920


@pytest.fixture
def record(tmp_path: Path) -> dict[str, Any]:
    return json.loads(json.dumps(write_record(make_run(tmp_path / "r"))))


@pytest.fixture
def unknown(tmp_path: Path) -> dict[str, Any]:
    """Nothing measured, on no device, no factor given, no model: everything that can be null is."""
    run = make_run(tmp_path / "u", meter=False, accounting={}, model={}, status="failed", device_type=None)
    return json.loads(json.dumps(write_record(run)))


@pytest.fixture
def llama(record: dict[str, Any]) -> dict[str, Any]:
    """LLaMA-65B as the paper has it: 449.84 MWh at a PUE of 1.1, 0.385 kg/kWh, 2048 A100, 21 days."""
    hours = 1_022_362
    facility_kwh = hours * 0.4 * 1.1
    record["energy"] |= {"energy_facility_kwh": facility_kwh, "energy_it_kwh": hours * 0.4, "pue": 1.1}
    record["carbon"] |= {"carbon_tco2eq": facility_kwh * 385 / 1e6, "intensity_g_per_kwh": 385.0, "source": "paper"}
    record["data"] |= {"tokens_trained": 1.4e12, "tokens_processed": 1.4e12}
    record["compute"] |= {"compute_flop": LLAMA_FLOP, "compute_flop_6nd": 6 * 65_285_660_672 * 1.4e12}
    record["model"] |= {"params": 65_285_660_672}
    record["time"] |= {"duration_s": 21 * 86400.0, "device_hours": hours, "gpu_hours": hours}
    return record


def strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for part in value.values() for text in strings(part)]
    if isinstance(value, list):
        return [text for part in value for text in strings(part)]
    return [value] if isinstance(value, str) else []


@pytest.mark.parametrize("form", FORMATS)
def test_every_form_of_every_record_ends_with_a_newline_and_leaves_the_record(
    form: str, record: dict[str, Any], unknown: dict[str, Any]
) -> None:
    for each in (record, unknown):
        before = copy.deepcopy(each)
        text = render(each, form)
        assert text.endswith("\n") and "None" not in text and "nan" not in text.lower().replace("nano", "")
        assert each == before
        assert render(each, form) == text


def test_an_unknown_format_names_the_known_ones(record: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="cyclonedx"):
        render(record, "codecarbon")


def cyclonedx_faults(text: str) -> Any:
    pytest.importorskip("cyclonedx")
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    return JsonStrictValidator(SchemaVersion.V1_7).validate_str(text)


def test_cyclonedx_fits_its_schema(record: dict[str, Any], unknown: dict[str, Any]) -> None:
    for each in (record, unknown):
        assert cyclonedx_faults(render(each, "cyclonedx")) is None
    broken = json.loads(render(record, "cyclonedx"))
    card = broken["components"][0]["modelCard"]["considerations"]["environmentalConsiderations"]
    card["energyConsumptions"][0]["activityEnergyCost"]["unit"] = "MWh"
    assert cyclonedx_faults(json.dumps(broken)) is not None  # the validator does look there


def test_cyclonedx_has_the_records_figures_unrounded(llama: dict[str, Any], unknown: dict[str, Any]) -> None:
    def considerations(each: dict[str, Any]) -> dict[str, Any]:
        component = json.loads(render(each, "cyclonedx"))["components"][0]
        return component["modelCard"]["considerations"]["environmentalConsiderations"]

    consumption = considerations(llama)["energyConsumptions"][0]
    assert consumption["activityEnergyCost"] == {"value": llama["energy"]["energy_facility_kwh"], "unit": "kWh"}
    assert consumption["co2CostEquivalent"] == {"value": llama["carbon"]["carbon_tco2eq"], "unit": "tCO2eq"}
    assert "co2CostOffset" not in consumption
    assert "energyConsumptions" not in considerations(unknown)  # a number is required: none is made up


def test_spdx_is_read_by_its_own_model(record: dict[str, Any], unknown: dict[str, Any]) -> None:
    spdx = pytest.importorskip("spdx_python_model")
    model, objects = spdx.load_data(json.loads(render(record, "spdx")))
    assert not objects.missing_ids
    (package,) = objects.foreach_type(model.ai_AIPackage)
    (energy,) = package.ai_energyConsumption.ai_trainingEnergyConsumption
    assert float(energy.ai_energyQuantity) == record["energy"]["energy_facility_kwh"]
    assert energy.ai_energyUnit == model.ai_EnergyUnitType.kilowattHour
    for each in objects.foreach():  # every required property is there
        model.JSONLDSerializer().serialize_data(model.SHACLObjectSet([each]))
    _, objects = spdx.load_data(json.loads(render(unknown, "spdx")))
    (package,) = objects.foreach_type(model.ai_AIPackage)
    assert package.ai_energyConsumption is None
    broken = json.loads(render(record, "spdx"))
    broken["@graph"][-1]["ai_energyConsumption"]["ai_trainingEnergyConsumption"][0]["ai_energyUnit"] = "kWh"
    with pytest.raises((ValueError, TypeError)):
        spdx.load_data(broken)


def test_spdx_quantities_have_no_exponent(record: dict[str, Any]) -> None:
    record["energy"]["energy_facility_kwh"] = 1.25e-7
    quantity = json.loads(render(record, "spdx"))["@graph"][-1]["ai_energyConsumption"]
    assert quantity["ai_trainingEnergyConsumption"][0]["ai_energyQuantity"] == "0.000000125"


def test_the_eu_form_of_llama_65b(llama: dict[str, Any]) -> None:
    form = json.loads(render(llama, "eu-form"))
    assert form["training_time_ncas"].startswith("less than 1 month")
    assert form["training_time_aio"].startswith("2.1 x 10^1 wall-clock days; 4.3 x 10^4 hardware days")
    assert form["computation_used_ncas"] == "10^23 FLOP"
    assert form["computation_used_aio"] == "5.7 x 10^23 FLOP"
    assert "PaLM" in form["computation_methodology"] and "5.5 x 10^23" in form["computation_methodology"]
    assert form["energy_used"] == "4.5 x 10^2 MWh"
    llama["uncertainty"] |= {"energy_facility_kwh": None, "relative": 0.00123}
    assert "95 % interval: ±0.12 %." in json.loads(render(llama, "eu-form"))["energy_methodology"]
    assert "Boundary:" in form["energy_methodology"] and "PUE of 1.1" in form["energy_methodology"]
    assert 80 <= len(form["energy_methodology"].split()) <= 125
    assert form["thresholds"]["reaches_general_purpose"] is True
    assert form["thresholds"]["reaches_systemic_risk"] is False


def test_the_eu_form_says_what_is_missing(record: dict[str, Any], unknown: dict[str, Any]) -> None:
    form = json.loads(render(unknown, "eu-form"))
    assert form["energy_used"].startswith("N/A (no sensor")
    assert form["computation_used_aio"] == form["computation_used_ncas"] == "N/A"
    assert form["thresholds"]["reaches_general_purpose"] is None
    record["energy"] |= {"energy_facility_kwh": None, "pue": None}
    form = json.loads(render(record, "eu-form"))
    assert form["energy_used"].startswith("N/A (the power usage effectiveness")
    assert "IT energy alone" in form["energy_used"]
    record["energy"]["devices"][1]["samples"] = 0
    said = "of it measured); not in it, because no sensor told: fake GPU-2 (GPU-2). Boundary"
    assert said in json.loads(render(record, "eu-form"))["energy_methodology"]


def test_the_hardware_is_what_trained_and_not_what_lay_beside_it(record: dict[str, Any]) -> None:
    assert "on 1 x fake GPU-1, 1 x fake GPU-2;" in render(record, "sentence")
    record["hardware"]["world_size"] = 1
    assert "on 1 x fake GPU-1, 1 x fake GPU-2 (1 of these GPUs idle);" in render(record, "sentence")
    record["hardware"]["devices"][1]["name"] = "fake GPU-1"
    assert "on 1 x fake GPU-1 (1 more GPU of the nodes idle);" in render(record, "sentence")
    first = record["run"]["attempts"][0]
    record["run"]["attempts"] = [first, first | {"attempt": 2}]
    assert "on 1 x fake GPU-1 (1 more GPU of the nodes idle, or of other attempts);" in render(record, "sentence")
    record["run"]["attempts"] = [first | {"world_size": 2}]
    assert "on 2 x fake GPU-1;" in render(record, "sentence")
    record["hardware"]["devices"][1]["name"], record["hardware"]["world_size"] = "fake GPU-2", 2
    record["hardware"]["device_type"] = "cpu"
    assert "on 1 x fake cpu-GPU;" in render(record, "sentence")
    record["hardware"]["device_type"] = None  # not known: the accelerators
    assert "on 1 x fake GPU-1, 1 x fake GPU-2;" in render(record, "sentence")
    assert render(record, "sentence").startswith("Training small on 20.5 k tokens took ")
    record["run"]["purpose"] = "measure"
    assert render(record, "sentence").startswith("Running small ")
    for form in FORMATS:  # a command is no model
        if form in OF_MODELS:
            with pytest.raises(
                ValueError, match="measured command; it has: huggingface, csv, sentence, latex, sci, json"
            ):
                render(record, form)
        else:
            assert render(record, form)


def test_a_training_that_began_with_given_weights_is_a_fine_tuning_in_every_form(tmp_path: Path) -> None:
    given = {"initial_weights": {"path": str(tmp_path / "weights"), "imported": None}}
    record = json.loads(json.dumps(write_record(make_run(tmp_path / "r", **given))))
    assert record["run"]["training_type"] == "fine-tuning" and str(tmp_path) not in json.dumps(record["run"])
    assert 'training_type: "fine-tuning"' in render(record, "huggingface")
    assert cyclonedx_faults(render(record, "cyclonedx")) is None
    assert '"activity": "fine-tuning"' in render(record, "cyclonedx")
    spdx = pytest.importorskip("spdx_python_model")
    model, objects = spdx.load_data(json.loads(render(record, "spdx")))
    (package,) = objects.foreach_type(model.ai_AIPackage)
    energy = package.ai_energyConsumption
    assert len(energy.ai_finetuningEnergyConsumption) == 1 and not list(energy.ai_trainingEnergyConsumption)


@pytest.mark.parametrize(
    "days, expected",
    [(0.1, "less than 1 month"), (30, "less than 1 month"), (31, "1-3 months"), (100, "3-6 months"),
     (200, "more than 6 months")],
)  # fmt: skip
def test_ranges_of_the_eu_form(days: float, expected: str) -> None:
    assert training_range(days) == expected


def test_two_significant_figures() -> None:
    assert [two(value) for value in (449.84, 0.00996, 1.0, 5.687e23, 9.96)] == [
        "4.5 x 10^2", "1.0 x 10^-2", "1.0 x 10^0", "5.7 x 10^23", "1.0 x 10^1",
    ]  # fmt: skip
    assert two(0) == "0"
    assert significant(123456, 2) == 120000 and significant(0.0, 3) == 0
    assert [figure(value) for value in (385.0, 41.26, 1234.5, 0.000123, 2.5e9, 0)] == [
        "385", "41.3", "1,230", "1.23e-4", "2.50e9", "0",
    ]  # fmt: skip


def test_sci_of_llama_65b_and_without_embodied_no_score(llama: dict[str, Any]) -> None:
    sci = json.loads(render(llama, "sci"))
    assert sci["per_token"]["operational_g"] * 1000 == pytest.approx(0.1237, abs=5e-5)
    assert sci["per_token"]["score_g"] is None and sci["M_g"] is None
    assert any(text.startswith("M:") for text in sci["missing"])
    llama["embodied"]["carbon_tco2eq"] = 10.0
    sci = json.loads(render(llama, "sci"))
    assert sci["missing"] == [] and "calendar" in sci["embodied_convention"]
    assert sci["standard"] == "ISO/IEC 21031:2024 (SCI)" and "idle devices are not in it" in sci["boundary"]
    llama["embodied"]["convention"] = CONVENTIONS["busy-hour"]
    busy = json.loads(render(llama, "sci"))
    assert busy["standard"] is None and "85%" in busy["embodied_convention"]
    e, i, m = sci["E_kwh"], sci["I_g_per_kwh"], sci["M_g"]
    for unit, count in (("per_token", 1.4e12), ("per_flop", LLAMA_FLOP), ("per_parameter", 65_285_660_672)):
        assert sci[unit]["r"] == count
        assert sci[unit]["score_g"] == pytest.approx((e * i + m) / count)


def test_the_inventory_has_both_methods_and_empty_cells_for_the_unknown(llama: dict[str, Any]) -> None:
    rows = list(csv.DictReader(io.StringIO(render(llama, "csv"))))
    assert list(rows[0]) == list(COLUMNS)
    location, market, embodied = rows
    assert float(location["emissions_tco2eq"]) == llama["carbon"]["carbon_tco2eq"]
    assert (location["method"], market["method"]) == ("location-based", "market-based")
    assert market["emissions_tco2eq"] == "" and "not known" in market["note"]
    assert embodied["scope"] == "3" and embodied["emissions_tco2eq"] == ""
    assert embodied["note"].startswith("memo: share over service life") and "calendar" in embodied["basis"]
    llama["carbon"] |= {"carbon_market_tco2eq": 0.0, "intensity_market_g_per_kwh": 0.0}
    market = list(csv.DictReader(io.StringIO(render(llama, "csv"))))[1]
    assert float(market["emissions_tco2eq"]) == 0.0 and float(market["factor"]) == 0.0  # zero is not unknown


def test_the_inventory_tells_bases_losses_and_a_tenant_and_what_the_market_figure_lacks(llama: dict[str, Any]) -> None:
    basis = {"rate": "average", "scope": "lifecycle", "side": None, "market": "location"}
    (factor,) = [each for each in llama["assumptions"] if each["key"] == "intensity_g_per_kwh"]
    factor["basis"] = basis
    energy, carbon = llama["energy"], llama["carbon"]
    carbon |= {"transmission_loss": 0.2, "transmission_loss_source": "grid", "provider": "aws"}
    carbon |= {"carbon_transmission_tco2eq": carbon["carbon_tco2eq"] / 4, "intensity_market_g_per_kwh": 420.0}
    location, market, _, losses = csv.DictReader(io.StringIO(render(llama, "csv")))
    assert location["basis"] == losses["basis"] == "average, lifecycle, location" and market["basis"] == ""
    assert "for a tenant of aws electricity is scope 3" in location["note"]
    assert (losses["scope"], "category 3" in losses["category"], losses["factor"]) == ("3", True, "385.0")
    assert float(losses["activity"]) * 385 / 1e6 == pytest.approx(float(losses["emissions_tco2eq"]))
    carbon["series_sha256"] = "ab"  # by the hour: the constant's basis is not the series'
    assert "lifecycle" not in render(llama, "csv")
    for lacking, told in (({"pue": None}, "it needs a PUE"), ({"energy_it_kwh": None}, "it needs a measurement")):
        energy |= {"energy_facility_kwh": None} | lacking
        location, market, _ = csv.DictReader(io.StringIO(render(llama, "csv")))
        assert market["factor"] == "420.0" and f"not known: {told}" in market["note"]


def test_the_sentences(llama: dict[str, Any], unknown: dict[str, Any]) -> None:
    said = render(llama, "sentence")
    for part in ("1.40 T tokens", "1,022,362 device-hours", "450 MWh at the facility (PUE 1.1)", "173 t CO₂eq", "385"):
        assert part in said, part
    assert "not measured" in render(unknown, "sentence") and "how many device-hours, is not known" in render(
        unknown, "sentence"
    )
    assert "**Hours used:** not known" in render(unknown, "huggingface")
    assert "partial" in render(unknown, "sentence")
    latex = render(llama, "latex")
    assert r"173\,t CO$_2$eq" in latex and r"\%" in latex and "₂" not in latex
    llama["run"]["name"] = "a_b & 100% {x}"
    assert r"a\_b \& 100\% \{x\}" in render(llama, "latex")


def test_latex_has_nothing_that_breaks_it(llama: dict[str, Any], unknown: dict[str, Any]) -> None:
    for each in (llama, unknown):
        latex = render(each, "latex")
        assert latex.isascii() and latex.count("$") % 2 == 0
        assert not re.search(r"(?<!\\)[%&#_](?!2\$)", latex)
