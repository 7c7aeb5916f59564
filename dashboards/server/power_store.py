"""The power of the runs that are looked at: read once, added to as meters write, read finer where one zooms in."""

from __future__ import annotations

import math
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dashboards.server.power import BANDS, Power, on_grid
from dashboards.server.power_sketch import is_sketch, sketch
from energy.ledger.readings import read_sessions
from energy.runs import RunFolder

LARGE_BYTES = 60_000_000  # of a run's ledgers: more takes seconds to read, and is read beside the pages
EXPANDS = 5  # a byte of compressed seconds takes as long as so many of minutes
SHORT_WAIT_S = 0.3
GIVE_WAY_S = 1.0  # a page that shows a sketch asks for more, which reading the whole would slow down
SECONDS_BYTES = 150_000_000  # of all seconds files of a run: beyond this the overview is by the minute
COARSE_S, SECOND_S, FINEST_S = 60.0, 1.0, 0.1
MOST_VALUES = 12_000_000  # cells times nodes of an overview: beyond this a cell is longer
LATEST_S = 130.0  # of the end of a run that goes on, what is read again: rows of the last minute change their file
LATE_S = 3600.0  # a node that writes so much later than the others is waited for
KEPT_BYTES = 200_000_000  # of all overviews together
REST = 8  # a reading that takes so long is repeated after so many times as long


class Size(NamedTuple):
    """A ledger's files: how large, and when the newest reading was written."""

    seconds_bytes: int
    ledger_bytes: int
    newest_ns: int


class PowerStore:
    """The overviews of the runs that were looked at last, kept up to date with what their meters append.

    A large run is read by a thread of its own, so that nobody waits: until then its sketch is shown, or what was known.
    """

    def __init__(self) -> None:
        self._lock, self._reading = threading.Lock(), threading.Lock()
        self._kept: OrderedDict[Path, tuple[Any, Power | None, float]] = OrderedDict()
        self._threads: dict[Path, threading.Thread] = {}

    def overview(self, folder: RunFolder) -> Power | None:
        """The whole run; None where nothing was metered. Reads what is new since the last look."""
        path = folder.path
        with self._lock:  # one reading at a time: two would take twice the memory and give the same
            before, kept, again_s = self._kept.get(path, (None, None, 0.0))
            state = _state(folder)
            if before is not None and (before == state or time.monotonic() < again_s):
                self._kept.move_to_end(path)
                return kept
            if _effort_bytes(state) <= LARGE_BYTES:
                began = time.monotonic()
                power = _newer(folder, before, kept, state)
                self._keep(path, state, power, began)
                return power
            if path not in self._kept:
                kept = sketch(folder)
                self._kept[path] = (None, kept, 0.0)
            thread = self._threads.get(path)
            if thread is None:
                thread = threading.Thread(target=self._read_beside, args=(folder, before, kept), daemon=True)
                self._threads[path] = thread
                thread.start()
        if not is_sketch(kept):
            thread.join(SHORT_WAIT_S)  # of a run that goes on only the end is read, which is soon there
            kept = self._kept.get(path, (None, kept, 0.0))[1]
        return kept

    def _read_beside(self, folder: RunFolder, before: Any, kept: Power | None) -> None:
        if before is None:
            time.sleep(GIVE_WAY_S)
        with self._reading:
            began = time.monotonic()
            try:
                state = _state(folder)
                power = _newer(folder, before, kept, state)
            except Exception as error:  # nobody waits for this thread: it says so on the page and in the terminal
                traceback.print_exc()
                state = _state(folder)
                notes = [f"its ledgers cannot be read whole: {type(error).__name__}: {error}"]
                power = None if kept is None else replace(kept, notes=notes)
            with self._lock:
                self._keep(folder.path, state, power, began)
                del self._threads[folder.path]

    def _keep(self, path: Path, state: Any, power: Power | None, began: float) -> None:
        self._kept[path] = (state, power, time.monotonic() + REST * (time.monotonic() - began))
        self._kept.move_to_end(path)
        while len(self._kept) > 1 and sum(p.nbytes for _, p, _ in self._kept.values() if p) > KEPT_BYTES:
            self._kept.popitem(last=False)

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
        if until > begin and (until - begin) / points < whole.step_s and not is_sketch(whole):
            finest = SECOND_S if (until - begin) / points >= SECOND_S else FINEST_S
            if finest < whole.step_s and _size_between(folder, whole, begin, until) < SECONDS_BYTES:
                shown = on_grid(folder, begin, until, finest, True) or whole
        found = shown.cut(begin, until, points, bands)
        if shown is not whole:  # its own energy begins at 0
            found["energy_kwh"] = [
                float(f"{e:.7g}") for e in whole.energy_kwh(np.array(found["edges_unix_s"])).tolist()
            ]
        return found | {"run": [float(whole.start_unix_s), float(whole.end_unix_s)]}


def _newer(folder: RunFolder, before: Any, kept: Power | None, state: dict[str, Size]) -> Power | None:
    """The overview now: `kept` with what was added since `before`, or read from the beginning."""
    grew = kept is not None and before is not None and not is_sketch(kept) and _grew(before, state)
    return extended(kept, folder) if grew and kept is not None else read(folder)


def read(folder: RunFolder) -> Power | None:
    """The overview of a run from its files; None where nothing was metered."""
    # Where seconds were not kept, or are too many, the minutes know the extremes within them.
    kept = any(path.with_suffix(finer).exists() for path in folder.ledgers() for finer in (".seconds", ".raw"))
    fine = kept and _seconds_bytes(folder) <= SECONDS_BYTES
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
    return sum(size.seconds_bytes for size in _state(folder).values())


def _effort_bytes(state: dict[str, Size]) -> int:
    """What reading the whole run takes: seconds are compressed, and too many of them are not read."""
    fine = sum(size.seconds_bytes for size in state.values())
    return sum(size.ledger_bytes for size in state.values()) + EXPANDS * (fine if fine <= SECONDS_BYTES else 0)


def _size_between(folder: RunFolder, whole: Power, start: float, end: float) -> float:
    """About how many bytes of seconds lie between two moments, and what must be read through to find them."""
    state = _state(folder).values()
    size = sum(each.seconds_bytes for each in state)
    passed = size / 10 + sum(each.ledger_bytes for each in state) / EXPANDS
    return size * (end - start) / max(1.0, whole.end_unix_s - whole.start_unix_s) + passed


def _state(folder: RunFolder) -> dict[str, Size]:
    found = {}
    for path in folder.ledgers():
        stats = {s: each.stat() for s in (".ledger", ".seconds", ".raw") if (each := path.with_suffix(s)).exists()}
        size = {suffix: stat.st_size for suffix, stat in stats.items()}
        newest_ns = max((stat.st_mtime_ns for stat in stats.values()), default=0)
        found[path.name] = Size(size.get(".seconds", 0), size.get(".ledger", 0), newest_ns)
    return found


def _grew(before: dict[str, Size], after: dict[str, Size]) -> bool:
    """Whether the same ledgers were only added to."""
    return before.keys() == after.keys() and all(
        after[name].seconds_bytes >= size.seconds_bytes for name, size in before.items()
    )
