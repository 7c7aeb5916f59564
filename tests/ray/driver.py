"""`hoofprint run` in a process of its own, and what its run folder shows meanwhile."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from energy.runs import RunFolder

HOOFPRINT = [sys.executable, "-c", "from orchestrator.cli import main; main()"]
LONG_S = 600.0  # that a busy machine does not need


class Driver:
    """`hoofprint run`, and what its run folder shows meanwhile."""

    def __init__(self, run: Path, *arguments: str):
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        command = [*HOOFPRINT, "run", *arguments]
        self.folder, self.said = RunFolder(run), run.parent.parent / "said.txt"
        with self.said.open("a") as said:
            self.process = subprocess.Popen(command, stderr=said, env=environment, start_new_session=True)

    def wait_for(self, what: Callable[[list[dict[str, Any]]], bool]) -> None:
        """Until the events of rank 0 are so."""
        until = time.monotonic() + LONG_S
        while not what(self.folder.events()):
            assert self.process.poll() is None and time.monotonic() < until, self.said.read_text()
            time.sleep(0.05)

    def pid_of(self, rank: int) -> int:
        return int([event for event in self.folder.events(rank) if event.get("event") == "process"][-1]["pid"])

    def end(self) -> int:
        return self.process.wait(timeout=LONG_S)


def reached(attempt: int, step: int) -> Callable[[list[dict[str, Any]]], bool]:
    def has(events: list[dict[str, Any]]) -> bool:
        own = [event for event in events if event.get("event") == "step" and event.get("attempt") == attempt]
        return bool(own) and own[-1]["step"] >= step

    return has


@pytest.fixture
def left_over() -> Iterator[list[Driver]]:
    drivers: list[Driver] = []
    yield drivers
    for driver in drivers:
        if driver.process.poll() is None:
            os.killpg(driver.process.pid, signal.SIGKILL)
            driver.process.wait()
