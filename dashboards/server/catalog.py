"""The runs of a folder for the pages: found by themselves, each read again only when its files changed.

Thousands of runs take seconds to read, and on a shared file system minutes. They are read beside the pages, the folders
that were changed last first, and a page that cannot wait shows those that were read and how many are left.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from dashboards.server.preflight import is_number
from energy.records.record import FILE_NAME as RECORD
from energy.records.total import BROKEN, FAILED, SUMMED, Entry, Together, read_entry, roll_up
from energy.run_holder import is_held
from energy.runs import RunFolder

LOOK_EVERY_S = 1.0  # the folder is listed at most so often
WAIT_S = 0.5  # for a look that goes on; then what it found so far is shown
TOLD_EVERY_S = 0.25  # how often that is
ORDER_S = 0.2  # what may be spent on finding out which folders were changed last
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
    """What lay in the folder when it was looked at last. `fault`: why the folder itself could not be read.

    unread: names of folders that were not read so far; None before the folder was listed.
    """

    entries: list[Entry] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    fault: str = ""
    version: int = 0
    unread: frozenset[str] | None = frozenset()

    @property
    def is_whole(self) -> bool:
        return self.unread is not None and not self.unread


class FolderFault(Exception):
    """Why the runs folder itself cannot be read: nothing is known of its runs, which is not that there are none."""


class Catalog:
    """The runs folder. Paths only ever come from listing it, so that no name from outside reaches the disk."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._root = directory.resolve()
        self._lock, self._summing = threading.Lock(), threading.Lock()
        self._listing, self._again_s = Listing(unread=None), -math.inf
        self._looking: threading.Thread | None = None
        self._read: dict[str, tuple[Stamp, Entry]] = {}
        self._found: dict[str, Entry | str] = {}  # by the last look: runs, and why others are left out
        self._total: tuple[int, dict[str, Any]] = (-1, {})
        self._together = Together()
        self._adding: threading.Thread | None = None

    def listing(self, whole: bool = False) -> Listing:
        """What is known of the folder now. whole: waits until every run of it was read."""
        with self._lock:
            if self._looking is None and time.monotonic() >= self._again_s:
                self._looking = threading.Thread(target=self._look, name="catalog", daemon=True)
                self._looking.start()
            looking = self._looking
        if looking is not None:
            looking.join(None if whole else WAIT_S)
        if whole and not self._listing.is_whole:
            raise RuntimeError(f"{self.directory}: a look at the folder failed; what went wrong is above")
        return self._listing

    def readable(self, whole: bool = False) -> Listing:
        """As `listing`, of a folder that can be read; FolderFault for one that cannot."""
        listing = self.listing(whole)
        if listing.fault:
            raise FolderFault(listing.fault)
        return listing

    def find(self, name: str) -> RunFolder | None:
        """The run of that name; None where the folder has none. FolderFault where it cannot be read."""
        listing = self.readable()
        while listing.unread is None:
            listing = self.readable()
        if name in listing.unread:  # it is asked for before its turn
            found = self._taken(name)
            return RunFolder(found.path) if isinstance(found, Entry) else None
        return next((RunFolder(entry.path) for entry in listing.entries if entry.name == name), None)

    def why_not(self, name: str) -> str | None:
        """What is wrong with a folder that is listed as left out."""
        listing = self.listing()
        if listing.unread and name in listing.unread:
            found = self._taken(name)
            return found if isinstance(found, str) and found else None
        return next((text for text in listing.left_out if text.startswith(f"{name}: ")), None)

    def total(self) -> dict[str, Any]:
        """What all runs took together (`energy.records.total.roll_up`), each joule once. FolderFault where the folder
        cannot be read."""
        listing = self.readable(whole=True)
        with self._summing:
            if self._total[0] != listing.version:
                self._total = (listing.version, _total(listing.entries, self._together))
            return self._total[1]

    def total_so_far(self, listing: Listing) -> tuple[dict[str, Any], tuple[int, int] | None]:
        """(the total of the runs that were read, how many runs of how many were looked at for what two of them metered
        at once), without a wait. The second is None where that is known; until then it is in the total twice."""
        with self._lock:
            known = self._total
            if known[0] != listing.version and listing.is_whole and self._adding is None:
                self._adding = threading.Thread(target=self._add_up, name="total", daemon=True)
                self._adding.start()
            adding = self._adding
        if adding is not None and listing.is_whole:
            adding.join(WAIT_S)
            known = self._total
        if known[0] == listing.version:
            return known[1], None
        return roll_up(listing.entries), (self._together.looked, self._together.of)

    def _add_up(self) -> None:
        try:
            with suppress(FolderFault):  # whoever asks next is told
                self.total()
        finally:
            with self._lock:
                self._adding = None

    def _look(self) -> None:
        """One look at the folder, in a thread of its own: `_listing` is replaced by what it finds, also on the way."""
        began, read_s = time.monotonic(), 0.0
        try:
            read_s = self._look_through(self._names(began + ORDER_S))
        except OSError as error:
            self._tell({}, f"{self.directory}: {error.strerror or error}")
        finally:
            with self._lock:
                took_s = time.monotonic() - began - read_s
                self._again_s = time.monotonic() + max(LOOK_EVERY_S, REST * took_s)
                self._looking = None

    def _look_through(self, names: list[str]) -> float:
        """Takes every folder; returns the seconds that went into those that were not known, which are read once."""
        found: dict[str, Entry | str] = {}
        before = self._found
        read_s, told_s = 0.0, -math.inf if self._listing.unread is None else time.monotonic()
        for place, name in enumerate(names):
            began = time.monotonic()
            if began - told_s > TOLD_EVERY_S:
                told_s = began
                rest = names[place:]
                unread = frozenset(each for each in rest if each not in before)
                self._tell(found | {each: before[each] for each in rest if each in before}, unread=unread)
            found[name] = self._taken(name)
            read_s += 0.0 if name in before else time.monotonic() - began
        self._tell(found)
        self._found = found
        for gone in self._read.keys() - found.keys():
            del self._read[gone]
        return read_s

    def _names(self, until_s: float) -> list[str]:
        """The folders, those that were changed last first as far as there is time to ask: they are looked for most."""
        changed: dict[str, float] = {}
        with os.scandir(self.directory) as places:
            for place in places:
                if not place.name.startswith("."):
                    changed[place.name] = 0.0
                    if time.monotonic() < until_s:
                        with suppress(OSError):  # it is gone, or not for us to see: said when it is read
                            changed[place.name] = place.stat().st_mtime
        return sorted(changed, key=lambda name: (-changed[name], name))

    def _tell(self, found: dict[str, Entry | str], fault: str = "", unread: frozenset[str] = frozenset()) -> None:
        before = self._listing
        entries = [each for _, each in sorted(found.items()) if isinstance(each, Entry)]
        left_out = [each for _, each in sorted(found.items()) if isinstance(each, str) and each]
        same = (left_out, fault, unread) == (before.left_out, before.fault, before.unread)
        same = same and len(entries) == len(before.entries)
        same = same and all(a is b or a == b for a, b in zip(entries, before.entries, strict=True))
        self._listing = Listing(entries, left_out, fault, before.version + (not same), unread)

    def _taken(self, name: str) -> Entry | str:
        """The run of that folder, or why it is left out; "" for what is no folder."""
        path = self.directory / name
        try:
            if not path.is_dir():
                return ""
            if path.is_symlink() and not path.resolve().is_relative_to(self._root):
                return f"{name}: a link that leads out of the runs folder; copy the run there"
            stamp, before = _stamp(path), self._read.get(name)
            if before is not None and before[0] == stamp and _as_it_was(before[1]):
                return before[1]
            entry = _checked(read_entry(path))
            self._read[name] = (stamp, entry)
            return entry
        except FileNotFoundError:
            return f"{name}: not a run, it has no run.json"
        except (OSError, *BROKEN) as error:
            text = str(error.strerror if isinstance(error, OSError) and error.strerror else error)
            return f"{name}: cannot be read ({text.removeprefix(f'{path}/')})"


