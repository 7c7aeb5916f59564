"""The formula, the published rows and the factor tables."""

import math
import subprocess
import sys

import pytest

from energy.factors import accelerator, accelerators, match_accelerator
from energy.formula import estimate, preset
from energy.published import published


def test_every_row_of_table_15_is_recomputed() -> None:
    rows = published()
    assert len(rows) == 7
    for row in rows:
        assert abs(row["energy_facility_mwh"] - row["printed_mwh"]) <= 1.5
        assert abs(row["carbon_tco2eq"] - row["printed_tco2eq"]) <= 0.7
        assert row["agrees"] is True


def test_notes_explain_what_does_not_follow() -> None:
    notes = {row["model"]: row["note"] for row in published()}
    assert "476.47" in notes["BLOOM-175B"]
    assert "truncates" in notes["LLaMA-65B"]
    development = published()[-1]
    assert "122 days" in development["note"]
    assert development["gpu_hours"] / 2048 / 24 == pytest.approx(122, abs=0.1)


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
    code = f"import energy.published, energy.footprint, sys; print(*{heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
