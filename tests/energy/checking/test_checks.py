"""Plausibility: the errors that were published are flagged, correct tables raise nothing, bad files say where."""

import random
from pathlib import Path
from typing import Any

import pytest

from energy.checking.checks import Claim, check_claim, check_record, is_total, power_warning
from energy.checking.table import check_file, column_of, read_claims
from energy.factors import FOLDER, read_table

LLAMA_2 = (
    "Model,Time (GPU hours),Power Consumption (W),Carbon Emitted (tCO₂eq)\n"
    "Llama 2 7B,184320,400,31.22\nLlama 2 13B,368640,400,62.44\n{row}Llama 2 70B,1720320,400,291.42\n"
    "Total,3311616,,539.00\n"
)
HEADER = "model,gpu,gpu_hours,gpu_power_w,pue,energy_it_mwh,energy_facility_mwh,g_per_kwh,tco2eq\n"


def flags(path: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for finding in check_file(path).findings:
        found.setdefault(finding.name, set()).add(finding.check)
    return found


def table(folder: Path, text: str) -> Path:
    (folder / "table.csv").write_text(text, encoding="utf-8")
    return folder / "table.csv"


def test_published_errors_are_flagged_and_nothing_else() -> None:
    assert flags(FOLDER / "published_footprints.csv") == {
        "Llama-3.3-70B (card error)": {"implied factor"},
        "OLMo-2-13B (disputed)": {"PUE counted twice"},
    }


def test_months_of_table_15_disagree_and_its_other_rows_are_fine() -> None:
    development = read_table("llama_table15")[-1]["model"]
    assert flags(FOLDER / "llama_table15.csv") == {development: {"months against MWh"}}


def test_llama_2_prints_a_total_over_rows_that_are_not_there(tmp_path: Path) -> None:
    missing = check_file(table(tmp_path, LLAMA_2.format(row=""))).findings
    assert {finding.check for finding in missing} == {"rows do not add up"}
    assert "153.9 t is missing" in missing[0].message and "1,038,336 h is missing" in missing[1].message
    whole = check_file(table(tmp_path, LLAMA_2.format(row="Llama 2 34B,1038336,350,153.90\n")))
    assert whole.findings == [] and whole.claims == 5


@pytest.mark.parametrize(
    ("row", "checks"),
    [
        ("fine,A100-80GB,1000,400,1.1,0.4,0.44,385,0.1694", set()),
        ("truncated,A100-80GB,1022362,400,1.1,,449,385,173", set()),
        ("pue twice,A100-80GB,1000,400,1.1,0.4,0.484,385,0.18634", {"PUE counted twice"}),
        ("pue twice in carbon,A100-80GB,1000,400,1.1,0.4,0.44,385,0.18634", {"PUE counted twice"}),
        ("kilograms,A100-80GB,1000,400,1.1,0.4,0.44,385,169.4", {"unit"}),
        ("kwh,A100-80GB,1000,400,1.1,400,440,385,169.4", {"unit", "more than rated power"}),
        ("kilowatts,A100-80GB,1000,0.4,1.1,,,385,0.0001694", {"unit"}),
        ("watts for kilowatts,A100-80GB,1000,400000,1.1,,,385,169.4", {"unit"}),
        ("above rated,A100-80GB,1000,600,1.1,,,385,0.2541", {"more than rated power"}),
        ("below idle,A100-80GB,1000,,1.1,0.005,,385,0.0021175", {"less than idle"}),
        ("more than all,A100-80GB,1000,,1.1,1.2,,385,0.5082", {"more than rated power"}),
        ("implied low,A100-80GB,7000000,700,,,,,12.9", {"implied factor", "more than rated power"}),
        ("implied high,A100-80GB,1000,400,1.1,,,,5", {"implied factor"}),
        ("pue below one,A100-80GB,1000,400,0.9,,,385,0.1386", {"out of range"}),
        ("kg per kwh,A100-80GB,1000,400,1.1,,,0.385,0.0001694", {"unit"}),
        ("no such grid,A100-80GB,1000,400,1.1,,,3850,1.694", {"out of range"}),
        ("wrong product,A100-80GB,1000,400,1.1,0.6,,385,0.2541", {"does not follow"}),
        ("unknown device,Q1,1000,600,1.1,,,385,0.2541", set()),
        ("says nothing,,,,,,,,", set()),
    ],
)
def test_each_check_finds_its_own(tmp_path: Path, row: str, checks: set[str]) -> None:
    assert flags(table(tmp_path, HEADER + row + "\n")).get(row.split(",")[0], set()) == checks


def test_months_against_mwh(tmp_path: Path) -> None:
    header = "model,devices,days,power_w,pue,energy_facility_mwh\n"
    path = table(tmp_path, header + "stated,2048,152,400,1.1,2638\nimplied,2048,122,400,1.1,2638\n")
    assert flags(path) == {"stated": {"months against MWh"}}
    assert "122 days of 2,048 devices" in check_file(path).findings[0].message


def test_correct_products_raise_nothing_however_they_are_rounded() -> None:
    generator = random.Random(11)
    for _ in range(400):
        hours, power_w = generator.uniform(100, 5e6), generator.uniform(80, 400)
        pue, intensity = generator.uniform(1.0, 1.6), generator.uniform(15, 1000)
        it_kwh = hours * power_w / 1000
        facility_kwh, decimals = it_kwh * pue, generator.choice([0, 1, 2, 3, 6])
        facility_mwh, tonnes = round(facility_kwh / 1000, decimals), round(facility_kwh * intensity / 1e6, decimals)
        step = 10.0**-decimals
        claim = Claim(
            "row",
            device="A100-80GB",
            device_hours=hours,
            power_w=power_w,
            pue=pue,
            intensity_g_per_kwh=intensity,
            energy_it_kwh=it_kwh,
            energy_facility_kwh=facility_mwh * 1000,
            carbon_t=tonnes,
            step={"energy_facility_kwh": step * 1000, "carbon_t": step},
        )
        assert check_claim(claim) == [], claim


def test_wrong_products_are_found_whatever_their_size() -> None:
    generator = random.Random(12)
    for _ in range(300):
        hours, power_w = 10 ** generator.uniform(1, 7), generator.uniform(100, 400)
        pue, intensity = generator.uniform(1.05, 1.6), generator.uniform(15, 1000)
        facility_kwh = hours * power_w / 1000 * pue
        told: dict[str, Any] = {"device_hours": hours, "power_w": power_w, "pue": pue, "intensity_g_per_kwh": intensity}
        tonnes = facility_kwh * intensity / 1e6
        assert {f.check for f in check_claim(Claim("a", carbon_t=tonnes * pue, **told))} == {"PUE counted twice"}
        assert {f.check for f in check_claim(Claim("b", carbon_t=tonnes * 1000, **told))} == {"unit"}
        assert {f.check for f in check_claim(Claim("c", carbon_t=tonnes * 3, **told))} == {"does not follow"}
        assert check_claim(Claim("d", carbon_t=tonnes, **told)) == []


@pytest.mark.parametrize(
    ("header", "field", "factor"),
    [
        ("GPU hours", "device_hours", 1),
        ("Time (GPU hours)", "device_hours", 1),
        ("Training Time (GPU hours)", "device_hours", 1),
        ("Carbon Emitted (tCO₂eq)", "carbon_t", 1),
        ("kgCO2e", "carbon_t", 1e-3),
        ("location-based tCO2eq", "carbon_t", 1),
        ("market-based tCO2eq", "market_t", 1),
        ("energy_it_kwh", "energy_it_kwh", 1),
        ("energy_facility_mwh", "energy_facility_kwh", 1e3),
        ("Total energy (GWh)", "energy_kwh", 1e6),
        ("TDP (W)", "power_w", 1),
        ("power_kw", "power_w", 1e3),
        ("gpu_power_w", "gpu_power_w", 1),
        ("kg CO2eq/kWh", "intensity_g_per_kwh", 1e3),
        ("intensity_g_per_kwh", "intensity_g_per_kwh", 1),
        ("lb_per_mwh", "intensity_g_per_kwh", 0.45359237),
        ("days", "duration_h", 24),
        ("Wall-clock days", "duration_h", 24),
        ("gpu_days", "device_hours", 24),
        ("Training time (TPU days)", "device_hours", 24),
        ("PUE", "pue", 1),
    ],
)
def test_columns_are_known_in_many_spellings(header: str, field: str, factor: float) -> None:
    column = column_of(header)
    assert column is not None and column.field == field and column.factor == pytest.approx(factor)


def test_columns_without_a_unit_are_left_alone() -> None:
    for header in (
        "energy",
        "carbon",
        "power",
        "hours_per_week_note",
        "emissions",
        "petaflop_s_days",
        "PF-days",
        "node_hours",
        "cpu_hours",
    ):
        assert column_of(header) is None, header


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "empty"),
        ("model,gpu_hours\na,1\n", "nothing to check: it needs a column for energy"),
        ("model,tco2eq\n", "a header and no rows"),
        ("model,tco2eq\na\n", "line 2 has 1 cells, the header 2"),
        ("model,tco2eq\na,many\n", "line 2, column 'tco2eq': 'many' is no number"),
        ("model,gpu_hours,tco2eq\na,-5,1\n", "line 2, column 'gpu_hours': -5 cannot be negative"),
        ("model,gpu_hours,tco2eq\na,nan,1\n", "'nan' is no number"),
        ("model,tco2eq,tco2eq\na,1,1\n", "stands twice"),
        ("model,duration,tco2eq\na,21,1\n", "names no unit"),
        ('model,tco2eq\n"a,1\n', "not CSV"),
    ],
)
def test_bad_tables_are_named(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        check_file(table(tmp_path, text))


def test_numbers_as_people_write_them(tmp_path: Path) -> None:
    text = 'run;GPU hours;days;tCO2eq;kWh\nx;"1,022,362";21 days;~173;449.8k\ny;7.0M;-;n/a;1e3\n'
    (one, other), notes = read_claims(table(tmp_path, text))
    assert (one.device_hours, one.duration_h, one.carbon_t, one.energy_kwh) == (1022362, 504, 173, 449800)
    assert (other.device_hours, other.duration_h, other.carbon_t, other.energy_kwh) == (7e6, None, None, 1000)
    assert any("PUE" in note for note in notes)


def test_totals_by_name() -> None:
    assert is_total("Total") and is_total("total (all sizes)") and is_total("Grand total:") and is_total("all")
    assert not is_total("all development (2048 GPUs, about 5 months)") and not is_total("Totoro-7B")


def test_power_that_is_odd_is_said() -> None:
    assert "kilowatts where watts" in str(power_warning(0.4))
    assert "watts where kilowatts" in str(power_warning(400_000))
    assert "whole node" in str(power_warning(10_200))
    assert "rated at 400" in str(power_warning(1200, "A100-80GB"))
    for power_w in (0.0, 60, 400, 1000, 1400):
        assert power_warning(power_w) is None


def record(**energy: Any) -> dict[str, Any]:
    devices = [{"uuid": "GPU-1", "name": "NVIDIA A100-SXM4-80GB", "energy_j": 3.6e6, "samples": 9}]
    told = {"energy_it_kwh": 1.0, "pue": 1.1, "energy_facility_kwh": 1.1, "devices": devices,
            "phases": [{"energy_kwh": 0.75}, {"energy_kwh": 0.25}]}  # fmt: skip
    return {
        "schema": "hoofprint/footprint/1",
        "run": {"run_id": "r"},
        "time": {"duration_s": 10000.0},
        "energy": told | energy,
        "carbon": {"intensity_g_per_kwh": 385.0, "carbon_tco2eq": 1.1 * 385 / 1e6},
    }


def test_a_record_that_holds_raises_nothing() -> None:
    assert check_record(record()) == []
    unknown = record(pue=None, energy_facility_kwh=None)
    unknown["carbon"] = {"intensity_g_per_kwh": None, "carbon_tco2eq": None}
    assert check_record(unknown) == []


@pytest.mark.parametrize(
    ("told", "attempts", "check"),
    [
        ({"metered_s": 100.0}, 1, None),  # of 10,000 s: it came late
        ({"metered_s": 10000.0}, 1, "less than idle"),
        ({"metered_s": 10000.0, "method": "assumed"}, 1, None),  # a MIG instance: no idle power of its own
        ({"metered_s": 61.0}, 1, "more than rated power"),
        ({"metered_s": 9.0}, 1, None),  # too short to say
        ({"metered_s": None}, 1, None),
        ({"gap_s": 0.0}, 1, "less than idle"),  # of a record from before it was noted
        ({"gap_s": 5.0}, 1, None),
        ({}, 2, None),
        ({"energy_j": 9e6}, 2, "more than rated power"),  # over all of the run already
    ],
)
def test_the_power_of_a_device_is_over_the_time_in_which_it_was_metered(
    told: dict[str, Any], attempts: int, check: str | None
) -> None:
    device: dict[str, Any] = {"uuid": "u", "name": "NVIDIA A100-SXM4-80GB", "energy_j": 36000.0, "samples": 9} | told
    kwh = device["energy_j"] / 3.6e6
    made = record(devices=[device], phases=[], energy_it_kwh=kwh, pue=None, energy_facility_kwh=None)
    made["run"]["attempts"] = [{"started_unix_s": 0.0, "ended_unix_s": 5000.0}] * attempts
    made["carbon"] = {}
    assert [finding.check for finding in check_record(made)] == ([check] if check else [])


@pytest.mark.parametrize(
    ("energy", "check"),
    [
        ({"energy_facility_kwh": 1.21}, "PUE counted twice"),
        ({"energy_facility_kwh": 1.3}, "does not follow"),
        ({"pue": 0.9, "energy_facility_kwh": 0.9}, "out of range"),
        ({"phases": [{"energy_kwh": 0.75}]}, "rows do not add up"),
        ({"devices": []}, None),
        ({"devices": [{"uuid": "u", "name": "NVIDIA A100-SXM4-80GB", "energy_j": 3.6e4, "samples": 9}],
          "energy_it_kwh": 0.01}, "less than idle"),
        ({"devices": [{"uuid": "u", "name": "NVIDIA A100-SXM4-80GB", "energy_j": 9e6, "samples": 9}],
          "energy_it_kwh": 2.5}, "more than rated power"),
    ],
)  # fmt: skip
def test_a_record_that_does_not_hold_is_flagged(energy: dict[str, Any], check: str | None) -> None:
    found = {finding.check for finding in check_record(record(**energy))}
    assert check in found if check else found == set()


def test_a_record_is_recognised_and_others_refused(tmp_path: Path) -> None:
    import json

    path = tmp_path / "footprint.json"
    path.write_text(json.dumps(record()), encoding="utf-8")
    assert check_file(path).findings == []
    path.write_text('{"a": 1}', encoding="utf-8")
    with pytest.raises(ValueError, match="expected a record"):
        check_file(path)
    with pytest.raises(ValueError, match="no 'carbon'"):
        check_record({key: value for key, value in record().items() if key != "carbon"})
