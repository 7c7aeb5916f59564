"""The power of the runs that are looked at: read once, added to as meters write, read finer where one zooms in.

A ledger is only ever added to, and its part between two moments is found without reading the rest
(`energy.ledger.seek`). So the end of a run that goes on, and what one zooms to, cost as much as they are long, however
long the run is.
"""

from __future__ import annotations

import math
import os
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dashboards.server.power import BANDS, Power, listed
from dashboards.server.power_read import LATE_S, Pause, on_grid
from dashboards.server.power_sketch import is_sketch, sample, sketch
from energy.ledger.frames import SECONDS
from energy.ledger.readings import read_sessions
from energy.ledger.seek import Told, part_size
from energy.runs import RunFolder

LARGE_BYTES = 60_000_000  # of a run's ledgers: more takes seconds to read, and is read beside the pages
MANY_LEDGERS = 32  # of these a run's end takes a quarter of a second to read, and of more it is read beside the pages
SOME_LEDGERS = 16
LONG_BYTES = 1_000_000  # of a ledger: from here on where its stretches are is looked for, and not read
SPAN_LOOKS = 60  # places in it
EXPANDS = 5  # a byte of compressed seconds takes as long as so many of minutes
SHORT_WAIT_S = 0.3
GIVE_WAY_S = 1.0  # a page that shows a sketch asks for more, which reading the whole would slow down
SECONDS_BYTES = 150_000_000  # of all seconds files of a run: beyond this the overview is by the minute
LOOK_BYTES = 15_000_000  # of the seconds files between two moments: they take some three seconds to read
FEW_POINTS = 8  # of a sketch that is for energy alone
COARSE_S, SECOND_S, FINEST_S = 60.0, 1.0, 0.1
MOST_VALUES = 12_000_000  # cells times nodes of an overview: beyond this a cell is longer
LATEST_S = 130.0  # of the end of a run that goes on, what is read again: rows of the last minute change their file
AHEAD_S = 300.0  # how much newer than it must be the end of a run that goes on may be
BEHIND_S = 2.0  # what a page has that is older than this says so
KEPT_ZOOMS = 4
KEPT_BYTES = 200_000_000  # of all overviews together
REST, REST_OF_END = 8, 1  # a reading that takes so long is repeated after so many times as long


class Size(NamedTuple):
    """A ledger's files: how large, and when the newest reading was written."""

    seconds_bytes: int
    ledger_bytes: int
    newest_ns: int


State = dict[str, Size]


@dataclass
class Kept:
    """What is known of a run: its power as its files were (`state`) at `looked_s`; not read again before `again_s`.

    state: None before it was read whole, {} where that failed. fault: why what is new could not be read.
    """

    power: Power | None = None
    state: State | None = None
    looked_s: float = -math.inf
    again_s: float = 0.0
    told: dict[Path, Told] = field(default_factory=dict)
    fault: str = ""


