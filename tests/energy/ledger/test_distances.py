"""What a stretch's rows say of their own time is told once, wherever its files are read at several distances."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from energy_fakes import FakeSensor, meter_fake, reading

from energy.accounting.account import account_run
from energy.ledger.frames import frames
from energy.ledger.readings import read_sessions
from energy.metering.track import INTEGRATED, MISSING, SILENT
from energy.runs import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Five minutes of two devices, read four times a second: a silence, and what each of them once did not tell."""
    run = RunFolder(tmp_path / "run")
    times = [n / 4 + (20.0 if n > 530 else 0.0) for n in range(1200)]
    first: list[Any] = [reading(energy_j=100.0 * at_s, power_w=100.0) for at_s in times]
    first[370] = reading(power_w=100.0)
    second: list[Any] = [reading(power_w=50.0 + 200 * (n == 700)) for n in range(1200)]
    second[800:820] = [RuntimeError("lost")] * 20
    meter_fake(run, [FakeSensor("GPU-1", first), FakeSensor("GPU-2", second, method="integrated")], times)
    return run


@pytest.mark.parametrize("raw_share", [0.0, 0.37])
def test_files_at_several_distances_tell_the_same_as_the_finest(run: RunFolder, raw_share: float) -> None:
    finest, raw = account_run(run), run.energy_dir / "n1.raw"
    data = raw.read_bytes()
    starts = [frame.offset for frame in frames(data, [])]
    raw.write_bytes(data[starts[int(len(starts) * (1 - raw_share))] :] if raw_share else b"")
    account = account_run(run)
    assert [device.samples for device in finest.devices] == [1200, 1180]
    for device, exact in zip(account.devices, finest.devices, strict=True):
        assert (device.samples, device.energy_j) == (exact.samples, exact.energy_j)
        assert (device.gap_s, device.metered_s) == pytest.approx((exact.gap_s, exact.metered_s), abs=1.1)
        assert device.integrated_j == pytest.approx(exact.integrated_j, abs=80)  # of the whole second
    assert account.warnings == finest.warnings and any("the meter was silent once" in text for text in account.warnings)
    assert any("no counter in 1 interval" in text for text in account.warnings)


@pytest.mark.parametrize("around", [[], [100.0], [100.0, 250.0]])
def test_where_only_some_minutes_are_read_in_seconds_no_reading_is_lost_or_told_twice(
    run: RunFolder, around: list[float]
) -> None:
    (run.energy_dir / "n1.raw").unlink()
    (session,), _ = read_sessions(run.ledger_file("n1"), around=around)
    rows = session.ticks["rows"]
    assert [int(rows["n"][:, k][rows["flags"][:, k] & MISSING == 0].sum()) for k in (0, 1)] == [1200, 1180]
    assert np.nanmax(rows["power_max_w"][:, 1]) == 250
    assert [int((rows["flags"][:, 0] & flag > 0).sum()) for flag in (SILENT, INTEGRATED)] == [1, 1]
    assert len(rows) > 60 * len(around)
