"""A large run is drawn from few of its rows at once, and read whole beside the pages."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from energy_fakes import FakeSensor, meter_fake, reading
from record_fakes import START

from dashboards.server import power, power_sketch, power_store
from energy.ledger.frames import EVENT, HEADER, MAGIC, MINUTE, encode, found
from energy.runs import RunFolder

STRETCHES = ((0, 9000, 100.0), (9100, 200, 400.0), (9400, 130, 50.0), (9700, 9000, 200.0))  # start and length in s, W


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Two GPUs of two nodes, metered in four stretches of which two are short."""
    run = RunFolder(tmp_path_factory.mktemp("run"))
    for node in ("n1", "n2"):
        for attempt, (start, length, watts) in enumerate(STRETCHES, 1):
            times = [START + start + t for t in range(length)]
            gpu = FakeSensor(f"GPU-{node}", [reading(watts * t, watts) for t in range(length)])
            meter_fake(run, [gpu], times, attempt=attempt, node=node)
    return run


def energy_kwh(found: power.Power | None) -> float:
    assert found is not None
    return float(found.energy_kwh(np.array([found.end_unix_s]))[0])


def test_few_rows_have_all_joules_and_every_stretch(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power_sketch, "WINDOW", 512)  # five rows: stretches lie between two places that are looked at
    looked = power_sketch.sample(run.ledger_file("n1"), 20)
    assert [session.header["attempt"] for session in looked] == [1, 2, 3, 4]
    assert sum(len(session.ticks) for session in looked) < 80  # of 311
    found, whole = power_sketch.sketch(run, 100), power_store.read(run)
    assert found is not None and whole is not None
    assert found.devices == 2 and sorted(found.mean_w) == ["n1", "n2"]
    assert energy_kwh(found) == pytest.approx(energy_kwh(whole), rel=1e-6)
    for second, watts in ((4000, 200.0), (15_000, 400.0)):
        assert found.total_w()[int(second / found.step_s)] == pytest.approx(watts, rel=1e-6)
    assert np.isnan(found.high_w).all() and found.cut(START, found.end_unix_s, 50)["high_w"] == [None] * 50


def test_of_rows_that_follow_each_other_the_first_and_the_last_whole_one_are_read() -> None:
    row = encode(MINUTE, bytes(200))
    data = encode(HEADER, b"{}") + 9 * row + encode(EVENT, b"{}") + row + b"torn" + 3 * row
    for missing in range(2 * len(row)):
        part = data[: len(data) - missing]
        every = list(found(part))
        few = list(found(part, ends_of=MINUTE))
        assert set(few) <= set(every) and few[-1] == every[-1]
        assert [frame.kind for frame in few[:5]] == [HEADER, MINUTE, MINUTE, EVENT, MINUTE]
        assert few[2] == every[9], "the last of nine"


def test_damage_is_passed_over(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power_sketch, "WINDOW", 512)
    content = bytearray(run.ledger_file("n1").read_bytes())
    middle = len(content) // 4
    content[middle : middle + 3000] = bytes(1500) + MAGIC * 750
    torn = RunFolder(tmp_path)
    torn.energy_dir.mkdir()
    torn.ledger_file("n1").write_bytes(content[:-7])
    assert energy_kwh(power_sketch.sketch(torn, 100)) == pytest.approx(energy_kwh(power_store.read(torn)), rel=1e-3)
    for content in (b"", b"\0" * 9000, MAGIC * 5000):
        torn.ledger_file("n1").write_bytes(content)
        assert power_sketch.sketch(torn) is None


def test_a_large_run_is_shown_while_it_is_read(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power_store, "LARGE_BYTES", 0)
    go_on, read = threading.Event(), power_store.read
    reads: list[int] = []

    def slowly(folder: RunFolder, *more: Any) -> power.Power | None:
        reads.append(1)
        assert go_on.wait(30)
        return read(folder, *more)

    monkeypatch.setattr(power_store, "read", slowly)
    store = power_store.PowerStore()
    for _ in range(2):
        shown = store.look(run, None, None, 60)
        assert shown is not None and shown["by"] == "sketch" and "while all are read" in shown["notes"][0]
        assert shown["energy_kwh"][-1] == pytest.approx(energy_kwh(read(run)), rel=1e-3)
        near = store.look(run, START + 9150, START + 9210, 60)  # what one zooms to is read at once
        assert near is not None and near["by"] == "second" and near["high_w"][30] == pytest.approx(800.0)
        assert near["energy_kwh"][0] == pytest.approx((2 * 100 * 9000 + 2 * 400 * 50) / 3.6e6, rel=0.01)
    go_on.set()
    until = time.monotonic() + 30
    while (shown := store.look(run, None, None, 60)) and shown["by"] == "sketch" and time.monotonic() < until:
        time.sleep(0.02)
    assert shown is not None and shown["by"] == "second" and shown["notes"] == [] and max(shown["high_w"]) == 800.0
    assert len(reads) == 1


@pytest.mark.parametrize("what", ["read", "_state"])
def test_a_large_run_that_cannot_be_read_says_so_until_it_can(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    is_well, original = threading.Event(), getattr(power_store, what)

    def broken(*given: Any) -> Any:
        if not is_well.is_set() and threading.current_thread() is not threading.main_thread():
            raise OSError(5, "Input/output error")
        return original(*given)

    for name in ("LARGE_BYTES", "GIVE_WAY_S", "REST"):
        monkeypatch.setattr(power_store, name, 0)
    monkeypatch.setattr(power_store, what, broken)
    store = power_store.PowerStore()
    until = time.monotonic() + 30
    while (shown := store.look(run, None, None, 60)) and "Input/output" not in shown["notes"][0]:
        assert time.monotonic() < until
        time.sleep(0.02)
    assert shown is not None and shown["energy_kwh"][-1] > 0 and not store.is_soon_whole(run)
    is_well.set()
    while (shown := store.look(run, None, None, 60)) and shown["by"] == "sketch":
        assert time.monotonic() < until
        time.sleep(0.02)
    assert shown is not None and shown["by"] == "second" and shown["notes"] == [] and store.is_soon_whole(run)
