"""How a run ends on the screen: what is missing has its own reason."""

from pathlib import Path
from typing import Any

import pytest
from record_fakes import ACCOUNTING, START, make_run

from energy.records.record import write_record
from energy.runs import SERIES, write_json
from orchestrator.screens.run import RunScreen

PUE = {"pue": ACCOUNTING["pue"]}
UNCOVERED = {
    "start_unix_s": [START - 7200], "end_unix_s": [START - 3600], "g_per_kwh": [50.0], "source": "hours.csv",
    "basis": {}, "geography": None, "warnings": [],
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "series", "facility", "carbon"),
    [
        ({}, None, "Wh", "CO₂eq"),
        ({"accounting": {}}, None, "missing: energy.pue is not set", "missing: energy.pue and energy.grid are not set"),
        ({"accounting": PUE}, None, "Wh", "missing: energy.grid is not set"),
        ({"accounting": PUE}, UNCOVERED, "Wh", "missing: the grid's series does not cover the run"),
        ({"meter": False}, None, "missing: no sensor could be read", "missing: no sensor could be read"),
    ],
)
def test_the_end_says_why_a_figure_is_missing(
    changes: dict[str, Any], series: dict[str, Any] | None, facility: str, carbon: str, tmp_path: Path, capfd: Any
) -> None:
    run = make_run(tmp_path / "r", **changes)
    if series is not None:
        write_json(run.path / SERIES, series)
    record = write_record(run)
    record["data"]["unigram_entropy_nats"] = 5.0
    RunScreen().closing(run, record, tmp_path / "report.html")
    shown = capfd.readouterr().err.splitlines()
    told = {cells[1].strip(): cells[2] for line in shown if len(cells := line.split("│")) > 3}
    assert facility in told["facility energy"] and carbon in told["carbon"]
