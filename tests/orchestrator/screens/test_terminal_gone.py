"""A run goes on, and ends in order, when the terminal that shows it is closed."""

import fcntl
import os
import pty
import signal
import struct
import termios
from pathlib import Path

import pytest

from orchestrator.driver.stops import Stops
from orchestrator.screens.run import RunScreen


@pytest.fixture
def terminal() -> "tuple[int, int]":
    """(the reading end, the end that is a terminal)"""
    return pty.openpty()


def screen_on(end: int) -> RunScreen:
    kept = os.dup(2)
    os.dup2(end, 2)
    try:
        return RunScreen()
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def test_what_is_said_after_the_terminal_is_gone_hurts_nobody(terminal: tuple[int, int]) -> None:
    reading, showing = terminal
    screen = screen_on(showing)
    os.close(showing)
    screen.note("before")
    assert b"before" in os.read(reading, 100)
    os.close(reading)
    screen.note("after")
    screen.progress(1, 10, "tokenising")
    screen.failed(["the run failed: for a reason", "what to do"])
    screen.blurt("from a handler")
    screen.release()


def test_a_long_note_is_broken_between_words_and_stays_indented(terminal: tuple[int, int], tmp_path: Path) -> None:
    reading, showing = terminal
    fcntl.ioctl(showing, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    note = f"  activation checkpointing none (on the CPU nothing is computed twice); {'path/' * 20}; float32"
    screen = screen_on(showing)
    screen.note(note)
    lines = os.read(reading, 1000).decode().splitlines()
    assert [line.rstrip() for line in lines if len(line) > 60] == [f"    {'path/' * 20};"]  # to be copied whole
    assert len(lines) > 2 and all(line.startswith("    ") for line in lines[1:])
    assert " ".join(" ".join(lines).split()) == " ".join(note.split())
    with (tmp_path / "log").open("w+") as log:
        screen_on(log.fileno()).note(note)
        log.seek(0)
        assert log.read() == f"{note}\n"


def test_other_faults_of_writing_are_told() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    screen = screen_on(full)
    os.close(full)
    with pytest.raises(OSError, match="No space left"):
        screen.blurt("text")


@pytest.mark.parametrize(("before", "asked"), [(signal.SIG_DFL, True), (signal.SIG_IGN, False)])
def test_a_closed_terminal_is_a_request_to_stop_unless_under_nohup(
    tmp_path: Path, before: signal.Handlers, asked: bool
) -> None:
    old = signal.signal(signal.SIGHUP, before)
    try:
        with Stops(tmp_path / "stop", RunScreen(quiet=True), lambda: None) as stops:
            stops.gently()
            for _ in range(2):  # a shell passes it on, and the kernel sends it too: that is no second request
                os.kill(os.getpid(), signal.SIGHUP)
        assert (tmp_path / "stop").exists() == asked
        assert signal.getsignal(signal.SIGHUP) == before
    finally:
        signal.signal(signal.SIGHUP, old)
