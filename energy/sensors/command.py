"""Runs a program for a sensor, and says what CPU time that took: it belongs to the cost of metering."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress

POLL_S = 0.01
MOST_BYTES = 1_000_000  # that a program may print: one that never ends must not fill the disk


def output_of(command: Sequence[str], timeout_s: float) -> tuple[str, float]:
    """(what it printed, its CPU time in s). SubprocessError when it fails or takes too long, OSError when it is none,
    ValueError when it prints without end. What it has started ends with it: of a controller that hangs there would be
    more and more.

    The kernel tells a process's CPU time to whoever reaps it and to nobody else: so it is reaped here. A file takes the
    output, because a pipe would stay open for as long as anything that the program leaves behind.
    """
    with tempfile.TemporaryFile() as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.DEVNULL, start_new_session=True
        )
        deadline_s, late, endless = time.monotonic() + timeout_s, False, False
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        while not pid:
            endless = endless or os.fstat(file.fileno()).st_size > MOST_BYTES
            if (endless or time.monotonic() > deadline_s) and not late:
                late = True
                with suppress(PermissionError):  # by sudo: then there is at least no second one beside it
                    os.killpg(process.pid, signal.SIGKILL)  # not reaped yet, so that the number is still its own
            time.sleep(POLL_S)
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        process.returncode = os.waitstatus_to_exitcode(status)
        if endless:
            raise ValueError(f"{command[0]} printed more than {MOST_BYTES / 1e6:g} MB")
        if late:
            raise subprocess.TimeoutExpired(list(command), timeout_s)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, list(command))
        file.seek(0)
        return file.read().decode(errors="replace"), usage.ru_utime + usage.ru_stime
