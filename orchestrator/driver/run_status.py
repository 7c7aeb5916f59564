"""What run.json says of a run while it goes on: which attempts there were, what befell each, and how it ended."""

import contextlib
import importlib.metadata
import platform
import shlex
import sys
import threading
import time
from typing import Any

from orchestrator.driver.attempts import Claim
from orchestrator.driver.revision import code_revision
from orchestrator.screens.run import RunScreen

PACKAGES = ("hoofprint", "torch", "ray", "codecarbon", "nvidia-ml-py", "sentencepiece")
SAVE_S = 5.0  # of waiting, from one writing of run.json to the next


class RunStatus:
    """Keeps the attempts of run.json, of which the last one runs. The first ending that is given stands."""

    def __init__(self, claim: Claim, attempts: list[dict[str, Any]], screen: RunScreen):
        self._claim, self._attempts, self._screen = claim, attempts, screen
        self._unsaved_s = 0.0
        self._ahead_s = _clock_ahead_s()
        self.status: str | None = None
        self.error: str | None = None
        self._ends: dict[str, Any] | None = None
        self._written = False
        self._writing = threading.RLock()  # signal handlers write the ending too, and the thread of the head watch

    @property
    def attempt(self) -> int:
        """The number of the attempt that runs, from 1."""
        return len(self._attempts)

    def again(self, error: str | None, workers: int) -> float:
        """The attempt failed, or made room for more workers, and another begins; its start in unix s."""
        self.befell(error)
        self._attempts[-1] |= {"ended_unix_s": self._now(), "status": "failed" if error else "stopped"}
        now, self._ahead_s = time.time(), _clock_ahead_s()
        self._attempts.append({"started_unix_s": now, "status": "running", "attempt": self.attempt + 1, **code()})
        self._claim.folder.update_run(**self.held(workers))
        return now

    def held(self, workers: int) -> dict[str, Any]:
        """Keys of run.json: so many workers are held, by the attempt that runs; another may have another number."""
        self._attempts[-1] |= {"world_size": workers}
        return {"attempts": self._attempts, "world_size": workers}

    def befell(self, error: str | None) -> None:
        """What happened to the attempt that runs, whatever becomes of it; None: it goes on as if nothing had."""
        self._attempts[-1].pop("error", None)
        if error is not None:
            self._attempts[-1]["error"] = error

    def waited(self, seconds: float) -> None:
        """So long nobody held the workers of the attempt that runs: they are no device-hours of it."""
        self._attempts[-1]["waited_s"] = self._attempts[-1].get("waited_s", 0.0) + seconds
        self._unsaved_s += seconds
        if self._unsaved_s >= SAVE_S:
            self._unsaved_s = 0.0
            with contextlib.suppress(OSError):  # a full disk: the next writing has it too, and nobody trains meanwhile
                self._claim.folder.update_run(attempts=self._attempts)

    def write(self, status: str, error: str | None = None, **more: Any) -> None:
        """The ending. more: further keys of run.json. RunTaken where the run is another driver's by now.

        A signal handler may come to it in the middle of itself and end the process: then it is written from there.
        """
        with self._writing:
            if self._written:
                return
            self._claim.require_held()
            if self._ends is None:
                self._attempts[-1] |= {"ended_unix_s": self._now(), "status": status}
                ends = {"status": status, "attempts": self._attempts, "ended_unix_s": time.time(), "error": error}
                self._ends = ends | more
                self.status, self.error = status, error
            self._claim.free_space()
            try:
                self._claim.folder.update_run(**self._ends)
                self._written = True
            except OSError as refusal:
                self._screen.failed([f"run.json could not be written, it still says running: {refusal}"])

    def _now(self) -> float:
        """Unix s by the clock as it stood when the attempt began: that it is set makes no device-hours."""
        return time.monotonic() + self._ahead_s


def _clock_ahead_s() -> float:
    return time.time() - time.monotonic()


def code() -> dict[str, Any]:
    """What runs: of each attempt its own, because a run may go on with other code, and by another command, than it
    began with."""
    versions = {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"code_revision": code_revision(), "versions": versions, "command": shlex.join(["hoofprint", *sys.argv[1:]])}
