"""Runs one command as if nobody stood between it and its caller: same streams, same signals, same exit code.

The command stays in our process group, because anything else breaks a terminal: it could not read from it, and what is
piped into a pager would fight over it. So a signal to the whole group (Ctrl-C at a terminal, `kill -- -PGID`,
`timeout`, a batch system) reaches the command by itself, and one to us alone has to be passed on, and never both: two
Ctrl-C mean "at once" to many programs. Only a third process of the group can tell: see `_Witness`.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGTSTP", "SIGCONT")
PASSED_ON = tuple(getattr(signal, name) for name in _NAMES)
GRACE_S = 0.02  # until a signal to the group has reached all of its processes
SAME_S = 0.1  # `timeout` signals its child and then the group: so close together they are one
NOT_FOUND, NOT_EXECUTABLE, BY_SIGNAL = 127, 126, 128  # exit codes as shells have them
_STDOUT, _STDERR = 1, 2
MARK = "HOOFPRINT_MEASURE"  # in the environment of a command: by it the processes that it leaves behind are known


class CannotStart(Exception):
    """The command was not started; `exit_code` is what a shell would return."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def find(command: str) -> str:
    """The file that would be executed for a command's first word. CannotStart when there is none."""
    if os.sep in command:
        places = [Path(command)]
    else:
        places = [Path(folder or ".") / command for folder in os.environ.get("PATH", os.defpath).split(os.pathsep)]
    there = [place for place in places if place.exists()]
    for place in there:
        if place.is_file() and os.access(place, os.X_OK):
            return str(place)
    if not there:
        raise CannotStart(f"{command}: no such command", NOT_FOUND)
    why = "is a folder" if there[0].is_dir() else "may not be executed (chmod +x makes it so)"
    raise CannotStart(f"{there[0]} {why}", NOT_EXECUTABLE)


def run(
    command: Sequence[str],
    *,
    stdout_to_stderr: bool = False,
    mark: str = "",
    started: Callable[[], object] = lambda: None,
    ended: Callable[[], object] = lambda: None,
) -> int:
    """Run `command` to its end and return its exit code, 128 + N when it died of signal N.

    mark: for `left_behind`. `started` is called just before it starts and `ended` as soon as it has. Signals are passed
    on when called in the main thread, where alone Python lets them be handled. CannotStart when the command cannot be
    executed.
    """
    path = find(command[0])
    actions: list[Any] = [(os.POSIX_SPAWN_DUP2, _STDERR, _STDOUT)] if stdout_to_stderr else []
    environment = os.environ | ({MARK: f"{os.environ.get(MARK, '')} {mark}".strip()} if mark else {})
    with _Signals() as signals:
        started()
        try:
            # Python ignores these two for itself; the command gets them as its caller had them.
            pid = os.posix_spawn(
                path, list(command), environment, file_actions=actions, setsigdef=[signal.SIGPIPE, signal.SIGXFSZ]
            )
        except OSError as error:
            hint = ": a script needs a first line such as #!/bin/sh" if error.errno == errno.ENOEXEC else ""
            raise CannotStart(f"{path} cannot be executed ({error.strerror}){hint}", NOT_EXECUTABLE) from None
        signals.pass_on_to(pid)
        # Not reaped until `done` is noted: a signal must never go to somebody else who was given the same number.
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        ended()
        signals.done()
        _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else BY_SIGNAL - code


def left_behind(mark: str) -> list[str]:
    """Processes ("PID NAME") of a command with this mark that are still at work; none where there is no /proc."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (place / "environ").read_bytes():
                found.append(f"{place.name} {(place / 'comm').read_text().strip()}")
        except OSError:  # another user's, or it has just ended
            continue
    return found


@contextmanager
def undisturbed() -> Iterator[None]:
    """Lets no Ctrl-C and no polite kill break off what must be finished: a second one often follows the first."""
    # Unlike SIG_IGN a handler is not inherited by a command.
    with _handled((signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT), lambda *_: None):
        yield


@contextmanager
def tidy() -> Iterator[None]:
    """Makes of a polite kill a SystemExit, as Ctrl-C is a KeyboardInterrupt: what was begun can be taken back."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(BY_SIGNAL + number)

    with _handled((signal.SIGTERM, signal.SIGHUP), leave):
        yield


@contextmanager
def _handled(numbers: Sequence[int], handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Meanwhile these signals have this handler, in the main thread, unless they are ignored."""
    old: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in numbers:
            if signal.getsignal(number) != signal.SIG_IGN:
                old[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


class _Signals:
    """Handlers, for as long as the command runs, that pass on what the command did not get by itself."""

    def __init__(self) -> None:
        self._pid: int | None = None
        self._early: list[int] = []
        self._old: dict[int, Any] = {}
        self._taken_s: dict[int, float] = {}
        self._witness = _Witness()

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            self._witness.call()
            for number in PASSED_ON:
                if signal.getsignal(number) != signal.SIG_IGN:  # under nohup, the command ignores it as we do
                    self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._witness.dismiss()

    def pass_on_to(self, pid: int) -> None:
        self._pid = pid
        for number in self._early:
            os.kill(pid, number)

    def done(self) -> None:
        self._pid = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now_s = time.monotonic()
        if now_s - self._taken_s.get(number, float("-inf")) < SAME_S:
            return
        self._taken_s[number] = now_s
        if number == signal.SIGCONT:  # does no harm twice
            self._send(number)
            return
        time.sleep(GRACE_S)
        if not self._witness.saw(number):
            self._send(number)
        if number == signal.SIGTSTP:
            self._stop()

    def _send(self, number: int) -> None:
        if self._pid is not None:
            os.kill(self._pid, number)
        else:
            self._early.append(number)

    def _stop(self) -> None:
        """Stop as one does without a handler (the kernel knows when nobody could continue us), until SIGCONT."""
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, self._handle)


class _Witness:
    """An idle process of our group that holds all signals back: those that the kernel lists as pending on it were
    sent to the group. Without one (no /proc, no `cat`), every signal is taken as sent to us alone."""

    def __init__(self) -> None:
        self._pid: int | None = None
        self._open: int | None = None

    def call(self) -> None:
        path = shutil.which("cat")  # it waits on a pipe that closes when we end, however that comes
        if path is None or not Path("/proc/self/status").exists():
            return
        reading, self._open = os.pipe()
        actions: list[Any] = [(os.POSIX_SPAWN_DUP2, reading, 0), (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
        actions.append((os.POSIX_SPAWN_DUP2, 1, 2))
        try:
            self._pid = os.posix_spawn(path, ["cat"], os.environ, file_actions=actions, setsigmask=PASSED_ON)
        except OSError:
            self._pid = None
        finally:
            os.close(reading)

    def saw(self, number: int) -> bool:
        """Whether the signal came to the group; it is then forgotten."""
        if self._pid is None:
            return False
        try:
            lines = Path(f"/proc/{self._pid}/status").read_text().splitlines()
        except OSError:
            return False
        masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd:", "ShdPnd:"))]
        if not any(mask >> (number - 1) & 1 for mask in masks):
            return False
        self.dismiss()
        self.call()
        return True

    def dismiss(self) -> None:
        if self._pid is not None and self._open is not None:
            os.close(self._open)
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        self._pid = self._open = None
