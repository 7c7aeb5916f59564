"""Factors: content hashes, bases, tables with versions, unknown as None, and the units that tools print in."""

import math
import random
import subprocess
import sys

import pytest

from energy.carbon.formula import preset
from energy.carbon.grid import constant
from energy.factors import (
    SERVER,
    Basis,
    Factor,
    accelerators,
    embodied,
    mixed_bases,
    peak_flops,
    presets,
    pue,
    rated_power,
    wue,
)
from energy.units import INTENSITIES, KWH, TONNES, intensity_unit


def grid_factor(basis: str, unit: str = "g CO2eq/kWh", geography: str = "X") -> Factor:
    return Factor("intensity_g_per_kwh", 100.0, unit, "test", 2023, geography, Basis.parse(basis))


def test_a_factor_comes_back_from_json_and_a_changed_one_is_found() -> None:
    factor = Factor("pue", 1.1, "1", "a source", 2023, "FR", Basis.parse("average"), 1.0, 1.2, "a note")
    stored = factor.as_dict()
    assert Factor.from_dict(stored) == factor
    assert len(factor.sha256) == 64 and factor.sha256 == Factor.from_dict(stored).sha256
    for key, value in (("value", 1.2), ("source", "another"), ("year", 2024), ("basis", {"rate": "marginal"})):
        with pytest.raises(ValueError, match="hash"):
            Factor.from_dict(stored | {key: value})


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0, True])
def test_a_factor_is_a_finite_number_or_none(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        Factor("pue", bad, "1", "source")
    assert Factor("pue", None, "1", "source").value is None
    with pytest.raises(ValueError, match="source"):
        Factor("pue", 1.1, "1", "")


def test_basis_is_read_from_words_and_refuses_contradictions() -> None:
    assert Basis.parse("location average") == Basis("average", None, None, "location")
    assert str(Basis()) == "basis not stated"
    with pytest.raises(ValueError, match="both average and marginal"):
        Basis.parse("average marginal")
    with pytest.raises(ValueError, match="unknown basis"):
        Basis.parse("approximate")


@pytest.mark.parametrize(
    ("one", "other"),
    [("average", "marginal"), ("direct", "lifecycle"), ("generation", "consumption"), ("location", "market")],
)
def test_bases_are_never_mixed_silently(one: str, other: str) -> None:
    (warning,) = mixed_bases([grid_factor(one), grid_factor(other)])
    assert one in warning and other in warning
    assert mixed_bases([grid_factor(one), grid_factor(one), grid_factor("")]) == []


def test_co2_beside_co2eq_is_a_mixed_basis() -> None:
    assert "CO2/kWh" in mixed_bases([grid_factor("average"), grid_factor("average", "g CO2/kWh")])[0]


def test_the_preset_is_the_papers() -> None:
    assert preset("llama_paper") == {"gpu_power_w": 400, "pue": 1.1, "intensity_g_per_kwh": 385}
    assert all("LLaMA paper" in factor.source for factor in presets()["llama_paper"].values())


def test_tables_name_unit_and_source_and_stay_in_range() -> None:
    for factor in pue().values():
        assert factor.source and factor.unit == "1" and factor.value is not None and 1 <= factor.value < 2
    for factor in wue().values():
        assert factor.source and factor.unit == "L per IT kWh" and factor.value is not None and 0 < factor.value < 3


def test_unknown_is_none_and_never_zero() -> None:
    assert rated_power("GB200").value is None
    assert embodied("H200").factor.value is None and "not" in embodied("V100-SXM2").factor.source
    for device in accelerators():
        for factor in (rated_power(device.name), peak_flops(device.name), embodied(device.name).factor):
            assert factor.value is None or factor.value > 0
            assert factor.source


def test_embodied_has_its_range_and_lifetime() -> None:
    a100 = embodied("A100-80GB")
    assert (a100.factor.low, a100.factor.value, a100.factor.high) == (127.6, 150, 319.3)
    assert a100.lifetime_years == (4, 6) and "busy-hour" in a100.convention
    assert embodied(SERVER).factor.value == 5700
    with pytest.raises(ValueError, match="unknown accelerator"):
        embodied("H1000")


@pytest.mark.parametrize("units", [KWH, TONNES, INTENSITIES], ids=["J Wh kWh MWh", "g kg t", "g/kWh lb/MWh"])
def test_units_round_trip(units: dict[str, float]) -> None:
    generator = random.Random(4)
    for _ in range(500):
        value, (one, other) = 10 ** generator.uniform(-12, 15), generator.choices(list(units), k=2)
        there = value * units[one] / units[other]
        assert there * units[other] / units[one] == pytest.approx(value, rel=1e-15)


def test_units_are_what_they_are_by_definition() -> None:
    assert KWH["J"] * 3.6e6 == pytest.approx(1, rel=1e-15) and KWH["kWh"] == 1 and KWH["MWh"] == 1000
    assert (TONNES["t"], TONNES["kg"], TONNES["g"]) == (1, 1e-3, 1e-6)
    assert INTENSITIES["lb/MWh"] == 0.45359237 and INTENSITIES["kg/MWh"] == INTENSITIES["g/kWh"] == 1


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("intensity_g_per_kwh", "g/kWh"),
        ("Carbon intensity gCO₂eq/kWh (Life cycle)", "g/kWh"),
        ("kg CO2-eq per kWh", "kg/kWh"),
        ("kg_co2eq_per_kwh", "kg/kWh"),
        ("tCO2/MWh", "t/MWh"),
        ("lbs_co2_per_mwh", "lb/MWh"),
        ("MOER (lb/MWh)", "lb/MWh"),
        ("mg/kWh", None),
        ("t/kWh", None),
        ("energy_kwh", None),
    ],
)
def test_the_unit_of_an_intensity_is_found_in_many_spellings(text: str, unit: str | None) -> None:
    assert intensity_unit(text) == unit


def test_grid_units_agree_with_each_other() -> None:
    generator = random.Random(5)
    for _ in range(200):
        grams = generator.uniform(0, 1400)
        same = [f"{grams!r} g/kWh", f"{grams / 1e3!r} kg/kWh", f"{grams!r} kg/MWh", f"{grams / 1e3!r} t/MWh"]
        same.append(f"{grams / 0.45359237!r} lb/MWh")
        for text in same:
            found = constant(text)
            assert found is not None and found.value == pytest.approx(grams, rel=1e-12), text


def test_importing_factors_formula_and_published_stays_light() -> None:
    heavy = "{'pandas', 'matplotlib', 'torch', 'ray', 'numpy', 'codecarbon', 'requests'}"
    for module in ("factors", "carbon.formula", "checking.published", "carbon.grid", "checking.table"):
        code = f"import energy.{module}, sys; print(*{heavy} & set(sys.modules))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "", module
