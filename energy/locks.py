"""The kernel's lock on a file (flock), which is dropped however its holder dies, and storage that does not carry it."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import socket
from pathlib import Path

# What the system answers where a file system has no locks: Lustre mounted without `flock`, NFS without a lock manager.
NO_FLOCK = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS})


def lock(descriptor: int) -> bool:
    """Takes the lock without waiting, until the descriptor is closed; False where the file system has none.

    BlockingIOError where another has it, and OSError for what else is wrong: the descriptor stays open.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as refusal:
        if refusal.errno not in NO_FLOCK:
            raise
        return False
    return True


def claim(descriptor: int, path: Path) -> socket.socket | None:
    """In place of the lock: holds an open file among the processes of this machine, until what is returned is closed or
    its process dies. BlockingIOError where another has it; None where the system has no names for that (only Linux has
    abstract sockets)."""
    # Some network storage numbers all files alike, and in two containers the same path may be two files.
    file = os.fstat(descriptor)
    name = hashlib.sha256(f"{os.path.realpath(path)} {file.st_dev} {file.st_ino}".encode()).hexdigest()
    held = None
    try:
        held = socket.socket(socket.AF_UNIX)
        held.bind(f"\0hoofprint-{name}")
    except OSError as refusal:
        if held is not None:
            held.close()
        if refusal.errno == errno.EADDRINUSE:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), str(path)) from None
        return None
    return held
