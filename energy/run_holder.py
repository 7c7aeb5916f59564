"""Who works on a run folder, and whether that process lives: for whoever looks at runs. `driver.run_lock` takes and
keeps the lock, and says by which rule."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from energy.human import human_time
from energy.runs import LOCK

SILENT_S = 30.0  # a holder on another machine that has given no sign for so long is dead
CLOCKS_DIFFER_S = 120.0  # by how much the clocks of two machines may, before a run that goes on is called lost


@dataclass(frozen=True)
class Holder:
    """Who holds a run folder; `job` is the id of the Ray job, None outside one."""

    host: str
    pid: int
    started_unix_s: float
    job: str | None
    token: str

    def __str__(self) -> str:
        started = _ago(time.time() - self.started_unix_s)
        job = f", Ray job {self.job}" if self.job else ""
        return f"host {self.host}, process {self.pid}, started {started}{job}"


def holder(folder: Path) -> Holder | None:
    """Who wrote the lock last and did not release it, dead or alive; None where nobody did, or left no name."""
    try:
        return Holder(**json.loads((folder / LOCK).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def is_held(folder: Path, *, look_only: bool = False) -> bool:
    """Whether a living process has the run, as far as the storage shows it, without waiting.

    The age of a sign from another machine is told by the storage's clock, for which a file is made there for a moment.
    look_only: nothing is written, and this machine's clock tells it, which may be wrong by minutes.
    """
    try:
        lock = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:  # there is none, or it is not for us to read
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        by_kernel = True
    except BlockingIOError:
        return True
    except OSError:
        by_kernel = False
    finally:
        os.close(lock)
    left = holder(folder)
    if left is None or (by_kernel and left.host == socket.gethostname()):
        return False
    if look_only:
        return abs(time.time() - touched_ns(folder / LOCK) / 1e9) < CLOCKS_DIFFER_S + SILENT_S
    silent_s = silence_s(folder / LOCK)
    return silent_s is None or silent_s < SILENT_S


def touched_ns(path: Path) -> int:
    with open(path, "rb") as file:  # opened anew: NFS asks the server then, and answers a plain stat from memory
        return os.fstat(file.fileno()).st_mtime_ns


def silence_s(path: Path) -> float | None:
    """How long ago the lock was touched, by the clock of the storage; None where no file can be made to read it off."""
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".now-") as now:
            now.write(b".")
            now.flush()
            return (os.fstat(now.fileno()).st_mtime_ns - touched_ns(path)) / 1e9
    except OSError:
        return None


def _ago(seconds: float) -> str:
    return f"{human_time(max(0.0, seconds))} ago" if seconds >= 1 else "just now"
