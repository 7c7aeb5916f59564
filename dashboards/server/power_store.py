"""The power of the runs that are looked at: read once, added to as meters write, read finer where one zooms in."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dashboards.server.power import BANDS, Power, on_grid
from energy.ledger.readings import read_sessions
from energy.runs import RunFolder

SECONDS_BYTES = 150_000_000  # of all seconds files of a run: beyond this the overview is by the minute
COARSE_S, SECOND_S, FINEST_S = 60.0, 1.0, 0.1
MOST_VALUES = 12_000_000  # cells times nodes of an overview: beyond this a cell is longer
LATEST_S = 130.0  # of the end of a run that goes on, what is read again: rows of the last minute change their file
LATE_S = 3600.0  # a node that writes so much later than the others is waited for
KEPT_BYTES = 200_000_000  # of all overviews together
REST = 8  # a reading that takes so long is repeated after so many times as long


class PowerStore:
    """The overviews of the runs that were looked at last, kept up to date with what their meters append."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[Path, tuple[Any, Power | None, float]] = OrderedDict()

    def overview(self, folder: RunFolder) -> Power | None:
        """The whole run; None where nothing was metered. Reads what is new since the last look."""
        with self._lock:  # one reading at a time: two would take twice the memory and give the same
            state, kept, again_s = self._kept.get(folder.path, (None, None, 0.0))
            now_state = _state(folder)
            if state is not None and (state == now_state or time.monotonic() < again_s):
                self._kept.move_to_end(folder.path)
                return kept
            began = time.monotonic()
            power = extended(kept, folder) if kept is not None and _grew(state, now_state) else read(folder)
            took_s = time.monotonic() - began
            self._kept[folder.path] = (now_state, power, time.monotonic() + REST * took_s)
            self._kept.move_to_end(folder.path)
            while len(self._kept) > 1 and sum(p.nbytes for _, p, _ in self._kept.values() if p) > KEPT_BYTES:
                self._kept.popitem(last=False)
            return power

    def look(
        self, folder: RunFolder, start: float | None, end: float | None, points: int, bands: int | None = BANDS
    ) -> dict[str, Any] | None:
        """The power between two moments (unix s; None: from the start, to the end) for a chart of `points` points."""
        whole = self.overview(folder)
        if whole is None or not whole.cells:
            return None
        begin = whole.start_unix_s if start is None else max(start, whole.start_unix_s)
        until = whole.end_unix_s if end is None else min(end, whole.end_unix_s)
        shown = whole
        if until > begin and (until - begin) / points < whole.step_s:
            finest = SECOND_S if (until - begin) / points >= SECOND_S else FINEST_S
            if finest < whole.step_s and _size_between(folder, whole, begin, until) < SECONDS_BYTES:
                shown = on_grid(folder, begin, until, finest, True) or whole
        found = shown.cut(begin, until, points, bands)
        if shown is not whole:  # its own energy begins at 0
            found["energy_kwh"] = [
                float(f"{e:.7g}") for e in whole.energy_kwh(np.array(found["edges_unix_s"])).tolist()
            ]
        return found | {"run": [float(whole.start_unix_s), float(whole.end_unix_s)]}


def read(folder: RunFolder) -> Power | None:
    """The overview of a run from its files; None where nothing was metered."""
    fine = _seconds_bytes(folder) <= SECONDS_BYTES
    found = _span(folder)
    if found is None:
        return None
    start, end, settled = found
    longer = math.ceil((end - start) * (len(folder.ledgers()) + 2) / MOST_VALUES)
    return on_grid(folder, start, end, max(SECOND_S if fine else COARSE_S, longer), fine, settled)


def extended(kept: Power, folder: RunFolder) -> Power | None:
    """The overview with what was written since: only its end is read again."""
    fine, step_s = kept.by == "second", kept.step_s
    keep = max(0, int((min(kept.settled_unix_s, kept.end_unix_s) - LATEST_S - kept.start_unix_s) / step_s))
    since = kept.start_unix_s + keep * step_s
    found = {path: read_sessions(path, fine=fine, between=(since - 2 * step_s, math.inf)) for path in folder.ledgers()}
    ends = [max(session.span()[1] for session in sessions) for sessions, _ in found.values() if sessions]
    if not ends:
        return None
    settled = max(min(ends), max(ends) - LATE_S)
    new = on_grid(folder, since, max(ends), step_s, fine, settled, found)
    if new is None or set(new.mean_w) - set(kept.mean_w) or new.cells + keep < kept.cells:
        return read(folder)  # a node that was not there before, or files that were replaced
    nothing = np.full(new.cells, np.nan, np.float32)
    mean_w = {n: np.concatenate([column[:keep], new.mean_w.get(n, nothing)]) for n, column in kept.mean_w.items()}
    low_w = np.concatenate([kept.low_w[:keep], new.low_w])
    high_w = np.concatenate([kept.high_w[:keep], new.high_w])
    unread = np.concatenate([kept.unread[:keep], new.unread])
    notes = list(dict.fromkeys([*kept.notes, *new.notes]))
    devices = max(kept.devices, new.devices)
    return Power(kept.start_unix_s, step_s, mean_w, low_w, high_w, unread, settled, devices, kept.by, notes, max(ends))


def _span(folder: RunFolder) -> tuple[float, float, float] | None:
    """Start and end of all metering, and up to when every node has spoken; None where there is no reading."""
    spans = [found for path in folder.ledgers() if (found := list(_spans(path)))]
    if not spans:
        return None
    start, ends = min(first for found in spans for first, _ in found), [found[-1][1] for found in spans]
    return start, max(ends), max(min(ends), max(ends) - LATE_S)


def _spans(path: Path) -> Iterator[tuple[float, float]]:
    """Start and end of each stretch in a ledger, by its minute rows; of one that goes on, by its newest reading."""
    for session in read_sessions(path, fine=False)[0]:
        start, end = session.span()
        yield start, end
        if not session.ended:
            yield from (each.span() for each in read_sessions(path, between=(end - 1.0, math.inf))[0])


def _seconds_bytes(folder: RunFolder) -> int:
    return sum(size for size, _ in _state(folder).values())


def _size_between(folder: RunFolder, whole: Power, start: float, end: float) -> float:
    """About how many bytes of seconds lie between two moments; all must be read through to find them."""
    size = _seconds_bytes(folder)
    return size * (end - start) / max(1.0, whole.end_unix_s - whole.start_unix_s) + size / 10


def _state(folder: RunFolder) -> dict[str, tuple[int, int]]:
    """{file: (bytes of its seconds, when its newest reading was written)} of each ledger."""
    found = {}
    for path in folder.ledgers():
        stats = [each.stat() for s in (".ledger", ".seconds", ".raw") if (each := path.with_suffix(s)).exists()]
        seconds = path.with_suffix(".seconds")
        found[path.name] = (seconds.stat().st_size if seconds.exists() else 0, max(s.st_mtime_ns for s in stats))
    return found


def _grew(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> bool:
    """Whether the same ledgers were only added to."""
    return before.keys() == after.keys() and all(after[name][0] >= size for name, (size, _) in before.items())
