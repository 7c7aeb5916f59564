"""One driver a run folder: who holds it, how a second one is refused, and how a dead one's place is taken.

The kernel's lock (flock) decides between processes of one machine, and between machines where the file system carries
it (NFS with a lock manager, Lustre mounted with `flock`): it is dropped however its holder dies. Storage that does not
carry it is guarded by signs of life: the holder touches the lock every SIGN_EVERY_S, and a lock that another machine
left counts as its, until no sign has come for SILENT_S. Ages are told by the storage's own clock, never by the hosts'.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from energy import locks, run_holder
from energy.run_holder import Holder, holder, silence_s, touched_ns
from energy.runs import LOCK
from orchestrator.spec.file import BadInput

SIGN_EVERY_S = 5.0
LOOKS, LOOK_S = 3, 0.1  # whoever only looks whether a run is at work holds its lock for an instant
SETTLE_S = 1.0  # without the kernel's lock the last of two that write at once has it


class RunTaken(OSError):
    """Another driver has the run: nothing in its folder is for this one to write any more."""


class RunLock:
    """Holds a run folder until `release`; BadInput names whoever has it. `say` tells of a wait for signs of life."""

    def __init__(self, folder: Path, say: Callable[[str], None] = lambda text: None):
        self._folder, self._path = folder, folder / LOCK
        self._me = Holder(socket.gethostname(), os.getpid(), time.time(), ray_job(), uuid.uuid4().hex)
        self._name = json.dumps(asdict(self._me)).encode() + b"\n"
        self._released = threading.Event()
        self._lock = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._take(say)
        except BaseException:
            os.close(self._lock)
            raise
        self._signs = threading.Thread(target=self._give_signs, name="run-lock", daemon=True)
        self._signs.start()

    def release(self) -> None:
        if self._released.is_set():
            return
        self._released.set()
        self._signs.join()
        if not self._is_taken():
            with contextlib.suppress(OSError):  # a full or lost disk: the lock goes all the same
                os.ftruncate(self._lock, 0)
        os.close(self._lock)

    def require_held(self) -> None:
        """RunTaken where another has it by now, as is allowed when no sign of this one came for SILENT_S."""
        if self._is_taken():
            raise RunTaken(
                f"{self._folder} was taken from this process while it stood still, or could not reach the storage, by "
                f"another ({_named(holder(self._folder))}): this one writes no more into it"
            )

    def _is_taken(self) -> bool:
        try:
            return self._path.read_bytes() != self._name  # opened anew, as in run_holder.touched_ns
        except OSError:  # storage that is away for a while: the next look tells
            return False

    def _take(self, say: Callable[[str], None]) -> None:
        by_kernel = self._flock()
        before = holder(self._folder)
        # On this machine the kernel would have refused a lock whose holder lives.
        if before is not None and (before.host != self._me.host or not by_kernel) and _gives_signs(self._path, say):
            raise _refusal(self._folder, before)
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, self._name, 0)
        os.fsync(self._lock)
        if not by_kernel:
            time.sleep(SETTLE_S)
            if holder(self._folder) != self._me:
                raise _refusal(self._folder, holder(self._folder))

    def _flock(self) -> bool:
        """Takes the kernel's lock, for good; False where the file system has none."""
        for again in reversed(range(LOOKS)):
            try:
                return locks.lock(self._lock)
            except BlockingIOError:
                if not again:
                    raise _refusal(self._folder, holder(self._folder)) from None
                time.sleep(LOOK_S)
        raise AssertionError("unreachable: the last look returns or raises")

    def _give_signs(self) -> None:
        while not self._released.wait(SIGN_EVERY_S) and not self._is_taken():  # else they would speak for another
            with contextlib.suppress(OSError):  # storage that is away for a while: the next sign tells
                os.utime(self._lock)


def ray_job() -> str | None:
    """The submission id of the Ray job that this process is the driver of, if it is one."""
    try:
        config = json.loads(os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"])
        return str(config["metadata"]["job_submission_id"])
    except (KeyError, ValueError, TypeError):
        return None


def _gives_signs(path: Path, say: Callable[[str], None]) -> bool:
    """Whether the lock's holder, on another machine, touches it: waits until SILENT_S have passed since the last."""
    silent_s = silence_s(path)
    if silent_s is not None and silent_s >= run_holder.SILENT_S:
        return False
    first, until = touched_ns(path), time.monotonic() + run_holder.SILENT_S - (silent_s or 0.0)
    say(f"{path.parent} was held from another machine a moment ago: looking whether it still is")
    while time.monotonic() < until:
        time.sleep(min(0.2, SIGN_EVERY_S / 4))
        if touched_ns(path) != first:
            return True
    return False


def _refusal(folder: Path, by: Holder | None) -> BadInput:
    return BadInput(
        f"{folder} is at work in another process ({_named(by)}); wait for its end, or stop it: hoofprint stop {folder}"
    )


def _named(by: Holder | None) -> str:
    return str(by) if by is not None else "it left no name"
