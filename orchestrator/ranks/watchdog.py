"""A rank's own watch over the time that its steps take: when one takes too long, it says where it stands, and ends.

Collectives wait for their slowest rank without a word, for half an hour or for ever. So each rank has a thread that
knows since when the rank has been at the same thing. Past the deadline it writes the stacks of all threads, and one
line on where the training stands, into `logs/hangs`, waits until the others have done so too, and ends its process:
the driver starts the group again. A rank that is stopped, or holds the interpreter's lock, writes no line, and is known
by that; of the latter, C code that needs no lock (faulthandler) writes the stacks and ends it.
"""

import contextlib
import faulthandler
import json
import os
import socket
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from energy.runs import RunFolder

HANGS = Path("logs") / "hangs"  # in the run folder
TIMES_USUAL = 10  # `auto`: a step may take so many times what the last ones took
LEAST_S = 300.0  # and at least so long: a GPU that comes back from a reset, a file system that hesitates
UNKNOWN_S = 1800.0  # the first time in an attempt: it loads, compiles, allocates and connects
USUAL_OF = 20
LOOK_S = 0.25
GRACE_S = 3.0  # from the first rank's line to the end of its process: time for the others' lines
EXIT_CODE = 75
_ABOVE = Path(__file__).parents[2]  # the rooms lie in it
_LIBRARIES = ("/torch/", "/ray/")


class Watchdog:
    """Watches one rank, whose thread is the one that calls `enter`. `deadline_s`: of a step; None is `auto`."""

    def __init__(
        self,
        run_dir: Path,
        attempt: int,
        rank: int,
        deadline_s: float | None,
        end: Callable[[int], Any] = os._exit,
        grace_s: float = GRACE_S,
    ):
        self._path = run_dir / HANGS / f"attempt-{attempt}-rank-{rank}.json"
        self._rank, self._deadline_s, self._end, self._grace_s = rank, deadline_s, end, grace_s
        self._usual: dict[str, deque[float]] = {}  # how long each phase took, or the longest part of it between beats
        self._longest_s = 0.0
        self._at: tuple[str, int, float, float] = ("startup", 0, time.monotonic(), UNKNOWN_S)
        self._thread = threading.get_ident()
        self._closed = threading.Event()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._stacks = self._path.with_suffix(".txt").open("w", encoding="utf-8")
        self._watcher = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._watcher.start()

    def enter(self, phase: str, step: int) -> None:
        """The rank begins something else: a step, an evaluation, a checkpoint."""
        before = self._at[0]
        self._usual.setdefault(before, deque(maxlen=USUAL_OF)).append(self._passed())
        self._longest_s = 0.0
        self._begin(phase, step)

    def beat(self) -> None:
        """What the rank is at is long, and goes on."""
        self._longest_s = self._passed()
        self._begin(*self._at[:2])

    def _passed(self) -> float:
        return max(self._longest_s, time.monotonic() - self._at[2])

    def _begin(self, phase: str, step: int) -> None:
        limit_s = self._limit(phase)
        self._at = (phase, step, time.monotonic(), limit_s)
        # Later than the thread's own end, so that it only speaks where the thread cannot.
        faulthandler.dump_traceback_later(limit_s + 2 * self._grace_s + 1, exit=True, file=self._stacks)

    def close(self, well: bool = True) -> None:
        """Ends the watch. What was told of a hang stays unless the rank came to its end `well` after all: the first
        rank that ends its process makes the collectives of the others fail."""
        faulthandler.cancel_dump_traceback_later()
        self._closed.set()
        self._watcher.join(LOOK_S + self._grace_s)
        self._stacks.close()
        if well:
            self._path.unlink(missing_ok=True)
        if not self._path.exists():
            self._path.with_suffix(".txt").unlink(missing_ok=True)

    def _limit(self, phase: str) -> float:
        usual = self._usual.get(phase)
        if not usual:
            return max(UNKNOWN_S, self._deadline_s or 0.0)
        learnt_s = TIMES_USUAL * statistics.median(usual)
        if self._deadline_s is None:
            return max(LEAST_S, learnt_s)
        return self._deadline_s if phase == "train_step" else max(self._deadline_s, learnt_s)

    def _watch(self) -> None:
        while not self._closed.wait(LOOK_S):
            phase, step, since, limit_s = self._at
            waited_s = time.monotonic() - since
            if waited_s <= limit_s:
                continue
            self._tell(phase, step, waited_s, limit_s)
            if self._closed.wait(self._grace_s):
                break
            if self._at[2] == since:
                self._end(EXIT_CODE)
                return
            self._path.unlink(missing_ok=True)  # it went on after all

    def _tell(self, phase: str, step: int, waited_s: float, limit_s: float) -> None:
        frame = sys._current_frames().get(self._thread)
        told = {
            "rank": self._rank,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "phase": phase,
            "step": step,
            "waited_s": round(waited_s, 3),
            "deadline_s": round(limit_s, 3),
            "where": where(frame) if frame is not None else "its thread has ended",
        }
        # A disk that refuses must not keep a hung process alive.
        with contextlib.suppress(OSError):
            faulthandler.dump_traceback(self._stacks, all_threads=True)
            partial = self._path.with_suffix(".partial")
            partial.write_text(json.dumps(told) + "\n", encoding="utf-8")
            partial.replace(self._path)


