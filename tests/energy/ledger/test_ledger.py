import errno
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from energy_fakes import ROOT, FakeSensor, meter_fake, reading

from energy import read_ledger
from energy.accounting.account import account_run
from energy.boundaries import shares_of
from energy.ledger import frames as ledger
from energy.ledger.frames import EVENT, RAW, Appender, Frame, encode, frames
from energy.ledger.readings import read_sessions
from energy.ledger.seconds import compress, expand_all
from energy.ledger.writer import LedgerWriter, Tick, pack
from energy.metering.meter import Meter
from energy.metering.track import Row
from energy.runs import RunFolder

PAYLOADS = [b"reading %d " % n * (n + 1) for n in range(5)]


def write(path: Path, payloads: list[bytes]) -> bytes:
    appender = Appender(path)
    for payload in payloads:
        appender.append(RAW, payload)
    appender.close()
    appender.close()
    return path.read_bytes()


def read(path: Path, damaged: list[str] | None = None) -> list[bytes]:
    return [frame.payload for frame in frames(path.read_bytes(), [] if damaged is None else damaged, path.name)]


def test_cut_at_every_byte_keeps_the_whole_frames_and_can_be_continued(tmp_path: Path) -> None:
    data = write(tmp_path / "whole", PAYLOADS)
    ends = [sum(len(encode(RAW, p)) for p in PAYLOADS[: n + 1]) for n in range(len(PAYLOADS))]
    path = tmp_path / "cut"
    for size in range(len(data) + 1):
        path.write_bytes(data[:size])
        whole = sum(end <= size for end in ends)
        damaged: list[str] = []
        assert read(path, damaged) == PAYLOADS[:whole]
        assert bool(damaged) == (size not in (0, *ends))
        write(path, [b"again"])
        assert read(path) == [*PAYLOADS[:whole], b"again"]


def test_a_bit_flip_loses_the_frame_it_touches_and_is_named(tmp_path: Path) -> None:
    data = write(tmp_path / "whole", PAYLOADS)
    path = tmp_path / "flipped"
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        damaged: list[str] = []
        kept = read(path, damaged)
        assert damaged and len(kept) == len(PAYLOADS) - 1 and all(payload in PAYLOADS for payload in kept)


def test_garbage_and_a_newer_version_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged: list[str] = []
    assert list(frames(random.Random(0).randbytes(5000), damaged)) == [] and damaged
    with monkeypatch.context() as patch:
        patch.setattr(ledger, "VERSION", 3)
        newer = encode(EVENT, b"{}")
    path = tmp_path / "newer"
    path.write_bytes(encode(RAW, b"old") + newer + encode(RAW, b"new"))
    damaged = []
    assert read(path, damaged) == [b"old", b"new"]
    assert len(damaged) == 1 and "newer version" in damaged[0]
    write(path, [b"more"])
    assert newer in path.read_bytes()  # what is not understood is not thrown away either


def test_a_full_disk_takes_a_frame_back_and_loses_no_energy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_write, budget = os.write, [100_000]

    def limited(fd: int, data: bytes) -> int:
        if budget[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = real_write(fd, bytes(data)[: budget[0]])
        budget[0] -= written
        return written

    run = RunFolder(tmp_path / "run")
    now = [0.0]
    sensor = FakeSensor("GPU-1", [reading(energy_j=100.0 * n, power_w=100.0) for n in range(200_001)])
    meter = Meter(
        run.ledger_file("n1"), sensors=[sensor], discover_sensors=False, interval_s=1.0, clock=lambda: (now[0], now[0])
    )
    monkeypatch.setattr(ledger.os, "write", limited)
    for n in range(100_000):
        now[0] = float(n)
        meter.sample()
    assert meter._writer is not None and len(meter._writer._pending) <= 1024
    budget[0] = 10**9
    now[0] = 100_000.0
    meter.sample(last=True)
    assert any("No space left" in warning for warning in meter.warnings)
    account = account_run(run)
    assert account.energy_j == 100.0 * 100_000
    assert account.damaged == []


@pytest.mark.parametrize("others_take_the_rest", [False, True])
def test_on_a_disk_that_stays_full_raw_rows_give_way_to_the_energy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others_take_the_rest: bool
) -> None:
    run, now, room = RunFolder(tmp_path / "run"), [0.0], [60_000]
    real_write = os.write

    def limited(fd: int, data: bytes) -> int:
        left = room[0] - sum(path.stat().st_size for path in run.energy_dir.iterdir())
        if left <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real_write(fd, bytes(data)[:left])

    monkeypatch.setattr(ledger.os, "write", limited)
    sensor = FakeSensor("GPU-1", [reading(energy_j=100.0 * n, power_w=100.0) for n in range(3001)])
    meter = Meter(
        run.ledger_file("n1"), sensors=[sensor], discover_sensors=False, interval_s=1.0, clock=lambda: (now[0], now[0])
    )
    for n in range(3001):
        now[0] = float(n)
        if n == 2000 and others_take_the_rest:
            room[0] = 0
        meter.sample(last=n == 3000)
    lost = [text for text in meter.warnings if "were never written" in text]
    assert len(lost) == others_take_the_rest and any("No space left" in text for text in meter.warnings)
    account = account_run(run)
    assert account.damaged == [] and (account.energy_j == 300_000) != others_take_the_rest
    assert (run.energy_dir / "n1.raw").stat().st_size == 0


