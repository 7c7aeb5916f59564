"""Runs a program for a sensor, and says what CPU time that took: it belongs to the cost of metering."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Sequence

POLL_S = 0.01


def output_of(command: Sequence[str], timeout_s: float) -> tuple[str, float]:
    """(what it printed, its CPU time in s). SubprocessError when it fails or takes too long, OSError when it is none.

    The kernel tells a process's CPU time to whoever reaps it and to nobody else: so it is reaped here. A file takes the
    output, because a pipe would stay open for as long as anything that the program leaves behind.
    """
    with tempfile.TemporaryFile() as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.DEVNULL)
        deadline_s, late = time.monotonic() + timeout_s, False
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        while not pid:
            if time.monotonic() > deadline_s and not late:
                late = True
                process.kill()
            time.sleep(POLL_S)
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        process.returncode = os.waitstatus_to_exitcode(status)
        if late:
            raise subprocess.TimeoutExpired(list(command), timeout_s)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, list(command))
        file.seek(0)
        return file.read().decode(errors="replace"), usage.ru_utime + usage.ru_stime
