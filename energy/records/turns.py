"""One writer of a record at a time: two that went on from the same entry would leave a chain that forks for good."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from energy import locks

LOOK_S = 0.1
PATIENCE_S = 600.0  # after which another writer counts as one that hangs
NOT_WRITABLE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Holds the entries of a run's records, from reading the last to appending the next; made empty where missing.

    Where the file system has no locks, among the writers of this machine. OSError (EBUSY) where another does not let
    go. What cannot be written is not held: nobody else of this user writes it either.
    """
    with ExitStack() as held:
        try:
            file = held.enter_context(open(path, "ab"))
        except OSError as refusal:
            if refusal.errno not in NOT_WRITABLE:
                raise
        else:
            _wait_for(held, file.fileno(), path)
        yield


def _wait_for(held: ExitStack, descriptor: int, path: Path) -> None:
    began = time.monotonic()
    while True:
        try:
            if not locks.lock(descriptor) and (claim := locks.claim(descriptor, path)) is not None:
                held.enter_context(claim)
            return
        except BlockingIOError:
            if time.monotonic() - began > PATIENCE_S:
                text = f"another process has been writing the record for {PATIENCE_S:.0f} s"
                raise OSError(errno.EBUSY, text, str(path)) from None
        time.sleep(LOOK_S)