def random_ticks(count: int, devices: int, seed: int = 1) -> list[Tick]:
    draw = random.Random(seed)
    energy, ticks = [0] * devices, []
    for n in range(count):
        rows = []
        for d in range(devices):
            energy[d] += draw.randrange(500_000)
            low, counter = draw.randrange(400), -1 if d == 1 else energy[d] + 7_000_000_000
            power = (float("nan"),) * 2 if d == 2 else (float(low), float(low + 5))
            rows.append(Row(draw.choice([0, 0, 1, 32]), 2, n - draw.randrange(100) / 1e3, *power, counter, energy[d],
                            energy[d], draw.randrange(5)))  # fmt: skip
        ticks.append(Tick(3, n + 1, 1.7e9 + n, float(n), 1 + n // 30, tuple(rows)))
    return ticks


def test_a_compressed_block_keeps_every_number() -> None:
    ticks = random_ticks(60, 4)
    (table,) = expand_all([compress(ticks)])
    exact = np.frombuffer(b"".join(map(pack, ticks)), table.dtype)
    for name in ("session", "number", "unix_s", "monotonic_s", "attempt", "devices"):
        assert (table[name] == exact[name]).all()
    for name in ("flags", "n", "power_min_w", "power_max_w", "counter_mj", "energy_mj", "doubt_mj"):
        np.testing.assert_array_equal(table["rows"][name], exact["rows"][name])
    np.testing.assert_allclose(table["rows"]["at_s"], exact["rows"]["at_s"], atol=1e-9)
    assert (table["rows"]["held_mj"] == -1).all()


def metered(tmp_path: Path, seconds: int = 400) -> RunFolder:
    """A run of two devices that were read four times a second, one of them lost for a while."""
    run = RunFolder(tmp_path / "run")
    draw = random.Random(3)
    times = [n / 4 for n in range(seconds * 4)]
    total, first, second = 0.0, [], []
    for n in range(len(times)):
        total += draw.uniform(10, 100)
        first.append(reading(energy_j=total, power_w=draw.uniform(40, 400)))
        second.append(RuntimeError("lost") if 200 < n < 220 else reading(power_w=draw.uniform(40, 400)))
    sensors = [FakeSensor("GPU-1", first), FakeSensor("GPU-2", second, method="integrated")]
    meter_fake(run, sensors, times)
    return run


def test_minutes_seconds_and_raw_have_the_same_energy_to_the_millijoule(tmp_path: Path) -> None:
    run = metered(tmp_path)
    path = run.ledger_file("n1")
    fine, coarse = read_ledger(path), read_ledger(path, fine=False)
    (run.energy_dir / "n1.raw").unlink()
    seconds = read_ledger(path)
    assert len(fine) == 3200 and 300 < len(seconds) / 2 < 560 and 6 < len(coarse) / 2 < 14
    for table in (seconds, coarse):
        for uuid in ("GPU-1", "GPU-2"):
            mine, all_rows = table[table.uuid == uuid], fine[fine.uuid == uuid]
            assert mine.energy_j.iloc[-1] == all_rows.energy_j.iloc[-1]
            merged = mine.merge(all_rows, on="monotonic_s", suffixes=("", "_fine"))
            assert (merged.energy_j == merged.energy_j_fine).all() and len(merged) == len(mine)
            assert mine.power_max_w.max() == pytest.approx(all_rows.power_max_w.max(), abs=0.5)  # a spike stays visible
    assert account_run(run, fine=False).devices[1].gap_s == pytest.approx(account_run(run).devices[1].gap_s)


def test_what_is_no_ledger_is_not_an_empty_one(tmp_path: Path) -> None:
    run = metered(tmp_path, 20)
    for path, said in (
        (tmp_path / "none.ledger", "RUN/energy/NODE.ledger"),
        (run.energy_dir / "n1.seconds", "expected the ledger of a node"),
        (run.path, str(run.ledger_file("n1"))),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            read_ledger(path)


def test_a_damaged_middle_loses_no_energy(tmp_path: Path) -> None:
    run = metered(tmp_path)
    before = account_run(run).energy_j
    for suffix in (".raw", ".seconds"):
        path = run.energy_dir / f"n1{suffix}"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0x40
        path.write_bytes(data)
    account = account_run(run)
    assert account.energy_j == before and len(account.damaged) == 2


def test_a_stretch_whose_first_rows_are_lost_is_not_in_the_gap_before_it_too(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    for times, attempt in ((range(0, 11), 1), (range(20, 151), 2)):
        sensor = FakeSensor("GPU-1", [reading(energy_j=100.0 * t, power_w=100.0) for t in times])
        meter_fake(run, [sensor], [float(t) for t in times], attempt, stop=attempt == 2)
    path = run.ledger_file("n1")
    for suffix in (".raw", ".seconds"):
        path.with_suffix(suffix).unlink()
    assert account_run(run).energy_j == pytest.approx(15_000)
    data = bytearray(path.read_bytes())
    rows = [
        f for f in frames(bytes(data), []) if f.kind == ledger.MINUTE and ledger.TICK.unpack_from(f.payload)[0] == 2
    ]
    data[rows[0].end - 1] ^= 1
    path.write_bytes(data)
    account = account_run(run)
    assert account.energy_j == pytest.approx(15_000) and len(account.damaged) == 1


def test_a_lost_header_is_named(tmp_path: Path) -> None:
    run = metered(tmp_path, 20)
    path = run.ledger_file("n1")
    data = bytearray(path.read_bytes())
    data[40] ^= 1  # in the header's JSON
    path.write_bytes(data)
    sessions, damaged = read_sessions(path)
    assert len(sessions) == 1 and any("header" in text for text in damaged)
    account = account_run(run)
    assert {(device.kind, device.method) for device in account.devices} == {("unknown", "unknown")}
    assert account.energy_j > 0 and set(shares_of(account.devices, account.energy_j).values()) == {0.0}


def test_a_restart_reads_only_the_end_of_a_long_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "n.seconds"
    frame = encode(RAW, bytes(10_000))
    path.write_bytes(frame * 1000 + frame[:700])
    real, read_bytes = os.pread, []

    def counting(fd: int, size: int, offset: int) -> bytes:
        read_bytes.append(size)
        return real(fd, size, offset)

    monkeypatch.setattr(ledger.os, "pread", counting)
    appender = Appender(path)
    appender.close()
    assert appender.cut_bytes == 700 and path.stat().st_size == 1000 * len(frame)
    assert sum(read_bytes) <= ledger.TAIL


def test_a_restart_looks_further_back_where_the_end_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "n.seconds"
    frame = encode(RAW, b"whole")
    path.write_bytes(frame * 3 + bytes(3 * ledger.TAIL))
    Appender(path).close()
    assert path.read_bytes() == frame * 3


KILLED = """
import sys, time
from energy.metering.meter import Meter
from energy.sensors import Reading
class S:
    n = 0
    def describe(self):
        return dict(uuid="GPU-1", name="one", node="n", kind="gpu", method="counter", boundary="gpu")
    def read(self):
        self.n += 1
        return Reading(energy_mj=self.n, power_w=1.0)
sensor = S()
meter = Meter(sys.argv[1], interval_s=0.001, sensors=[sensor], discover_sensors=False).start()
while True:
    time.sleep(0.05)
    print(sensor.n, flush=True)
"""


def test_kill_9_keeps_every_reading_and_the_restart_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "energy" / "n.ledger"
    command = [sys.executable, "-c", KILLED, str(path)]
    seen = []
    for _ in range(2):
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        assert process.stdout is not None
        seen.append([int(process.stdout.readline()) for _ in range(5)][-1])
        process.send_signal(signal.SIGKILL)
        process.wait()
    sessions, damaged = read_sessions(path)
    assert [session.ended for session in sessions] == [False, False] and len(damaged) <= 1
    for session, last in zip(sessions, seen, strict=True):
        counters = session.ticks["rows"]["counter_mj"][:, 0]
        assert (np.diff(counters) == 1).all() and counters[-1] >= last - 1  # one may have been on its way
    # The first stretch's last reading was put into the ledger, so that its raw file may go.
    for name in ("n.raw", "n.seconds"):
        path.with_name(name).unlink()
    again, _ = read_sessions(path)
    assert again[0].ticks["rows"]["counter_mj"][-1, 0] == sessions[0].ticks["rows"]["counter_mj"][-1, 0]


def test_a_second_writer_of_a_ledger_is_refused_and_the_meter_goes_on(tmp_path: Path) -> None:
    first = Appender(tmp_path / "n.ledger")
    with pytest.raises(OSError, match="another meter"):
        Appender(tmp_path / "n.ledger")
    sensor = FakeSensor("GPU-1", [reading(energy_j=float(n)) for n in range(3)])
    meter = Meter(tmp_path / "n.ledger", sensors=[sensor], discover_sensors=False)
    meter.sample()
    assert any("another meter is writing it" in warning for warning in meter.warnings)
    first.close()
    meter.sample(last=True)
    assert len(read_ledger(tmp_path / "n.ledger")) == 1


def test_frames_say_where_they_are() -> None:
    first, second = encode(RAW, b"one"), encode(EVENT, b"two!")
    assert list(frames(first + second, [])) == [
        Frame(RAW, ledger.VERSION, b"one", 0, len(first)),
        Frame(EVENT, ledger.VERSION, b"two!", len(first), len(first) + len(second)),
    ]


def test_a_restart_reads_the_end_of_a_long_ledger_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(tmp_path / "run")
    path = run.ledger_file("n1")
    for session in (1, 2):
        sensor = FakeSensor("GPU-1", [reading(energy_j=100.0 * n, power_w=100.0) for n in range(20_000)])
        times = [1e5 * session + float(n) for n in range(20_000)]
        meter_fake(run, [sensor], times, attempt=session, stop=False)
    sizes = [file.stat().st_size for file in (path, path.with_suffix(".raw"))]
    read_bytes = []
    real_pread = os.pread

    def counted(fd: int, size: int, start: int) -> bytes:
        read_bytes.append(size)
        return real_pread(fd, size, start)

    monkeypatch.setattr(ledger.os, "pread", counted)
    monkeypatch.setattr(ledger, "TAIL", 1024)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", None)
        for expected in (3, 4):  # the third stretch has no reading, and yet its number is taken
            writer = LedgerWriter(path)
            writer.header({"node": "n1", "sensors": []})
            writer.close()
            assert writer.session == expected
    assert sum(read_bytes) < 40_000 < min(sizes)
    sessions, damaged = read_sessions(path, fine=False)
    # The last reading of what was killed is taken over from the raw file: a row a minute would end before it.
    assert [session.ticks["number"][-1] for session in sessions] == [20_000, 20_000] and not damaged


@pytest.mark.parametrize("torn", [1, 40, 300, 1000])
def test_a_restart_finds_its_place_in_a_damaged_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: int
) -> None:
    monkeypatch.setattr(ledger, "TAIL", 256)
    run = RunFolder(tmp_path / "run")
    path = run.ledger_file("n1")
    sensor = FakeSensor("GPU-1", [reading(energy_j=100.0 * n, power_w=100.0) for n in range(1000)])
    meter_fake(run, [sensor], [float(n) for n in range(1000)], stop=False)
    data = bytearray(path.read_bytes())
    data[-torn:] = random.Random(torn).randbytes(torn)
    path.write_bytes(data)
    meter_fake(run, [FakeSensor("GPU-1", [reading(energy_j=2e5), reading(energy_j=2.1e5)])], [2000.0, 2001.0], 2)
    account = account_run(run)
    assert account.energy_j == pytest.approx(2.1e5)
    assert [session.header["session"] for session in read_sessions(path)[0]] == [1, 2]
