"""The command line as another program sees it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

LAPTOP = Path(__file__).parents[2] / "experiments" / "laptop.yaml"
HOOFPRINT = [sys.executable, "-c", "from orchestrator.cli import main; main()"]


def hoofprint(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*HOOFPRINT, *arguments], capture_output=True, text=True, timeout=120)


def test_estimate_is_the_papers_formula() -> None:
    done = hoofprint("estimate", "--gpu-hours", "1022362", "--preset", "llama_paper", "--json")
    assert done.returncode == 0
    result = json.loads(done.stdout)
    assert result["energy_facility_kwh"] == pytest.approx(449839.28)
    assert result["carbon_tco2eq"] == pytest.approx(173.188, abs=1e-3)


def test_estimate_guesses_nothing() -> None:
    done = hoofprint("estimate", "--gpu", "A100-80GB", "--gpu-hours", "100")
    assert done.returncode == 2
    assert "--pue" in done.stderr and "--intensity-g-per-kwh" in done.stderr


@pytest.mark.parametrize("command", [["--help"], ["published"], ["estimate", "--help"]])
def test_light_commands_import_nothing_heavy(command: list[str]) -> None:
    code = (
        "import sys; from orchestrator.cli import cli\n"
        f"try: cli({command!r})\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'ray', 'pandas', 'matplotlib') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr.strip() == "[]"


def test_a_bad_spec_is_exit_code_2_without_a_traceback(tmp_path: Path) -> None:
    spec = tmp_path / "bad.yaml"
    spec.write_text(LAPTOP.read_text().replace("n_layers", "n_layer"))
    done = hoofprint("run", str(spec), "--runs", str(tmp_path / "runs"))
    assert done.returncode == 2
    assert "did you mean n_layers?" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_missing_data_folder_is_named() -> None:
    done = hoofprint("run", str(LAPTOP.parent / "llama_7b.yaml"))
    assert done.returncode == 2
    assert done.stderr.count("no such file or folder") == 7
