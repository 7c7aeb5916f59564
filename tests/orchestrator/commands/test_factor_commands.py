"""hoofprint factors, check-table, published and estimate: screens, JSON and exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from energy.factors import FOLDER


def hoofprint(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "from orchestrator.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)


def test_a_factor_is_shown_with_year_basis_and_source() -> None:
    shown = hoofprint("factors", "grid", "FR")
    assert shown.returncode == 0
    for part in ("56.039 g CO2eq/kWh", "2023", "average, lifecycle", "Our World in Data", "sha256"):
        assert part in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    ("query", "part"),
    [
        (["us-west-2"], "US-OR"),
        (["accelerator", "A100"], "A100-SXM4-40GB"),
        (["embodied", "A100"], "127.6 to 319.3"),
        (["pue", "google"], "Google"),
        (["wue"], "L per IT kWh"),
        (["preset", "llama_paper"], "385 g CO2eq/kWh"),
        (["385 g/kWh"], "declared as a constant"),
        ([], "cloud_regions"),
        (["grid"], "FRA"),
        (["residual", "DE"], "701.47 g CO2/kWh"),
        (["residual"], "not in this table"),
        (["marginal", "us-west-2"], "WattTime BPA"),
        (["water", "us-east-1"], "whole country"),
        (["loss", "FR"], "World Bank"),
    ],
)
def test_queries(query: list[str], part: str) -> None:
    shown = hoofprint("factors", *query)
    assert shown.returncode == 0 and part in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80


def test_an_unknown_factor_is_an_error_with_near_names() -> None:
    assert "France (FRA)" in (failed := hoofprint("factors", "grid", "Frnace")).stderr and failed.returncode == 2
    assert "H100" in (failed := hoofprint("factors", "accelerator", "H10x")).stderr and failed.returncode == 2


def test_factors_as_json_carry_hash_alternatives_and_warnings() -> None:
    shown = json.loads(hoofprint("factors", "grid", "us-west-2", "--json").stdout)
    (factor,) = shown["factors"]
    assert factor["geography"] == "US-OR" and factor["basis"]["scope"] == "direct" and len(factor["sha256"]) == 64
    assert shown["alternatives"][0]["geography"] == "USA" and "mixed bases" in shown["warnings"][0]
    assert "grid" not in json.loads(hoofprint("factors", "--json").stdout)["tables"]


def test_check_table_exits_by_what_it_found(tmp_path: Path) -> None:
    fine = tmp_path / "fine.csv"
    fine.write_text("model,gpu_hours,gpu_power_w,pue,g_per_kwh,tco2eq\n7B,82432,400,1.1,385,13.964\n", encoding="utf-8")
    assert (told := hoofprint("check-table", str(fine))).returncode == 0 and "nothing implausible" in told.stdout
    told = hoofprint("check-table", str(FOLDER / "published_footprints.csv"))
    assert told.returncode == 1 and "implied factor: Llama-3.3-70B" in told.stdout and "counted twice" in told.stdout
    assert max(map(len, told.stdout.splitlines())) <= 80
    told = hoofprint("check-table", str(FOLDER / "published_footprints.csv"), "--json")
    assert told.returncode == 1
    shown = json.loads(told.stdout)
    assert shown["plausible"] is False and {f["check"] for f in shown["findings"]} == {
        "implied factor",
        "PUE counted twice",
    }
    bad = tmp_path / "bad.csv"
    bad.write_text("model,tco2eq\na,many\n", encoding="utf-8")
    assert (told := hoofprint("check-table", str(bad))).returncode == 2 and "line 2" in told.stderr
    assert hoofprint("check-table", str(tmp_path / "none.csv")).returncode == 2


def test_published_fits_the_screen_and_keeps_its_keys() -> None:
    shown = hoofprint("published")
    assert shown.returncode == 0 and max(map(len, shown.stdout.splitlines())) <= 80
    for part in ("LLaMA-65B", "GPT-3-175B", "Llama 2, total", "3.39 times", "BLOOM-176B, total", "34B row"):
        assert part in " ".join(shown.stdout.split())
    rows = json.loads(hoofprint("published", "--json").stdout)
    assert len(rows) == 29
    keys = {"model", "printed_mwh", "energy_facility_mwh", "printed_tco2eq", "carbon_tco2eq", "agrees", "note"}
    assert all(keys <= set(row) for row in rows)


def test_estimate_warns_of_kilowatts_and_takes_a_place() -> None:
    told = hoofprint("estimate", "--gpu-hours", "10", "--gpu-power-w", "0.4", "--pue", "1.1", "--grid", "FR", "--json")
    shown = json.loads(told.stdout)
    assert told.returncode == 0 and "kilowatts" in told.stderr and "kilowatts" in shown["warnings"][0]
    assert shown["intensity_g_per_kwh"] == 56.039 and shown["intensity_factor"]["geography"] == "FRA"
    fine = hoofprint("estimate", "--preset", "llama_paper", "--gpu-hours", "82432", "--json")
    assert fine.stderr == "" and json.loads(fine.stdout)["warnings"] == []
    for hours in ("-1", "nan"):
        assert hoofprint("estimate", "--preset", "llama_paper", "--gpu-hours", hours).returncode == 2
    unrated = hoofprint("estimate", "--gpu", "GB200", "--gpu-hours", "1", "--pue", "1.1", "--grid", "FR")
    assert unrated.returncode == 2 and "no rated power is known for GB200: give --gpu-power-w" in unrated.stderr
    both = ("--grid", "FR", "--intensity-g-per-kwh", "5")
    assert hoofprint("estimate", "--preset", "llama_paper", "--gpu-hours", "1", *both).returncode == 2


def test_help_stays_quick_in_what_it_imports() -> None:
    code = "import orchestrator.cli, sys; print(*{'pandas', 'numpy', 'torch', 'ray', 'rich'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
