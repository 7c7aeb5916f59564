"""The formula, the published rows and the factor tables."""

import math
import subprocess
import sys
from typing import Any

import pytest

from energy.carbon.formula import estimate, preset
from energy.checking.published import identities, published
from energy.factors import accelerator, accelerators, match_accelerator, read_table


def by_name() -> dict[str, dict[str, Any]]:
    return {row["model"]: row for row in published()}


def test_every_row_of_table_15_is_recomputed() -> None:
    rows = [row for row in published() if row["source"].startswith("LLaMA paper")]
    assert len(rows) == 7 and rows == published()[:7]
    for row in rows:
        assert abs(row["energy_facility_mwh"] - row["printed_mwh"]) <= 1.5
        assert abs(row["carbon_tco2eq"] - row["printed_tco2eq"]) <= 0.7
        assert row["agrees"] is True


def test_notes_explain_what_does_not_follow() -> None:
    notes = {row["model"]: row["note"] for row in published()}
    assert "476.47" in notes["BLOOM-175B"]
    assert "truncates" in notes["LLaMA-65B"]
    development = published()[6]
    assert "122 days" in development["note"] and "3.39 times" in development["note"]
    assert development["gpu_hours"] / 2048 / 24 == pytest.approx(122, abs=0.1)


def test_identities() -> None:
    same = identities()
    assert same["development_days"] == pytest.approx(122, abs=0.1)
    assert same["development_ratio"] == pytest.approx(3.39, abs=0.005)
    assert same["llama_2_missing_t"] == pytest.approx(153.90, abs=0.03)
    assert same["bloom_server_kg_per_h"] == pytest.approx(0.056, abs=5e-5)
    assert same["bloom_gpu_kg_per_h"] == pytest.approx(0.00336, abs=5e-6)


def test_every_published_row_is_there_with_the_keys_of_the_contract() -> None:
    keys = {"model", "printed_mwh", "energy_facility_mwh", "printed_tco2eq", "carbon_tco2eq", "agrees", "note"}
    rows = by_name()
    assert len(rows) == len(published()) == 7 + 20 + 2
    assert {row["model"] for row in read_table("published_footprints")} <= set(rows)
    for row in rows.values():
        assert keys <= set(row)
        assert row["agrees"] is True or row["note"], row["model"]


def test_pattersons_six_rows_within_one_per_cent() -> None:
    rows = [row for row in published() if row["source"].startswith("Patterson")]
    assert len(rows) == 6
    for row in rows:
        assert row["energy_facility_mwh"] == pytest.approx(row["printed_mwh"], rel=0.01)
        assert row["carbon_tco2eq"] == pytest.approx(row["printed_tco2eq"], rel=0.01)
        assert row["agrees"] is True


def test_llama_2_at_its_kg_per_it_kwh() -> None:
    rows = by_name()
    for size, power_w in (("7B", 400), ("13B", 400), ("34B", 350), ("70B", 400)):
        row = rows[f"Llama-2-{size}"]
        assert row["gpu_hours"] * power_w / 1e6 * 0.4235 == pytest.approx(row["printed_tco2eq"], abs=0.01)
        assert row["carbon_tco2eq"] == pytest.approx(row["printed_tco2eq"], abs=0.01)
    total = rows["Llama 2, total"]
    assert total["carbon_tco2eq"] == pytest.approx(539.00, abs=0.01) and "34B row" in total["note"]


def test_bloom_adds_up_within_its_boundary() -> None:
    rows = by_name()
    parts = [rows[f"BLOOM-176B {part}"]["carbon_tco2eq"] for part in ("dynamic", "idle", "embodied")]
    assert parts == pytest.approx([24.69, 14.63, 11.21], abs=0.005)
    assert rows["BLOOM-176B, total"]["carbon_tco2eq"] == pytest.approx(50.5, abs=0.05)
    assert rows["BLOOM-176B dynamic"]["energy_facility_mwh"] is None  # no PUE was applied: only IT energy is known
    assert rows["BLOOM-176B dynamic"]["energy_mwh"] == pytest.approx(433.196)


def test_what_is_wrong_disputed_or_unknown_does_not_agree() -> None:
    rows = by_name()
    assert {name for name, row in rows.items() if row["agrees"] is False} == {
        "Llama-3.3-70B (card error)",
        "OLMo-2-13B (disputed)",
    }
    assert [name for name, row in rows.items() if row["agrees"] is None] == ["OPT-175B own paper"]
    assert rows["OPT-175B own paper"]["carbon_tco2eq"] is None
    assert "0.0026" in rows["Llama-3.3-70B (card error)"]["note"]
    assert "counted twice" in rows["OLMo-2-13B (disputed)"]["note"]


def test_estimate_of_llama_7b() -> None:
    result = estimate(82432, **preset("llama_paper"))
    assert result["energy_it_kwh"] == pytest.approx(32972.8)
    assert result["energy_facility_kwh"] == pytest.approx(36270.08)
    assert result["carbon_tco2eq"] == pytest.approx(13.96398)


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize("position", range(4))
def test_estimate_refuses_what_cannot_be(bad: float, position: int) -> None:
    values = [1.0, 400.0, 1.1, 385.0]
    values[position] = bad
    with pytest.raises(ValueError):
        estimate(*values)


def test_pue_below_one_and_unknown_preset_are_refused() -> None:
    with pytest.raises(ValueError, match="pue"):
        estimate(1, 400, 0.9, 385)
    with pytest.raises(ValueError, match="llama_paper"):
        preset("llama")


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("A100-80GB", "A100-SXM4-80GB"),
        ("NVIDIA A100-SXM4-80GB", "A100-SXM4-80GB"),
        ("NVIDIA H100 80GB HBM3", "H100-SXM-80GB"),
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("NVIDIA H200", "H200-SXM"),
        ("Tesla V100-SXM2-16GB", "V100-SXM2"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
    ],
)
def test_driver_names_find_their_device(said: str, name: str) -> None:
    assert accelerator(said).name == name


def test_unknown_hardware_is_never_guessed() -> None:
    assert match_accelerator("NVIDIA H200 NVL") is None
    assert accelerator("GB200").tdp_w is None
    with pytest.raises(ValueError, match=r"did you mean .*H100"):
        accelerator("H10")
    assert all(device.source for device in accelerators())


def test_importing_them_stays_light() -> None:
    heavy = "{'pandas', 'matplotlib', 'torch', 'ray', 'numpy'}"
    code = f"import energy.checking.published, energy.records.footprint, sys; print(*{heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