class PowerStore:
    """The overviews of the runs that were looked at last, kept up to date with what their meters append.

    A large run is read by a thread of its own, so that nobody waits: until then its sketch is shown, or what was known.
    """

    def __init__(self) -> None:
        self._lock, self._reading = threading.Lock(), threading.Lock()
        self._kept: OrderedDict[Path, Kept] = OrderedDict()
        self._threads: dict[Path, threading.Thread] = {}
        self._zooming = threading.Lock()
        self._zoomed: OrderedDict[tuple[Path, float, float, float], Power] = OrderedDict()

    def overview(self, folder: RunFolder) -> Power | None:
        """The whole run; None where nothing was metered. Reads what is new since the last look."""
        return self._look(folder)[0].power

    def energies(self, folder: RunFolder) -> tuple[Power | None, bool]:
        """(the power of a run for its energy over time, whether it is of all rows): of a large run that nobody looks at
        a sketch, and it is not read for this."""
        if self.is_soon_whole(folder):
            return self.overview(folder), True
        kept = self._kept.get(folder.path)
        known_so_far = None if kept is None else kept.power
        return known_so_far or sketch(folder, FEW_POINTS), False

    def is_soon_whole(self, folder: RunFolder) -> bool:
        """Whether all rows of a run are known, or so few that one waits for them."""
        with self._lock:
            kept, state = self._kept.get(folder.path), _state(folder)
            is_read = kept is not None and kept.state is not None and not is_sketch(kept.power)
            return is_read or _is_soon_read(kept, state)

    def _look(self, folder: RunFolder) -> tuple[Kept, float]:
        """(what is known of the run, for how long it is not that of its files)."""
        path = folder.path
        with self._lock:  # one reading at a time: two would take twice the memory and give the same
            kept, state = self._kept.get(path), _state(folder)
            now = time.monotonic()
            if kept is not None and kept.state is not None and (kept.state == state or now < kept.again_s):
                self._kept.move_to_end(path)
                return kept, 0.0 if not kept.state or kept.state == state else now - kept.looked_s
            if _is_soon_read(kept, state):
                return self._keep(path, _read_on(folder, kept, state)), 0.0
            if kept is None:
                kept = self._kept[path] = _sketched(folder)
            thread = self._threads.get(path)
            if thread is None:
                thread = threading.Thread(target=self._read_beside, args=(folder, kept), daemon=True)
                self._threads[path] = thread
                thread.start()
        if not is_sketch(kept.power):
            thread.join(SHORT_WAIT_S)  # of a run that goes on only the end is read, which is soon there
            kept = self._kept.get(path, kept)
        return kept, 0.0 if not kept.state or kept.looked_s >= now else time.monotonic() - kept.looked_s

    def _read_beside(self, folder: RunFolder, kept: Kept) -> None:
        found, began = kept, time.monotonic()
        try:
            if not kept.state:
                time.sleep(GIVE_WAY_S)
            with nullcontext() if kept.state else self._reading:  # the end of a run that goes on is a short one
                began = time.monotonic()
                found = _read_on(folder, kept, _state(folder), self._give_way)
        except Exception as error:  # nobody waits for this thread: it says so on the page and in the terminal
            traceback.print_exc()
            fault = f"its ledgers cannot be read whole: {type(error).__name__}: {error}"
            again_s = time.monotonic() + REST * max(1.0, time.monotonic() - began)
            found = replace(kept, state=kept.state or {}, again_s=again_s, fault=fault)
        finally:
            with self._lock:
                self._keep(folder.path, found)
                del self._threads[folder.path]

    def _give_way(self) -> None:
        """Waits while somebody looks closer at a run: reading a large one whole would slow that down."""
        with self._zooming:
            pass

    def _keep(self, path: Path, found: Kept) -> Kept:
        self._kept[path] = found
        self._kept.move_to_end(path)
        while len(self._kept) > 1 and sum(kept.power.nbytes for kept in self._kept.values() if kept.power) > KEPT_BYTES:
            self._kept.popitem(last=False)
        return found

    def look(
        self, folder: RunFolder, start: float | None, end: float | None, points: int, bands: int | None = BANDS
    ) -> dict[str, Any] | None:
        """The power between two moments (unix s; None: from the start, to the end) for a chart of `points` points."""
        kept, behind_s = self._look(folder)
        whole = kept.power
        if whole is None or not whole.cells:
            return None
        begin = whole.start_unix_s if start is None else max(start, whole.start_unix_s)
        until = whole.end_unix_s if end is None else min(end, whole.end_unix_s)
        shown, remarks = whole, []
        finest = SECOND_S if (until - begin) / points >= SECOND_S else FINEST_S
        zoomed = not is_sketch(whole) or start is not None or end is not None
        if zoomed and until > begin and (until - begin) / points < whole.step_s and finest < whole.step_s:
            shown, remark = self._near(folder, kept, begin, until, finest)
            remarks += [remark] if remark else []
        found = shown.cut(begin, until, points, bands)
        if shown is not whole:  # its own energy begins at 0
            found["energy_kwh"] = listed(whole.energy_kwh(np.array(found["edges_unix_s"])), 7)
        behind_s = max(behind_s, kept.again_s - kept.looked_s) if behind_s else 0.0  # so that it does not flicker
        if behind_s > BEHIND_S and not kept.fault and not is_sketch(whole):
            count = len(folder.ledgers())
            whose = "the ledger of its node takes" if count == 1 else f"the ledgers of {count} nodes take"
            remarks.append(f"the curve ends up to {math.ceil(behind_s)} s before now: {whose} so long to look through")
        if kept.fault:  # a sketch says that all is being read
            found["notes"] = [kept.fault, *([] if is_sketch(whole) else found["notes"])]
        run = [float(whole.start_unix_s), float(whole.end_unix_s)]
        return found | {"run": run, "behind_s": round(behind_s, 1), "remarks": remarks}

    def _near(self, folder: RunFolder, kept: Kept, begin: float, until: float, step_s: float) -> tuple[Power, str]:
        """(the power between two moments in cells; what is known where that would take too long, and why)."""
        assert kept.power is not None
        key = (folder.path, begin, until, step_s)
        with self._zooming:  # one at a time, as above
            if key in self._zoomed:
                self._zoomed.move_to_end(key)
                return self._zoomed[key], ""
            size = _bytes_between(folder, begin, until)
            if size > LOOK_BYTES:
                near_s = (until - begin) * LOOK_BYTES / size
                why = (
                    f"shown by the minute: the seconds of this time are {size / 1e6:,.0f} MB; zoom in to "
                    f"{_in_words(near_s)} or less, and they are read"
                )
                return kept.power, "" if is_sketch(kept.power) else why
            near = on_grid(
                folder, begin, until, step_s, rows=True, by="second", told=kept.told, settled=0.0,
                believed=kept.power.believed,
            )  # fmt: skip
            if near is not None and not is_sketch(kept.power) and until < kept.power.settled_unix_s - LATEST_S:
                self._zoomed[key] = near  # it stays as it is, and a page that shows it asks again and again
                while len(self._zoomed) > KEPT_ZOOMS:
                    self._zoomed.popitem(last=False)
            return near or kept.power, ""


