"""What Ctrl-C, SIGTERM and a closed terminal (SIGHUP) do to a run, by how far it is."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Protocol


class Terminal(Protocol):
    """What may be written to from a signal handler, in the middle of anything."""

    def blurt(self, text: str) -> None: ...
    def release(self) -> None: ...


class Stops:
    """Once: before the first step ends at once, in order; then asks the trainer for checkpoint and report; after the
    training changes nothing. Twice: ends now; what is on disk stays, and run.json says that it was stopped."""

    def __init__(
        self,
        stop_file: Path,
        screen: Terminal,
        write_ending: Callable[[], None],
        has_trained: Callable[[], bool] = lambda: False,
    ):
        """has_trained: whether there is a step that a stop could lose; called from a signal handler."""
        self._stop_file, self._screen, self._write_ending = stop_file, screen, write_ending
        self._has_trained = has_trained
        self._count, self._stage = 0, "starting"
        self._notes: list[str] = []
        self._old: dict[int, Any] = {}

    def __enter__(self) -> "Stops":
        self.install()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def install(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup: the run is to outlast its terminal
            replaced = signal.signal(number, self._handle)
            self._old.setdefault(number, replaced)

    def gently(self) -> None:
        """From here on there is something to lose: a stop is a request to the trainer."""
        self._stage = "training"

    def notes(self) -> list[str]:
        """What the user should read; each once. A handler cannot draw: it may have interrupted a drawing."""
        notes, self._notes = self._notes, []
        return notes

    def finishing(self) -> None:
        self._stage = "finishing"

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP and self._count:
            return  # a shell passes it on, and the kernel sends it as well: one closed terminal
        self._count += 1
        if self._count > 1:
            self._end_now()
        if self._stage == "starting":
            if not self._has_trained():
                raise KeyboardInterrupt
            self.gently()  # the driver has not looked since the first step
        if self._stage == "finishing":
            self._screen.blurt("writing the report; Ctrl-C again ends at once")
            return
        try:
            self._stop_file.touch()
            self._notes.append("stopping: checkpoint and report first; Ctrl-C again ends at once")
        except OSError as error:
            self._notes.append(f"the trainer cannot be asked to stop ({error.strerror}); Ctrl-C again ends at once")

    def _end_now(self) -> None:
        try:
            self._write_ending()
        except OSError as error:
            self._screen.blurt(f"run.json could not be written: {error}")
        self._screen.release()
        os._exit(130)
