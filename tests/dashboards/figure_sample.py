"""A real run for the figures: 40 steps on one H200, with its ledger (sample_run/), and what a test declares on top."""

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from energy.runs import SERIES, RunFolder
from orchestrator.cli import main

SAMPLE = Path(__file__).with_name("sample_run")
HOUR_S = 3600.0


def copy_sample(to: Path, **changes: Any) -> RunFolder:
    """The run as it was: no PUE, no grid, no plan of energy, no budget. changes: keys of its run.json."""
    shutil.copytree(SAMPLE, to)
    folder = RunFolder(to)
    folder.update_run(**changes)
    return folder


def declare(folder: RunFolder, budget_kwh: float = 0.006, hours: int = 27) -> RunFolder:
    """Adds a PUE, a grid series from the hour before the run on, a plan with a range, and a budget."""
    run = folder.read_run()
    pue = {"key": "pue", "value": 1.1, "unit": "1", "source": "declared by the test"}
    folder.update_run(accounting=run["accounting"] | {"pue": pue})
    starts = [(run["created_unix_s"] // HOUR_S - 1 + hour) * HOUR_S for hour in range(hours)]
    series = {
        "start_unix_s": starts,
        "end_unix_s": [start + HOUR_S for start in starts],
        "g_per_kwh": [round(300 + 200 * math.sin(hour / 4), 3) for hour in range(hours)],
        "source": "made.csv",
        "basis": {},
        "geography": "DE",
        "warnings": [],
    }
    (folder.path / SERIES).parent.mkdir()
    (folder.path / SERIES).write_text(json.dumps(series))
    document = json.loads((folder.path / "plan.json").read_text())
    document["plan"] = with_figures(document["plan"])
    (folder.path / "plan.json").write_text(json.dumps(document))
    spec = (folder.path / "experiment.yaml").read_text().rstrip("\n")
    assert spec.splitlines()[-1].startswith("  "), "the energy section is the last one"
    limits = f"    energy: {budget_kwh}\n    carbon: 1.0e-05\n    gpu_hours: null\n    cost: null\n"
    (folder.path / "experiment.yaml").write_text(f"{spec}\n  budget:\n{limits}")
    return folder


def with_figures(plan: dict[str, Any]) -> dict[str, Any]:
    """A plan of the sample that knows all: 20 s of start-up, then 52, 65.5 or 87 k tokens/s, at 210 to 280 W."""
    tokens, found = plan["low"]["tokens"], {}
    cases = {"low": (87e3, 52e3, 210.0, 0.8), "likely": (65.5e3, 65.5e3, 240.0, 1.0), "high": (52e3, 87e3, 280.0, 1.3)}
    for case, (slowest, rate, power_w, times) in cases.items():
        found[case] = {
            "tokens": tokens,
            "wall_days": (20 + tokens / slowest) / 86400,
            "tokens_per_s_per_gpu": rate,
            "device_power_w": power_w,
            "energy_it_kwh": 0.0045 * times / 1.1,
            "energy_facility_kwh": 0.0045 * times,
            "carbon_tco2eq": 1.6e-6 * times,
        }
    assumptions = [
        {"key": "pue", "value": 1.1, "low": 1.05, "high": 1.3, "unit": "1", "source": "declared by the test"},
        {"key": "intensity_g_per_kwh", "value": 356.0, "low": None, "high": None, "unit": "g", "source": "made.csv"},
    ]
    methods = {"tokens_per_s_per_gpu": {"method": "measured"}, "device_power_w": {"method": "assumed"}}
    share = {"low": 0.004, "likely": 0.02, "high": 0.06}
    return {**plan, **found["likely"], "low": plan["low"] | found["low"], "high": plan["high"] | found["high"],
            "assumptions": assumptions, "quantities": methods, "failures": {"lost_share": share}}  # fmt: skip


def hoofprint(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The command's exit code."""
    monkeypatch.setattr(sys, "argv", ["hoofprint", *map(str, arguments)])
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0
