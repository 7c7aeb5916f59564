"""The runs of a folder for the pages: found by themselves, each read again only when its files changed."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from energy.records.record import FILE_NAME as RECORD
from energy.records.total import FAILED, SUMMED, Entry, overlaps, read_entry, roll_up
from energy.runs import RunFolder

LOOK_EVERY_S = 1.0  # the folder is listed at most so often
REST = 5  # a look that takes so long is repeated after so many times as long
WEEK_S = 7 * 86400.0
PER_PAGE = 500
SORTS: dict[str, tuple[str, Callable[[Entry], Any]]] = {
    "started": ("Started", lambda entry: entry.start_unix_s),
    "name": ("Run", lambda entry: entry.name.casefold()),
    "status": ("Status", lambda entry: entry.status),
    "purpose": ("Purpose", lambda entry: entry.group),
    "tokens": ("Tokens", lambda entry: entry.tokens),
    "loss": ("Loss", lambda entry: entry.loss),
    "energy": ("IT energy", lambda entry: entry.energy_it_kwh),
    "carbon": ("Carbon", lambda entry: entry.carbon_tco2eq),
    "hours": ("GPU-hours", lambda entry: entry.gpu_hours),
}
Stamp = tuple[tuple[int, int, int], ...]


class Live(Protocol):
    """A run as it stands now (`orchestrator.live.state.Live`)."""

    @property
    def folder(self) -> RunFolder: ...
    @property
    def run(self) -> dict[str, Any]: ...
    @property
    def status(self) -> str: ...
    @property
    def document(self) -> dict[str, Any] | None: ...
    @property
    def doubt(self) -> str | None: ...
    @property
    def at_work(self) -> bool: ...
    @property
    def runs(self) -> bool: ...


ReadLive = Callable[[RunFolder], Live]


@dataclass(frozen=True)
class Query:
    """What of the list is asked for: words that must all be in name, status, purpose or note; order; page from 1."""

    words: str = ""
    sort: str = "started"
    descending: bool = True
    page: int = 1

    @classmethod
    def of(cls, arguments: Mapping[str, str]) -> Query:
        """From a URL's arguments; one that is not understood counts as not given."""
        sort = arguments.get("sort", "")
        page = arguments.get("page", "")
        sort = sort if sort in SORTS else "started"
        order = arguments.get("order", "")
        descending = order == "down" if order in ("up", "down") else sort not in ("name", "status", "purpose")
        number = int(page) if page.isascii() and page.isdecimal() and len(page) < 7 else 1
        return cls(arguments.get("q", "")[:200].strip(), sort, descending, max(1, number))

    def select(self, entries: Iterable[Entry]) -> list[Entry]:
        """The entries asked for, in order; those that do not know the key come last either way."""
        words = self.words.casefold().split()
        found = [entry for entry in entries if all(word in _text(entry) for word in words)]
        key = SORTS[self.sort][1]
        known = [entry for entry in found if key(entry) is not None]
        known.sort(key=lambda entry: (key(entry), entry.name), reverse=self.descending)
        return known + [entry for entry in found if key(entry) is None]


def _text(entry: Entry) -> str:
    return f"{entry.name} {entry.status} {entry.group} {entry.purpose} {entry.note}".casefold()


@dataclass
class Listing:
    """What lay in the folder when it was looked at last. `fault`: why the folder itself could not be read."""

    entries: list[Entry] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    fault: str = ""
    version: int = 0