def _as_it_was(entry: Entry) -> bool:
    """Whether a run whose files did not change is in the same state: whether it was lost is not in its files."""
    if entry.status not in ("running", "lost"):
        return True
    return is_held(entry.path, look_only=True) == (entry.status == "running")


def _total(entries: list[Entry], together: Together) -> dict[str, Any]:
    try:
        return roll_up(entries, together.overlaps(entries))
    except (OSError, *BROKEN) as error:
        total = roll_up(entries)
        what = f"what two runs metered at once is in the total twice: their ledgers cannot be compared ({error})"
        total["missing"].append({"what": what, "runs": []})
        return total


def _checked(entry: Entry) -> Entry:
    """An entry whose figures can be compared and summed: what is no number is not known, and said."""
    wrong = []
    for key in ("start_unix_s", "end_unix_s", "tokens", "loss", *SUMMED):
        value = getattr(entry, key)
        if value is not None and not is_number(value):
            wrong.append(key)
            setattr(entry, key, None)
    odd = [key for key, share in entry.shares.items() if share is not None and not is_number(share)]
    if odd:
        wrong += odd
        entry.shares = {key: None if key in odd else share for key, share in entry.shares.items()}
    if wrong:
        text = f"not a number in its files: {', '.join(wrong)}"
        entry.note = f"{entry.note}; {text}" if entry.note else text
    return entry


def week(entries: Iterable[Entry], now: float) -> dict[str, Any]:
    """{runs, known, energy_it_kwh, failed_kwh, shared} of the runs that began in the last seven days.

    known: runs whose energy is in the sum; it is None where that is none of them. shared: whether two of these metered
    a device at the same time by their records, so that its energy may be in the sum twice.
    """
    recent = [entry for entry in entries if entry.start_unix_s is not None and entry.start_unix_s > now - WEEK_S]
    known = [entry for entry in recent if entry.energy_it_kwh is not None]
    failed = [entry for entry in known if entry.status in FAILED]
    return {
        "runs": len(recent),
        "known": len(known),
        "energy_it_kwh": math.fsum(entry.energy_it_kwh or 0.0 for entry in known) if known else None,
        "failed_kwh": math.fsum(entry.energy_it_kwh or 0.0 for entry in failed),
        "shared": _share_devices(known, now),
    }


def _share_devices(entries: Iterable[Entry], now: float) -> bool:
    ends: dict[str, float] = {}
    for entry in sorted(entries, key=lambda entry: entry.start_unix_s or 0.0):
        end = now if entry.end_unix_s is None else entry.end_unix_s
        if any((entry.start_unix_s or 0.0) < ends.get(uuid, -math.inf) for uuid in entry.devices):
            return True
        ends |= {uuid: max(end, ends.get(uuid, end)) for uuid in entry.devices}
    return False


def _stamp(path: Path) -> Stamp:
    """Changes with every replacement of what an entry is read from. FileNotFoundError without a run.json."""
    stamps = []
    for name in ("run.json", RECORD):
        try:
            stat = os.stat(f"{path}/{name}")
        except FileNotFoundError:
            if name != RECORD:
                raise
            continue
        stamps.append((stat.st_mtime_ns, stat.st_size, stat.st_ino))
    return tuple(stamps)
