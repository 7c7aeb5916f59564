"""One writer of a ledger, on storage with locks and without; whatever refuses, no reading and no descriptor is lost."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from energy_fakes import ROOT, FakeSensor, reading

from energy.accounting.account import account_run
from energy.ledger import frames
from energy.ledger.writer import NO_LOCKS, LedgerWriter
from energy.locks import NO_FLOCK
from energy.metering.measure import _lock
from energy.metering.meter import Meter
from energy.runs import RunFolder

READINGS = 60
OTHER = """
import errno, fcntl, sys, time
def refuse(*_):
    raise OSError(errno.ENOLCK, "no locks")
fcntl.flock = refuse
from energy.ledger.writer import LedgerWriter
writer = LedgerWriter(sys.argv[1])
writer.header({"node": "n1", "sensors": []})
print("writes", flush=True)
time.sleep(600)
"""


def refusing(code: int) -> Callable[[int, int], None]:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    return refuse


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def meter_of(run: RunFolder) -> tuple[Meter, list[float]]:
    """A meter of a device of 100 W whose clock is the list's one number."""
    sensor, now = FakeSensor("GPU-1", [reading(100.0 * n, 100.0) for n in range(READINGS + 1)]), [0.0]
    path = run.ledger_file("n1")
    return Meter(path, sensors=[sensor], discover_sensors=False, clock=lambda: (now[0], now[0])), now


@pytest.mark.parametrize("code", sorted(NO_FLOCK))
def test_storage_without_locks_has_all_joules_and_says_so_once(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path / "run")
    monkeypatch.setattr(fcntl, "flock", refusing(code))
    before = open_files()
    meter, now = meter_of(run)
    for n in range(READINGS):
        now[0] = float(n)
        meter.sample()
        assert open_files() == before + 6  # three files, and who holds each of them
    with pytest.raises(OSError, match="another meter is writing it"):
        LedgerWriter(run.ledger_file("n1"))
    assert open_files() == before + 6
    now[0] = float(READINGS)
    meter.sample(last=True)
    assert open_files() == before
    assert meter.warnings == [NO_LOCKS]
    account = account_run(run)
    assert account.energy_j == 100.0 * READINGS and account.damaged == []
    again = LedgerWriter(run.ledger_file("n1"))
    assert again.session == 2
    again.close()


def test_without_locks_a_ledger_is_free_as_soon_as_its_meter_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "energy" / "n1.ledger"
    command = [sys.executable, "-c", OTHER, str(path)]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        assert other.stdout is not None and other.stdout.readline() == "writes\n"
        monkeypatch.setattr(fcntl, "flock", refusing(errno.ENOLCK))
        with pytest.raises(OSError, match="another meter is writing it"):
            LedgerWriter(path)
        link = tmp_path / "elsewhere"
        link.symlink_to(path.parent)
        with pytest.raises(OSError, match="another meter is writing it"):
            LedgerWriter(link / "n1.ledger")
        LedgerWriter(path.with_name("n2.ledger")).close()
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    writer = LedgerWriter(path)
    assert writer.session == 2
    writer.close()


def test_a_refusal_that_passes_leaves_no_descriptor_open_and_loses_no_energy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError("no memory")

    run = RunFolder(tmp_path / "run")
    before = open_files()
    meter, now = meter_of(run)
    refusals: list[tuple[object, str, object]] = [
        (fcntl, "flock", refusing(errno.EIO)),
        (fcntl, "flock", refusing(errno.EAGAIN)),
        (frames, "whole_size", no_memory),
        (LedgerWriter, "_take_over", no_memory),
    ]
    for place, name, refusal in refusals:
        with monkeypatch.context() as patch:
            patch.setattr(place, name, refusal)
            for _ in range(5):
                meter.sample()
                now[0] += 1.0
                assert open_files() == before
    while now[0] < READINGS:
        meter.sample()
        now[0] += 1.0
    meter.sample(last=True)
    said = "\n".join(meter.warnings)
    assert "Input/output error" in said and "another meter is writing it" in said and "no memory" in said
    assert account_run(run).energy_j == 100.0 * READINGS


def test_a_command_is_measured_on_storage_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", refusing(errno.ENOSYS))
    os.close(_lock(RunFolder(tmp_path)))
    monkeypatch.setattr(fcntl, "flock", refusing(errno.EIO))
    before = open_files()
    with pytest.raises(OSError, match="Input/output error"):
        _lock(RunFolder(tmp_path))
    assert open_files() == before
