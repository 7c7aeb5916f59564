"""Parts of a ledger: the same rows as the whole has between two moments, from few of its bytes."""

from __future__ import annotations

import math
import os
import random
from pathlib import Path

import pytest
from energy_fakes import FakeSensor, meter_fake, reading

from energy.ledger import seek
from energy.ledger.frames import MAGIC
from energy.ledger.readings import Session, read_sessions
from energy.ledger.seek import Told
from energy.runs import RunFolder

START = 1.75e9
SILENT = (3000, 3400)  # s of the first stretch
STRETCHES = ((0, 9000), (9100, 130), (9400, 5), (9700, 7000))  # start and length in s


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A GPU that was metered in four stretches: in the first nothing was read for a while, in the third it was lost."""
    run = RunFolder(tmp_path_factory.mktemp("run"))
    for attempt, (start, length) in enumerate(STRETCHES, 1):
        times = [t for t in range(length) if attempt > 1 or not SILENT[0] < t < SILENT[1]]
        values = [reading(300.0 * t, 300.0) for t in times]
        if attempt == 3:
            values[2:4] = [OSError("lost")] * 2
        meter_fake(run, [FakeSensor("GPU-1", values)], [START + start + t for t in times], attempt=attempt)
    for name in ("ledger", "raw"):  # so that halving has something to do
        assert run.ledger_file("n1").with_suffix(f".{name}").stat().st_size > seek.NEAR
    return run


def rows(sessions: list[Session], low: float, high: float) -> list[tuple[int, int, float, int, int]]:
    found = []
    for session in sessions:
        for tick in session.ticks[(session.ticks["unix_s"] >= low) & (session.ticks["unix_s"] <= high)]:
            row = tick["rows"][0]
            found.append((int(tick["session"]), int(tick["number"]), round(float(tick["unix_s"]), 3),
                          int(row["energy_mj"]), int(row["flags"])))  # fmt: skip
    return found


WINDOWS = [(3100.0, 3110.0), (0.0, 20.0), (4000.0, 4003.5), (8990.0, 9110.0), (9300.0, 9500.0), (16_600.0, math.inf),
           (-500.0, -400.0), (20_000.0, 21_000.0), (-10.0, 1e9)]  # fmt: skip


@pytest.mark.parametrize("lacks", [(), (".raw",), (".raw", ".seconds")])
def test_a_part_has_the_rows_of_the_whole(run: RunFolder, tmp_path: Path, lacks: tuple[str, ...]) -> None:
    path = tmp_path / "n1.ledger"
    for file in run.energy_dir.iterdir():
        if file.suffix not in lacks:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    told = Told()
    whole, damaged = read_sessions(path, told=told)
    assert damaged == [] and len(whole) == 4 and told.upto == path.stat().st_size
    draw = random.Random(7)
    windows = [(first, first + draw.uniform(0, 400)) for first in (draw.uniform(-100, 17_000) for _ in range(60))]
    for low, high in [*WINDOWS, *windows]:
        low, high = START + low, START + high
        part, damaged = read_sessions(path, between=(low, high), told=told)
        assert damaged == [] and rows(part, low, high) == rows(whole, low, high), (low - START, high - START)
        assert all(session.sensors[0]["uuid"] == "GPU-1" for session in part)
        by_number = {session.header["session"]: session for session in part}
        for session in whole:  # and of each stretch the rows on both sides of a cut
            times = session.ticks["unix_s"]
            for times_beyond, beside in ((times[times < low], -1), (times[times >= high], 0)):
                if len(times_beyond) and times[-1] >= low and times[0] <= high:
                    assert times_beyond[beside] in by_number[session.header["session"]].ticks["unix_s"]
    assert read_sessions(path, told=told)[0][2].events == whole[2].events  # nothing was taken twice


def test_few_bytes_are_read(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    told, path = Told(), run.ledger_file("n1")
    read_sessions(path, told=told)
    read: list[int] = []
    pread = os.pread

    def counted(fd: int, size: int, at: int) -> bytes:
        read.append(size)
        return pread(fd, size, at)

    monkeypatch.setattr(seek.os, "pread", counted)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read whole"))
    part, _ = read_sessions(path, between=(START + 4000, START + 4002), told=told)
    raw = path.with_suffix(".raw").stat().st_size
    assert len(part[0].ticks) < 10 and sum(read) < raw / 4, (sum(read), raw)


def test_what_was_appended_since_is_told_and_a_replaced_file_is_read_anew(tmp_path: Path) -> None:
    run, told = RunFolder(tmp_path), Told()

    def meter(start: int, uuid: str = "GPU-1") -> None:
        values = [reading(300.0 * t, 300.0) for t in range(200)]
        meter_fake(run, [FakeSensor(uuid, values)], [START + start + t for t in range(200)], attempt=1)

    meter(0)
    path = run.ledger_file("n1")
    read_sessions(path, told=told)
    meter(500)
    for between in ((START + 650, math.inf), (START + 10, START + 20), (START + 650, math.inf)):
        part, damaged = read_sessions(path, between=between, told=told)
        assert damaged == [] and part[-1].header["session"] == (2 if between[0] > START + 500 else 1)
    assert part[-1].ended and len(told.events[2]) == 1
    os.remove(path)
    for file in list(run.energy_dir.iterdir()):
        file.unlink()
    for start in (0, 1000, 2000):  # more than it was before
        meter(start, "GPU-2")
    part, _ = read_sessions(path, between=(START + 10, START + 20), told=told)
    assert part[0].sensors[0]["uuid"] == "GPU-2" and sorted(told.headers) == [1, 2, 3]


def test_damage_is_passed_over_and_named_where_it_lies(run: RunFolder, tmp_path: Path) -> None:
    path, told = tmp_path / "n1.ledger", Told()
    path.write_bytes(run.ledger_file("n1").read_bytes())
    raw = bytearray(run.ledger_file("n1").with_suffix(".raw").read_bytes())
    size = len(raw)
    for place in (size // 8, size // 4, size // 2, 3 * size // 4):
        raw[place : place + 900] = bytes(300) + MAGIC * 150 + random.Random(place).randbytes(300)
    path.with_suffix(".raw").write_bytes(raw[:-9])
    whole, named = read_sessions(path, told=told)
    draw = random.Random(3)
    for _ in range(40):
        low = START + draw.uniform(0, 17_000)
        part, damaged = read_sessions(path, between=(low, low + 200), told=told)
        assert rows(part, low, low + 200) == rows(whole, low, low + 200)
        assert set(damaged) <= set(named), "by their places in the file"
    assert len(named) == 5
    for between in ((START, START + 17_000), (0.0, math.inf)):
        assert read_sessions(path, between=between, told=told)[1] == named