def where(frame: FrameType) -> str:
    """Where a thread stands: the innermost call, and the innermost one that is not PyTorch's or Ray's own."""
    inner = outer = frame
    while outer.f_back is not None and any(name in outer.f_code.co_filename for name in _LIBRARIES):
        outer = outer.f_back
    said = _place(outer)
    return said if inner is outer else f"{_place(inner)}, called by {said}"


def _place(frame: FrameType) -> str:
    path = Path(frame.f_code.co_filename)
    ours = any(path.is_relative_to(_ABOVE / room) for room in ("orchestrator", "model"))
    shown = path.relative_to(_ABOVE) if ours else f"{path.parent.name}/{path.name}"
    return f"{frame.f_code.co_name} ({shown}:{frame.f_lineno})"


def hang_of(folder: RunFolder, attempt: int) -> str | None:
    """What the watchdogs of an attempt said, in one line: which step, and where each rank stood; None if nothing."""
    told = {}
    for path in (folder.path / HANGS).glob(f"attempt-{attempt}-rank-*.json"):
        with contextlib.suppress(OSError, ValueError):
            one = json.loads(path.read_text(encoding="utf-8"))
            told[one["rank"]] = one
    if not told:
        return None
    # Ranks come to a step at about the same time; whoever is not there said so of an earlier one.
    first = min(told.values(), key=lambda one: (one["step"], one["rank"]))
    what = f"step {first['step']}" if first["phase"] == "train_step" else f"{first['phase']} (step {first['step']})"
    stood: dict[str, list[int]] = {}
    for rank, one in sorted(told.items()):
        stood.setdefault(f"in {one['where']}", []).append(rank)
    world = len(list(folder.metrics_dir.glob("rank-*.jsonl")))
    for rank in range(world):
        if rank not in told and (place := process_of(folder, rank, attempt)) is not None:
            silent = f"({place}) without a word: its process is stopped or gone, or holds Python's lock"
            stood.setdefault(silent, []).append(rank)
    ranks = "; ".join(f"rank{'s' * (len(r) > 1)} {', '.join(map(str, r))} {at}" for at, r in stood.items())
    stacks = folder.path / HANGS / f"attempt-{attempt}-rank-*.txt"
    return f"a hang: {what} was not done after {first['deadline_s']:g} s; {ranks}; stacks: {stacks}"


def process_of(folder: RunFolder, rank: int, attempt: int) -> str | None:
    """ "host, process id" of a rank in an attempt, as it wrote it; None where it never came so far."""
    told = [e for e in folder.events(rank) if e.get("event") == "process" and e.get("attempt") == attempt]
    return f"{told[-1]['host']}, process {told[-1]['pid']}" if told else None
