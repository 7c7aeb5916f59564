"""Which rank the others wait for, from what the ranks themselves write about their waits for data.

Steps end together: a collective makes every rank as slow as the slowest, so that step times do not tell who that was.
A rank's wait for its data is its own, and all others spend it waiting for that rank.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from energy.runs import RunFolder
from orchestrator.live.progress import Tail, Unread

LOOK_EVERY_S = 10.0  # of many ranks the files are many
WINDOW_S = 60.0
WORTH_NAMING = 0.02  # of the window: a rank that waits less is not what makes a run slow
MOST = 3


class Stragglers:
    """The ranks of a run that waited longest for data of late."""

    def __init__(self, folder: RunFolder, unread: Unread):
        self._folder, self._unread = folder, unread
        self._tails: dict[int, Tail] = {}
        self._waits: dict[int, deque[tuple[float, float]]] = {}  # by rank: when it was read, in unix s; length in s
        self._looked_unix_s = 0.0
        self.found: list[dict[str, Any]] | None = None  # None: no rank has said anything yet

    def look(self, now: float) -> None:
        if abs(now - self._looked_unix_s) < LOOK_EVERY_S:  # also after the clock was set back
            return
        self._looked_unix_s = now
        try:
            self._read(now)
        except OSError as error:  # what was not read is at the next look
            self._unread(self._folder.metrics_dir, error)
        sums = {rank: sum(length for _, length in waits) for rank, waits in self._waits.items()}
        slow = sorted((rank for rank in sums if sums[rank] > WORTH_NAMING * WINDOW_S), key=lambda rank: -sums[rank])
        if sums:
            self.found = [
                {"rank": rank, "data_wait_s": sums[rank], "window_s": WINDOW_S, "cause": "waits for data"}
                for rank in slow[:MOST]
            ]

    def _read(self, now: float) -> None:
        for path in self._folder.metrics_dir.glob("rank-*.jsonl"):
            rank = int(path.stem.removeprefix("rank-"))
            if rank not in self._tails:
                self._tails[rank] = Tail(path, self._unread)
            waits = self._waits.setdefault(rank, deque())
            for event in self._tails[rank].read():
                if event.get("event") == "phase" and event.get("phase") == "data_wait":
                    waits.append((now, event["end_unix_s"] - event["start_unix_s"]))
            while waits and abs(now - waits[0][0]) > WINDOW_S:
                waits.popleft()
