import errno
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from energy_fakes import ROOT, FakeSensor

from energy import ledger
from energy.ledger import LedgerWriter, encode, read_ledger
from energy.meter import Meter
from energy.sensors import Reading

ENTRIES = [{"kind": "reading", "n": n, "values": {"GPU-é": {"energy_j": n * 1.5}}} for n in range(5)]


def write(path: Path, entries: list[dict]) -> bytes:
    writer = LedgerWriter(path)
    for entry in entries:
        writer.append(entry)
    writer.close()
    return path.read_bytes()


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "n.ledger"
    write(path, ENTRIES)
    contents = read_ledger(path)
    assert contents.entries == ENTRIES and contents.damaged == []


def test_cut_at_every_byte_keeps_the_whole_entries_and_can_be_continued(tmp_path: Path) -> None:
    data = write(tmp_path / "whole", ENTRIES)
    ends = [len(b"".join(encode(e) for e in ENTRIES[: n + 1])) for n in range(len(ENTRIES))]
    path = tmp_path / "cut"
    for size in range(len(data) + 1):
        path.write_bytes(data[:size])
        whole = sum(end - 1 <= size for end in ends)  # only the newline may be missing
        contents = read_ledger(path)
        assert contents.entries == ENTRIES[:whole]
        is_torn = size not in (0, *ends, *(end - 1 for end in ends))
        assert bool(contents.damaged) == is_torn
        write(path, [{"kind": "header"}])
        assert read_ledger(path).entries == [*ENTRIES[:whole], {"kind": "header"}]


def test_bit_flips_lose_at_most_the_lines_they_touch(tmp_path: Path) -> None:
    data = write(tmp_path / "whole", ENTRIES)
    path = tmp_path / "flipped"
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        contents = read_ledger(path)
        assert all(entry in ENTRIES for entry in contents.entries)
        assert len(contents.entries) >= len(ENTRIES) - 2
        assert contents.damaged or len(contents.entries) == len(ENTRIES)


def test_garbage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "garbage"
    path.write_bytes(random.Random(0).randbytes(5000))
    contents = read_ledger(path)
    assert contents.entries == [] and contents.damaged


def test_a_full_disk_never_reaches_the_caller_and_readings_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_write, budget = os.write, [400]

    def write(fd: int, data: bytes) -> int:
        if budget[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = real_write(fd, bytes(data)[: budget[0]])
        budget[0] -= written
        return written

    monkeypatch.setattr(ledger.os, "write", write)
    path = tmp_path / "n.ledger"
    meter = Meter(path, "n", sensors=[FakeSensor("GPU-1", [Reading(energy_j=float(n)) for n in range(3000)])])
    for _ in range(2000):
        meter.sample()
    assert len(meter._pending) < 1100
    assert any("No space left" in warning for warning in meter.warnings)
    budget[0] = 10**9
    meter.stop()
    contents = read_ledger(path)
    counters = [e["values"]["GPU-1"]["energy_j"] for e in contents.entries if e["kind"] == "reading"]
    assert contents.entries[0]["kind"] == "header"
    assert counters == sorted(set(counters)) and counters[-1] == 2000.0 and len(counters) > 100
    assert len(contents.damaged) == 1
    assert contents.entries[-1]["kind"] == "end" and contents.entries[-1]["warnings"]


def test_kill_9_keeps_every_reading(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom energy.meter import Meter\nfrom energy.sensors import Reading\n"
        "class S:\n"
        "    n = 0.0\n"
        "    def describe(self): return {'uuid': 'GPU-1'}\n"
        "    def read(self):\n"
        "        self.n += 1; return Reading(energy_j=self.n)\n"
        "meter = Meter(sys.argv[1], 'n', 0.001, sensors=[S()]).start()\n"
        "while True:\n    time.sleep(0.05); print(meter._sensors[0].n, flush=True)\n"
    )
    path = tmp_path / "n.ledger"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    for _ in range(5):
        seen = float(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    process.wait()
    contents = read_ledger(path)
    counters = [e["values"]["GPU-1"]["energy_j"] for e in contents.entries[1:]]
    assert counters == [float(n) for n in range(1, len(counters) + 1)]
    assert len(counters) >= seen - 1  # the last one may have been on its way
    assert json.dumps(contents.entries[0]["sensors"]) == '[{"uuid": "GPU-1"}]'
