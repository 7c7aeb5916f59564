"""A record under intensities by the hour: of a run that crashed and went on, and what follows from its series."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from energy_fakes import FakeSensor, meter_fake, reading
from record_fakes import ACCOUNTING, START, make_run

from energy.carbon.series import IntensitySeries
from energy.factors import Basis
from energy.records.record import write_record
from energy.records.verify import verify_run
from energy.runs import SERIES, RunFolder, write_json

HOUR = START + 3600 - START % 3600  # the run's first moment, at a full hour
MINUTE = 60.0
G_PER_KWH = (100.0, 50.0, 400.0)
# Attempt 1: 47 minutes at 100 W, then a crash. 83 minutes in which the counter grew by 49.8 kJ, 600 J a minute.
# Attempt 2: from minute 130 on, 50 minutes at 200 W. J of each hour:
JOULE = (47 * 6000 + 13 * 600, 60 * 600, 10 * 600 + 50 * 12000)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    crash, again, end = (HOUR + MINUTE * minute for minute in (47, 130, 180))
    attempts = [
        {"attempt": 1, "started_unix_s": HOUR, "ended_unix_s": crash, "status": "lost"},
        {"attempt": 2, "started_unix_s": again, "ended_unix_s": end, "status": "completed"},
    ]
    made = make_run(tmp_path / "r", meter=False, start=HOUR, attempts=attempts, ended_unix_s=end, world_size=1)
    first, second = [HOUR + MINUTE * m for m in range(48)], [HOUR + MINUTE * m for m in range(130, 181)]
    meter_fake(made, [FakeSensor("GPU-1", [reading(100 * (t - HOUR), 100) for t in first])], first, 1, stop=False)
    stood = 100 * (crash - HOUR) + 49_800
    meter_fake(made, [FakeSensor("GPU-1", [reading(stood + 200 * (t - again), 200) for t in second])], second, 2)
    return made


def keep(run: RunFolder, values: tuple[float, ...], first_hour: int = 0) -> None:
    starts = tuple(HOUR + 3600 * (first_hour + hour) for hour in range(len(values)))
    ends = tuple(start + 3600 for start in starts)
    write_json(run.path / SERIES, asdict(IntensitySeries(starts, ends, values, "the operator", Basis())))


def test_the_account_of_a_resumed_run_is_the_sum_hour_by_hour(run: RunFolder) -> None:
    keep(run, G_PER_KWH)
    record = write_record(run)
    assert [(each["attempt"], each["status"]) for each in record["run"]["attempts"]] == [(1, "lost"), (2, "completed")]
    assert record["energy"]["energy_it_kwh"] == pytest.approx(sum(JOULE) / 3.6e6, rel=1e-12)
    by_hand_g = sum(joule / 3.6e6 * 1.1 * g for joule, g in zip(JOULE, G_PER_KWH, strict=True))
    carbon = record["carbon"]
    assert carbon["carbon_tco2eq"] == pytest.approx(by_hand_g / 1e6, rel=1e-12)
    # The intensity is the run's own, weighted by its energy, and neither the spec's constant nor the series' mean.
    assert carbon["intensity_g_per_kwh"] == pytest.approx(by_hand_g / (sum(JOULE) / 3.6e6 * 1.1), rel=1e-12)
    assert carbon["intensity_g_per_kwh"] > 1.5 * sum(G_PER_KWH) / 3
    assert "its series states no range" in record["uncertainty"]["method"]
    assert carbon["source"] == "the operator" and verify_run(run).ok


@pytest.mark.parametrize("fallback", [385.0, None])
def test_the_hours_of_the_second_attempt_that_a_series_lacks_take_the_declared_constant_or_are_missing(
    run: RunFolder, fallback: float | None
) -> None:
    if fallback is None:
        run.update_run(accounting=ACCOUNTING | {"intensity_g_per_kwh": None})
    keep(run, G_PER_KWH[:2])
    record = write_record(run)
    assert any("does not cover" in text for text in record["quality"]["warnings"])
    if fallback is None:
        assert record["carbon"]["carbon_tco2eq"] is None
    else:
        by_hand_g = sum(j / 3.6e6 * 1.1 * g for j, g in zip(JOULE, (*G_PER_KWH[:2], fallback), strict=True))
        assert record["carbon"]["carbon_tco2eq"] == pytest.approx(by_hand_g / 1e6, rel=1e-12)


def test_a_changed_hour_is_found(run: RunFolder) -> None:
    keep(run, G_PER_KWH)
    write_record(run)
    stored = json.loads((run.path / SERIES).read_text())
    write_json(run.path / SERIES, stored | {"g_per_kwh": [100.0, 50.0, 40.0]})
    result = verify_run(run)
    faults = [fault for check in result.checks for fault in check.faults]
    assert not result.ok and any(fault.startswith(f"{SERIES}: changed") for fault in faults)
    assert any("carbon.carbon_tco2eq" in fault for fault in faults), faults


def test_a_series_that_the_spec_no_longer_names_is_no_lost_source(run: RunFolder) -> None:
    keep(run, G_PER_KWH)
    write_record(run)
    (run.path / SERIES).unlink()
    (run.path / "experiment.yaml").write_text("energy: {grid_series: hours.csv}\n")
    with pytest.raises(ValueError, match=f"{SERIES} is missing"):
        write_record(run)
    (run.path / "experiment.yaml").write_text("energy: {intensity: 385 g/kWh}\n")
    record = write_record(run)
    assert record["carbon"]["intensity_g_per_kwh"] == 385.0 and verify_run(run).ok
    entry = json.loads((run.path / "records.jsonl").read_text().splitlines()[-1])
    assert entry["missing_sources"] == [SERIES] and SERIES in entry["reason"]
