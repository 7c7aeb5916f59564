"""Whether the head of the Ray cluster is still there: without it Ray ends every process that knows it, the driver too.

It does so a minute after the head is gone, without a word and with all calls to Ray waiting until then. So a thread of
the driver asks for itself, and has the run end in order while there is time: the ranks need no head for a checkpoint.
A head that was started anew without Redis is another cluster's: Ray ends the driver within a second of its first
answer, which leaves no time for that.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable

from energy.runs import STOP_FILE, RunFolder
from orchestrator.live.running import last_event

ASK_EVERY_S = 2.0
ANSWER_S = 2.0
GONE_S = 30.0  # a head may come back meanwhile; what is left of the minute is for a checkpoint and the report
CHECKPOINT_S = 10.0
BEGUN_CHECKPOINT_S = 20.0  # for one that is being written: the report can be had later
LOOK_S = 0.25


class HeadWatch:
    """Asks the head at host:port until `close`. gone(said): called on a thread when it has been silent for GONE_S, to
    end the process; `close` does not return while it is at that."""

    def __init__(self, address: str, gone: Callable[[str], None]):
        host, _, port = address.rpartition(":")
        self._place, self._address, self._gone = (host.strip("[]"), int(port)), address, gone
        self._closed, self._ending = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="head-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the asking; waits where the run is just being ended."""
        self._closed.set()
        with self._ending:
            pass

    def _watch(self) -> None:
        seen_s = time.monotonic()
        while not self._closed.wait(ASK_EVERY_S):
            if self._answers():
                seen_s = time.monotonic()
            elif time.monotonic() - seen_s > GONE_S:
                with self._ending:
                    if not self._closed.is_set():
                        self._gone(f"the head of the Ray cluster ({self._address}) is gone: no answer for {GONE_S:g} s")
                return

    def _answers(self) -> bool:
        try:
            socket.create_connection(self._place, timeout=ANSWER_S).close()
        except OSError:
            return False
        return True


def let_ranks_end(folder: RunFolder) -> None:
    """Asks the ranks for a checkpoint and their end, and waits for it, but not for long: some may be gone, and Ray ends
    the others with the minute."""
    with contextlib.suppress(OSError):  # a full disk: then what was saved before stands
        (folder.path / STOP_FILE).touch()
    began_s = time.monotonic()
    while (waited_s := time.monotonic() - began_s) < BEGUN_CHECKPOINT_S:
        if waited_s > CHECKPOINT_S and not any((folder.path / "checkpoints").glob(".step-*.partial")):
            return
        time.sleep(LOOK_S)
        last = last_event(folder)
        if last is None or (last.get("event"), last.get("phase")) == ("phase", "checkpoint"):  # what comes last of all
            return
