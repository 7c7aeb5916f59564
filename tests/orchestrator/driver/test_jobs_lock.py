"""One driver a run folder: a second is refused by name, a dead one replaced, also where storage has no locks."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from energy import run_holder
from energy.run_holder import is_held
from energy.runs import LOCK
from orchestrator.driver import run_lock
from orchestrator.driver.run_lock import RunLock, RunTaken
from orchestrator.spec.file import BadInput

HOLDER = "import sys, time; from pathlib import Path; from orchestrator.driver.run_lock import RunLock; "
HOLDER += "RunLock(Path(sys.argv[1])); print('held', flush=True); time.sleep(600)"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "SIGN_EVERY_S", 0.05)
    monkeypatch.setattr(run_holder, "SILENT_S", 0.6)
    monkeypatch.setattr(run_lock, "SETTLE_S", 0.05)


@pytest.fixture
def no_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)


def leave(folder: Path, host: str = "elsewhere", age_s: float = 0.0) -> None:
    """What a driver on `host` wrote, and last touched `age_s` ago."""
    holder = {"host": host, "pid": 4711, "started_unix_s": time.time() - 120, "job": "job-1", "token": "t"}
    (folder / LOCK).write_text(json.dumps(holder))
    then = time.time() - age_s
    os.utime(folder / LOCK, (then, then))


@contextmanager
def signs(folder: Path) -> Iterator[None]:
    """A driver elsewhere that lives."""
    over = threading.Event()

    def touch() -> None:
        while not over.wait(0.05):
            os.utime(folder / LOCK)

    thread = threading.Thread(target=touch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_second_driver_is_told_who_the_first_is(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    try:
        assert is_held(tmp_path)
        started = json.loads((tmp_path / LOCK).read_text())["started_unix_s"]
        (tmp_path / LOCK).write_text((tmp_path / LOCK).read_text().replace(str(started), str(started - 180)))
        with pytest.raises(BadInput) as refused:
            RunLock(tmp_path)
        who = f"host {socket.gethostname()}, process {process.pid}, started 3.0"
        assert who in str(refused.value) and " min ago" in str(refused.value)
        assert f"hoofprint stop {tmp_path}" in str(refused.value)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not is_held(tmp_path)
        RunLock(tmp_path).release()  # at once: the kernel let go of it
    finally:
        process.kill()
        process.wait()


def test_a_released_lock_names_nobody(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    assert run_holder.holder(tmp_path) is not None
    lock.release()
    lock.release()
    assert run_holder.holder(tmp_path) is None and not is_held(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]


def test_a_look_at_the_lock_refuses_nobody(tmp_path: Path) -> None:
    RunLock(tmp_path).release()
    with open(tmp_path / LOCK) as look:
        fcntl.flock(look, fcntl.LOCK_SH)  # as `is_held` does, and lets go at once
        threading.Timer(0.1, fcntl.flock, (look, fcntl.LOCK_UN)).start()
        RunLock(tmp_path).release()


def test_a_lock_of_another_host_that_fell_silent_is_taken(tmp_path: Path, quick: None) -> None:
    leave(tmp_path, age_s=3600)
    said: list[str] = []
    RunLock(tmp_path, said.append).release()
    assert not said  # there was nothing to wait for
    leave(tmp_path)
    assert is_held(tmp_path)
    RunLock(tmp_path, said.append).release()
    assert len(said) == 1 and "another machine" in said[0]


def test_a_lock_of_another_host_that_gives_signs_is_refused(tmp_path: Path, quick: None) -> None:
    leave(tmp_path)
    with signs(tmp_path), pytest.raises(BadInput, match=r"host elsewhere, process 4711, .* Ray job job-1"):
        RunLock(tmp_path)
    assert json.loads((tmp_path / LOCK).read_text())["host"] == "elsewhere"  # nothing of it was lost


def test_without_locks_of_the_file_system_signs_decide(tmp_path: Path, quick: None, no_flock: None) -> None:
    lock = RunLock(tmp_path)
    assert is_held(tmp_path)
    with pytest.raises(BadInput, match=f"process {os.getpid()}"):
        RunLock(tmp_path)
    lock.release()
    assert not is_held(tmp_path)
    leave(tmp_path, host=socket.gethostname())  # killed a moment ago
    RunLock(tmp_path).release()


@pytest.mark.parametrize("age_s", [0.0, 60.0, -60.0, 3600.0])
def test_who_only_looks_writes_nothing_and_forgives_clocks_that_differ(
    age_s: float, tmp_path: Path, no_flock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(tmp_path, age_s=age_s)
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", None)
    before = tmp_path.stat().st_mtime_ns
    assert is_held(tmp_path, look_only=True) == (age_s < 3600)
    assert tmp_path.stat().st_mtime_ns == before


@pytest.mark.parametrize("gone", [False, True])
def test_who_stood_still_hears_who_took_its_place_and_leaves_it_to_them(
    gone: bool, tmp_path: Path, quick: None, no_flock: None
) -> None:
    lock = RunLock(tmp_path)
    lock.require_held()
    leave(tmp_path)
    if gone:  # it has ended, too
        (tmp_path / LOCK).write_text("")
    left = (tmp_path / LOCK).read_text()
    with pytest.raises(RunTaken, match="it left no name" if gone else "host elsewhere, process 4711"):
        lock.require_held()
    lock._signs.join(60)
    assert not lock._signs.is_alive()  # they would speak for the other
    lock.release()
    assert (tmp_path / LOCK).read_text() == left


def test_of_two_that_write_at_once_one_has_it(
    tmp_path: Path, quick: None, no_flock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not of all modules: threads of other tests sleep, too.
    at_once = SimpleNamespace(sleep=lambda seconds: leave(tmp_path), time=time.time, monotonic=time.monotonic)
    monkeypatch.setattr(run_lock, "time", at_once)
    with pytest.raises(BadInput, match="host elsewhere"):
        RunLock(tmp_path)