def _is_soon_read(kept: Kept | None, state: State) -> bool:
    """Whether what is not known so far is little enough to wait for."""
    if kept is not None and kept.state is not None and not is_sketch(kept.power) and _grew(kept.state, state):
        return len(state) <= MANY_LEDGERS
    return _effort_bytes(state) <= LARGE_BYTES


def _read_on(folder: RunFolder, kept: Kept | None, state: State, pause: Pause | None = None) -> Kept:
    """The overview now: what is kept with what was added since, or read from the beginning."""
    began = time.monotonic()
    before = None if kept is None or kept.state is None or is_sketch(kept.power) else kept
    power: Power | None = None
    rest, told = REST_OF_END, {} if before is None else before.told
    if before is not None and before.power is not None and before.state is not None and _grew(before.state, state):
        power = extended(before.power, folder, before.told, began - before.looked_s)
    if power is None:
        rest, told = 0 if before is None else REST, {path: Told() for path in folder.ledgers()}
        power = read(folder, told, pause)
    took_s = time.monotonic() - began
    return Kept(power, state, began, time.monotonic() + rest * took_s, told)


def read(folder: RunFolder, told: dict[Path, Told] | None = None, pause: Pause | None = None) -> Power | None:
    """The overview of a run from its files; None where nothing was metered. told: filled, by ledger. pause: called
    between two ledgers."""
    # Where seconds were not kept, or are too many, the minutes know the extremes within them.
    kept = any(path.with_suffix(finer).exists() for path in folder.ledgers() for finer in (".seconds", ".raw"))
    fine = kept and sum(size.seconds_bytes for size in _state(folder).values()) <= SECONDS_BYTES
    found = _span(folder)
    if found is None:
        return None
    start, end, settled = found
    longer = math.ceil((end - start) * (len(folder.ledgers()) + 2) / MOST_VALUES)
    step_s, by = max(SECOND_S if fine else COARSE_S, longer), "second" if fine else "minute"
    told = {path: Told() for path in folder.ledgers()} if told is None else told
    power = on_grid(folder, start, end, step_s, rows=fine, by=by, told=told, settled=settled, pause=pause)
    if power is None or fine or not kept:
        return power
    return extended(power, folder, told, 0.0) or power  # its newest minute is not written before it is over


