"""The driver's watch over its run, on a bad day: clocks that are set, and storage that does not answer for a moment."""

import errno
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from watched import NOW
from watched import run as run
from watched import spec as spec

from orchestrator.driver import run_watch
from orchestrator.live.stragglers import LOOK_EVERY_S
from orchestrator.screens import run as run_screen
from orchestrator.screens.run import RunScreen

WATT, SET_AT_S = 100.0, 11  # of each of two nodes


def fails_with(code: int) -> Any:
    def fails(*asked: Any, **how: Any) -> Any:
        raise OSError(code, os.strerror(code))

    return fails


@pytest.mark.parametrize("by_s", [-3600.0, 3600.0], ids=["back", "forward"])
def test_a_clock_that_is_set_is_no_time_that_passed(
    by_s: float, run: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    watch, screen = run.watch("energy.budget.energy=10 Wh"), RunScreen()
    for second in range(1, 32):
        now = NOW + second + (by_s if second >= SET_AT_S else 0.0)
        run.step(second, now)
        run.mark(event="phase", phase="data_wait", start_unix_s=now - 0.5, end_unix_s=now)
        run.meter(now, WATT, WATT * second)
        if second % 2:  # what it was last is held in the other seconds, that of the set clock too
            run.meter(now, WATT, WATT * second, node="n2")
        clocks = {"time": lambda now=now: now, "monotonic": lambda second=second: float(second)}
        for module in (run_watch, run_screen):
            monkeypatch.setattr(module, "time", SimpleNamespace(**clocks))
        watch.look()
        screen.update(watch)
        told = json.loads((run.folder.path / "live.json").read_text())
        assert told["updated_unix_s"] == now
        assert told["power_w"] == 2 * WATT and [each["power_w"] for each in told["nodes"]] == [WATT, WATT]
        read_unix_s = [each["read_unix_s"] for each in told["nodes"]]
        assert read_unix_s == pytest.approx([now, now - (second % 2 == 0)], rel=0.0, abs=1e-3)
        assert watch.budget.spending.energy_j == pytest.approx(2 * WATT * second)
        assert watch.budget.spending.device_hours == pytest.approx(second / 3600)
    assert watch.progress.energy_j == 2 * WATT * second
    assert watch.stopped_by is None and run.said == []
    # Since the last look before the clock was set, ten seconds earlier.
    assert told["stragglers"][0]["data_wait_s"] == pytest.approx(0.5 * (second - SET_AT_S + 10))
    assert capfd.readouterr().err.count(" step=") == 2  # a line a minute, and one when the clock was set


@pytest.mark.parametrize(
    ("where", "what"),
    [(Path, "open"), (Path, "iterdir"), (Path, "read_bytes"), (Path, "glob"), (os, "statvfs")],
    ids=["rank 0", "nodes", "a node", "ranks", "disk"],
)
def test_storage_that_does_not_answer_for_a_moment_ends_no_training(
    where: Any, what: str, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, screen = run.watch("energy.budget.energy=10 Wh"), RunScreen(quiet=True)
    watch.nodes.alive = lambda: None
    times = [NOW + LOOK_EVERY_S * n for n in range(1, 5)]
    for number, now in enumerate(times, start=1):
        run.step(number, now)
        run.meter(now, WATT, WATT * number)
        with monkeypatch.context() as broken:
            if number in (2, 3):
                broken.setattr(where, what, fails_with(errno.EIO))
            watch.look(now)
            screen.update(watch)
        assert list(watch.nodes.nodes) == ["n1"]
    assert len(run.said) == 1 and "cannot be looked at (Input/output error): tried again" in run.said[0]
    assert (watch.progress.step, watch.progress.energy_j) == (4, 4 * WATT)
    assert watch.stragglers == []


def test_a_stop_that_a_full_disk_refuses_is_asked_for_again(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = run.watch("energy.budget.energy=1 Wh")
    run.step(1, NOW + 1)
    run.meter(NOW + 1, WATT, 4000.0)
    with monkeypatch.context() as full:
        full.setattr(Path, "touch", fails_with(errno.ENOSPC))
        for second in (1, 2):
            watch.look(NOW + second)
    assert watch.stopped_by is None
    watch.look(NOW + 3)
    assert watch.stopped_by is not None and (run.folder.path / "stop").exists()
    reached = "the budget of 1.00 Wh is reached"
    assert run.said == [
        f"{reached}, and the trainer cannot be asked to stop yet (No space left on device): tried again",
        f"{reached}: checkpoint and report",
    ]
