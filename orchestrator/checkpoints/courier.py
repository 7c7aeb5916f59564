"""Copies of checkpoints as a rank makes them: by a process of its own, which is given up when its storage falls silent.

pyarrow cannot be told to stop: a call to a server that takes a connection and never answers returns after minutes, if
it ever does, and a process with such a call in it does not even end. So all that asks the storage runs in a child,
which says of each piece that it went through. After `SILENT_S` without such a word the child is killed, and what was
asked is refused as if the storage had said so: a training goes on without that copy. For `AGAIN_S` it is then not asked
again, so that a storage that stays silent costs each rank at most a tenth of its time.
"""

import contextlib
import errno
import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from energy.human import human_time

SILENT_S = 60.0  # without a word of a piece, a file or a listing
AGAIN_S = 600.0
_ABOVE = Path(__file__).parents[2]  # the rooms lie in it


class Courier:
    """The copies of one run's checkpoints under `uri`, as `checkpoints.copies.Copies` has them, with a time limit.

    Whatever the storage refuses is an OSError, its silence too, and that it cannot be opened (any more). Only what
    `require_writable` finds is a ValueError. For one thread at a time.
    """

    def __init__(self, uri: str, run_id: str):
        self.uri = uri
        # Not as a file: its folder would come first in the child's path.
        self._command = [sys.executable, "-P", "-m", "orchestrator.checkpoints.courier", uri, run_id]
        self._child: subprocess.Popen[bytes] | None = None
        self._said = b""
        self._silent_since_s: float | None = None

    def require_writable(self) -> None:
        """ValueError where nothing can be written; OSError where the storage is silent."""
        self._ask("require_writable")

    def names(self) -> list[str]:
        """The copied checkpoints, `step-N`, the newest first."""
        return [str(name) for name in self._ask("names")]

    def of_others(self, names: Sequence[str], run_created_unix_s: float) -> list[str]:
        """Of copied checkpoints, those that say that a run created at another time wrote them."""
        return [str(name) for name in self._ask("of_others", list(names), run_created_unix_s)]

    def put(self, checkpoint: Path, names: Iterable[str]) -> None:
        """Copies files of a checkpoint, in this order."""
        self._ask("put", str(checkpoint.absolute()), list(names))

    def fetch(self, name: str, folder: Path, part: int, parts: int, beat: Callable[[], None] = lambda: None) -> None:
        """Copies the files of a checkpoint into `folder`; of `parts` readers, each its own. beat(): with each piece."""
        self._ask("fetch", name, str(folder.absolute()), part, parts, beat=beat)

    def prune(self, newest: int, keep_last: int | None, keep_every_steps: int | None) -> None:
        """Deletes the copies that are not to be kept, now that there is the one of step `newest`."""
        self._ask("prune", newest, keep_last, keep_every_steps)

    def close(self) -> None:
        """Ends the child, at work or not."""
        child, self._child, self._said = self._child, None, b""
        if child is None:
            return
        child.kill()
        for pipe in (child.stdin, child.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):  # what it was asked may still be in it
                pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # one that waits for a network drive cannot end
            child.wait(1.0)

    def _ask(self, what: str, *arguments: Any, beat: Callable[[], None] = lambda: None) -> Any:
        if self._silent_since_s is not None:
            silent_s = time.monotonic() - self._silent_since_s
            if silent_s < AGAIN_S:
                raise OSError(
                    errno.ETIMEDOUT, f"{self.uri} fell silent {human_time(silent_s)} ago and is not asked yet again"
                )
            self._silent_since_s = None
        child = self._running()
        assert child.stdin is not None
        try:
            child.stdin.write(json.dumps([what, *arguments]).encode() + b"\n")
            child.stdin.flush()
            while "beat" in (answer := self._next_word(child)):
                beat()
        except BrokenPipeError:
            self.close()
            raise OSError(f"the process that copies to {self.uri} has ended") from None
        except OSError:
            self.close()
            raise
        if "invalid" in answer:
            raise ValueError(answer["invalid"])
        if "refused" in answer:
            raise OSError(*answer["refused"])
        return answer["did"]

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._child is None:
            path = os.pathsep.join(filter(None, (str(_ABOVE), os.environ.get("PYTHONPATH"))))
            self._child = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | {"PYTHONPATH": path},
            )
        return self._child

    def _next_word(self, child: "subprocess.Popen[bytes]") -> dict[str, Any]:
        assert child.stdout is not None
        until_s = time.monotonic() + SILENT_S
        readable = select.poll()  # `select` refuses the numbers that files have in a process with more than a thousand
        readable.register(child.stdout, select.POLLIN)
        while b"\n" not in self._said:
            left_s = until_s - time.monotonic()
            if left_s <= 0 or not readable.poll(1000 * left_s):
                self._silent_since_s = time.monotonic()
                raise OSError(errno.ETIMEDOUT, f"{self.uri} has not answered for {SILENT_S:g} s and was given up")
            piece = os.read(child.stdout.fileno(), 2**16)
            if not piece:
                raise OSError(f"the process that copies to {self.uri} ended (exit code {child.wait()})")
            self._said += piece
        word, _, self._said = self._said.partition(b"\n")
        told: dict[str, Any] = json.loads(word)
        return told


def _serve(uri: str, run_id: str) -> None:
    """Does what its parent asks, line by line, until that ends: then at once, in the middle of whatever."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # of a whole process group: for the rank, which stops
        signal.signal(number, signal.SIG_IGN)
    say_to, writing = os.dup(1), threading.Lock()
    os.dup2(2, 1)  # what a library prints is no answer

    def say(word: dict[str, Any]) -> None:
        with writing:
            os.write(say_to, json.dumps(word).encode() + b"\n")

    asked: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()

    def work() -> None:
        from orchestrator.checkpoints.copies import Copies

        copies: Copies | None = None
        while True:
            what, *arguments = asked.get()
            try:
                copies = copies or Copies(uri, run_id, beat=lambda: say({"beat": True}))
                paths = [Path(each) if isinstance(each, str) and os.path.isabs(each) else each for each in arguments]
                say({"did": getattr(copies, what)(*paths)})
            except ValueError as error:  # also of a storage that cannot be reached, which some are as they are opened
                say({"invalid": str(error)} if what == "require_writable" else {"refused": [str(error)]})
            except OSError as error:
                say({"refused": [error.errno, error.strerror] if error.strerror else [str(error)]})
            except Exception as error:
                say({"refused": [f"{type(error).__name__}: {error}"]})

    threading.Thread(target=work, daemon=True).start()
    for line in sys.stdin:
        asked.put(json.loads(line))
    os._exit(0)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