def extended(kept: Power, folder: RunFolder, told: dict[Path, Told], passed_s: float) -> Power | None:
    """The overview with what was written in the seconds since: only its end is read. None where that does not fit, and
    where it was decided by less than half of the run so far whether sensors of whole nodes are believed."""
    if kept.believed and kept.end_unix_s - kept.start_unix_s > 2 * kept.believed_s:
        return None
    step_s = kept.step_s
    keep = max(0, int((min(kept.settled_unix_s, kept.end_unix_s) - LATEST_S - kept.start_unix_s) / step_s))
    since = kept.start_unix_s + keep * step_s
    upto = kept.end_unix_s + passed_s + AHEAD_S
    new = on_grid(folder, since, upto, step_s, rows=True, by=kept.by, told=told, believed=kept.believed)
    if new is None or set(new.mean_w) - set(kept.mean_w) or new.cells + keep < kept.cells or new.end_unix_s >= upto:
        return None  # a node that was not there before, files that were replaced, a clock that was set
    nothing = np.full(new.cells, np.nan, np.float32)

    def longer(before: Any, more: Any) -> Any:
        return np.concatenate([before[:keep], more])

    return Power(
        kept.start_unix_s,
        step_s,
        {node: longer(column, new.mean_w.get(node, nothing)) for node, column in kept.mean_w.items()},
        longer(kept.low_w, new.low_w),
        longer(kept.high_w, new.high_w),
        longer(kept.unread, new.unread),
        new.settled_unix_s,
        max(kept.devices, new.devices),
        kept.by,
        list(dict.fromkeys([*kept.notes, *new.notes])),
        new.end_unix_s,
        longer(kept.modelled_w, new.modelled_w),
        {**new.believed, **kept.believed},
        kept.believed_s,
        longer(kept.total_w(), new.total_w()),
    )


def _sketched(folder: RunFolder) -> Kept:
    """What a few rows tell of a run, and of its stretches, before its ledgers were read."""
    told: dict[Path, Told] = {}
    return Kept(sketch(folder, told=told), told=told)


def _span(folder: RunFolder) -> tuple[float, float, float] | None:
    """Start and end of all metering, and up to when every node has spoken; None where there is no reading."""
    spans = [found for path in folder.ledgers() if (found := list(_spans(path)))]
    if not spans:
        return None
    start, ends = min(first for found in spans for first, _ in found), [found[-1][1] for found in spans]
    return start, max(ends), max(min(ends), max(ends) - LATE_S)


def _spans(path: Path) -> Iterator[tuple[float, float]]:
    """Start and end of each stretch in a ledger, by its minute rows; of one that goes on, by its newest reading."""
    long = path.stat().st_size > LONG_BYTES
    for session in sample(path, SPAN_LOOKS) if long else read_sessions(path, fine=False)[0]:
        start, end = session.span()
        yield start, end
        if not session.ended:
            yield from (each.span() for each in read_sessions(path, between=(end - 1.0, math.inf))[0])


def _effort_bytes(state: State) -> int:
    """What reading the whole run takes: seconds are compressed, and too many of them are not read."""
    fine = sum(size.seconds_bytes for size in state.values())
    return sum(size.ledger_bytes for size in state.values()) + EXPANDS * (fine if fine <= SECONDS_BYTES else 0)


def _bytes_between(folder: RunFolder, start: float, end: float) -> float:
    """About how large the seconds files are between two moments: of many, by some of them."""
    ledgers = folder.ledgers()
    some = ledgers[:: max(1, len(ledgers) // SOME_LEDGERS)]
    sizes = [part_size(path.with_suffix(".seconds"), SECONDS, (start, end)) for path in some]
    return sum(sizes) * len(ledgers) / max(1, len(some))


def _in_words(seconds: float) -> str:
    return f"{seconds / 3600:.0f} h" if seconds >= 7200 else f"{max(1.0, seconds / 60):.0f} min"


def _state(folder: RunFolder) -> State:
    """One look at the folder, and one at each file: a run of hundreds of nodes has a thousand of them."""
    sizes: dict[str, dict[str, int]] = {}
    newest_ns: dict[str, int] = {}
    with suppress(FileNotFoundError), os.scandir(folder.energy_dir) as files:
        for file in files:
            node, suffix = os.path.splitext(file.name)
            if suffix not in (".ledger", ".seconds", ".raw"):
                continue
            with suppress(FileNotFoundError):  # it was taken away in this moment
                stat = file.stat()
                sizes.setdefault(node, {})[suffix] = stat.st_size
                newest_ns[node] = max(newest_ns.get(node, 0), stat.st_mtime_ns)
    return {
        f"{node}.ledger": Size(size.get(".seconds", 0), size[".ledger"], newest_ns[node])
        for node, size in sorted(sizes.items())
        if ".ledger" in size
    }


def _grew(before: State, after: State) -> bool:
    """Whether the same ledgers were only added to."""
    return before.keys() == after.keys() and all(
        after[name].seconds_bytes >= size.seconds_bytes and after[name].ledger_bytes >= size.ledger_bytes
        for name, size in before.items()
    )