class Catalog:
    """The runs folder. Paths only ever come from listing it, so that no name from outside reaches the disk."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._root = directory.resolve()
        self._lock, self._summing = threading.Lock(), threading.Lock()
        self._listing, self._again_s = Listing(), -math.inf
        self._read: dict[str, tuple[Stamp, Entry]] = {}
        self._total: tuple[int, dict[str, Any]] = (-1, {})

    def listing(self) -> Listing:
        with self._lock:
            began = time.monotonic()
            if began >= self._again_s:
                before = self._listing
                now = self._look()
                same = (now.entries, now.left_out, now.fault) == (before.entries, before.left_out, before.fault)
                now.version = before.version if same else before.version + 1
                self._listing = now
                self._again_s = time.monotonic() + max(LOOK_EVERY_S, REST * (time.monotonic() - began))
            return self._listing

    def find(self, name: str) -> RunFolder | None:
        """The run of that name; None where the folder has none."""
        for entry in self.listing().entries:
            if entry.name == name:
                return RunFolder(entry.path)
        return None

    def why_not(self, name: str) -> str | None:
        """What is wrong with a folder that is listed as left out."""
        return next((text for text in self.listing().left_out if text.startswith(f"{name}: ")), None)

    def total(self) -> dict[str, Any]:
        """What all runs took together (`energy.records.total.roll_up`), each joule once."""
        listing = self.listing()
        with self._summing:
            if self._total[0] != listing.version:
                self._total = (listing.version, _total(listing.entries))
            return self._total[1]

    def _look(self) -> Listing:
        found, kept = Listing(), {}
        try:
            with os.scandir(self.directory) as entries:
                places = sorted((each for each in entries if not each.name.startswith(".")), key=lambda each: each.name)
        except OSError as error:
            found.fault = f"{self.directory}: {error.strerror or error}"
            return found
        for place in places:
            path = self.directory / place.name
            try:
                if not place.is_dir():
                    continue
                if place.is_symlink() and not path.resolve().is_relative_to(self._root):
                    found.left_out.append(f"{path.name}: a link that leads out of the runs folder; copy the run there")
                    continue
                stamp = _stamp(path)
                before = self._read.get(path.name)
                # A run that goes on is read each time: whether it was lost is not in its files.
                fresh = before is None or before[0] != stamp or before[1].status in ("running", "lost")
                entry = _checked(read_entry(path)) if fresh or before is None else before[1]
                kept[path.name] = (stamp, entry)
                found.entries.append(entry)
            except FileNotFoundError:
                found.left_out.append(f"{path.name}: not a run, it has no run.json")
            except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
                text = str(error.strerror if isinstance(error, OSError) and error.strerror else error)
                found.left_out.append(f"{path.name}: cannot be read ({text.removeprefix(f'{path}/')})")
        self._read = kept
        return found


def _total(entries: list[Entry]) -> dict[str, Any]:
    try:
        return roll_up(entries, overlaps(entries))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        total = roll_up(entries)
        what = f"what two runs metered at once is in the total twice: their ledgers cannot be compared ({error})"
        total["missing"].append({"what": what, "runs": []})
        return total


def _checked(entry: Entry) -> Entry:
    """An entry whose figures can be compared and summed: what is no number is not known, and said."""
    wrong = []
    for key in ("start_unix_s", "end_unix_s", "tokens", "loss", *SUMMED):
        value = getattr(entry, key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            wrong.append(key)
            setattr(entry, key, None)
    if wrong:
        text = f"not a number in its files: {', '.join(wrong)}"
        entry.note = f"{entry.note}; {text}" if entry.note else text
    return entry


def week(entries: Iterable[Entry], now: float) -> dict[str, Any]:
    """{runs, known, energy_it_kwh, failed_kwh} of the runs that began in the last seven days.

    known: runs whose energy is in the sum; it is None where that is none of them.
    """
    recent = [entry for entry in entries if entry.start_unix_s is not None and entry.start_unix_s > now - WEEK_S]
    known = [entry for entry in recent if entry.energy_it_kwh is not None]
    failed = [entry for entry in known if entry.status in FAILED]
    return {
        "runs": len(recent),
        "known": len(known),
        "energy_it_kwh": math.fsum(entry.energy_it_kwh or 0.0 for entry in known) if known else None,
        "failed_kwh": math.fsum(entry.energy_it_kwh or 0.0 for entry in failed),
    }


def _stamp(path: Path) -> Stamp:
    """Changes with every replacement of what an entry is read from. FileNotFoundError without a run.json."""
    stamps = []
    for name in ("run.json", RECORD):
        try:
            stat = (path / name).stat()
        except FileNotFoundError:
            if name != RECORD:
                raise
            continue
        stamps.append((stat.st_mtime_ns, stat.st_size, stat.st_ino))
    return tuple(stamps)
