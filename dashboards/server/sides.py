"""Runs as they stand in a comparison, each read again only when its files changed.

What a run's record says is there at once. The curves of very large runs take a tenth of a second each, or several where
the storage is slow, and where nobody has asked for them yet there is a side without.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dashboards.server import steps
from dashboards.server.power_store import PowerStore
from energy.records.record import FILE_NAME as RECORD
from energy.runs import RunFolder

if TYPE_CHECKING:  # it brings matplotlib along, which the list does without
    from dashboards.comparison import Compared

KEPT_RUNS = 24
WRITE = "write it with: hoofprint report"
POINTS = 600  # of the curve of one run
SKETCHED = (
    "so large that the curve of each is drawn from some of its steps, and its energy up to each step from some rows of "
    "each ledger; figures and evaluations are all there"
)
REST = 4  # a run that goes on and took so long to read is read again after so many times as long
Stamp = tuple[tuple[str, int, int], ...]


class NoRecord(Exception):
    """Of a run that is too large to be compared without one."""


@dataclass(frozen=True)
class Side:
    """One run as it stands in a comparison: its figures, its phases by its record, and its curves for the chart.

    curves: None where they were not read so far, and then what the run had taken by each evaluation is not known
    either. sketched: of a very large run, from what its curves are drawn.
    """

    compared: Compared
    phases: list[dict[str, Any]]
    curves: dict[str, list[Any]] | None = None
    sketched: str = ""


class Kept(NamedTuple):
    """A side as the files were at `stamp`; not read again before `again_s`."""

    stamp: Stamp
    side: Side
    again_s: float

    def holds(self, stamp: Stamp, with_curves: bool) -> bool:
        known = self.side.curves is not None
        return self.stamp == stamp and (known or not with_curves) or (known and time.monotonic() < self.again_s)


class Sides:
    """The runs that were compared last."""

    def __init__(self, power: PowerStore) -> None:
        self._power, self._steps = power, steps.StepStore()
        self._reading, self._lock = threading.Lock(), threading.Lock()
        self._kept: OrderedDict[Path, Kept] = OrderedDict()

    def read(self, folder: RunFolder, with_curves: bool) -> Side:
        """What is known of a run, read again when its files changed. with_curves: also where they take so long that a
        page does not wait for them. FileNotFoundError where there is no run; NoRecord."""
        stamp = _stamp(folder)
        found = self._known(folder, stamp, with_curves)
        if found is not None:
            return found
        if not with_curves and self._is_large(folder):
            return self._keep(folder, Kept(stamp, self._of_record(folder), 0.0))
        with self._reading:  # one at a time: two would take twice the memory and give the same
            found = self._known(folder, stamp, with_curves)
            if found is not None:
                return found
            began = time.monotonic()
            side = self._with_curves(folder, self._known(folder, stamp, False))
            again_s = time.monotonic() + REST * (time.monotonic() - began)
            return self._keep(folder, Kept(stamp, side, again_s))

    def _known(self, folder: RunFolder, stamp: Stamp, with_curves: bool) -> Side | None:
        with self._lock:
            kept = self._kept.get(folder.path)
            if kept is None or not kept.holds(stamp, with_curves):
                return None
            self._kept.move_to_end(folder.path)
            return kept.side

    def _keep(self, folder: RunFolder, kept: Kept) -> Side:
        with self._lock:
            self._kept[folder.path] = kept
            self._kept.move_to_end(folder.path)
            while len(self._kept) > KEPT_RUNS:
                self._kept.popitem(last=False)
        return kept.side

    def _is_large(self, folder: RunFolder) -> bool:
        """Whether its metrics or its ledgers are too large to be read whole for a page."""
        return steps.is_large(folder) or not self._power.is_soon_whole(folder)

    def _of_record(self, folder: RunFolder) -> Side:
        """What the record of a large run says alone. NoRecord where there is none."""
        from dashboards.comparison import read_compared
        from dashboards.figures import Source

        if not (folder.path / RECORD).exists():
            raise NoRecord(f"it has no record yet, and is too large for one to be computed here: {WRITE} {folder.path}")
        source = Source(_Unread(folder.path))
        return Side(read_compared(source), list(source.record["energy"]["phases"]), sketched=SKETCHED)

    def _with_curves(self, folder: RunFolder, before: Side | None) -> Side:
        """before: what its record says, if that was read."""
        from dashboards.comparison import read_compared
        from dashboards.figures import Source

        if self._is_large(folder):
            side = before or self._of_record(folder)
            power, _ = self._power.energies(folder)
            columns = steps.measured(folder, self._steps, power, quick=POINTS)
            side = replace(side, compared=replace(side.compared, path=_evaluations(columns)))
        else:
            source = Source(folder)
            side = Side(read_compared(source), list(source.record["energy"]["phases"]))
            columns = steps.measured(folder, self._steps, self._power.overview(folder))
        drawn = steps.chart(columns, POINTS)
        return replace(side, curves={key: drawn[key] for key in ("kind", "step", "attempt", "loss", *steps.AXES)})


class _Unread(RunFolder):
    """A run whose metrics and ledgers are not read."""

    def evaluations(self) -> list[dict[str, Any]]:
        return []  # they are in the columns of `steps.measured`


def _evaluations(columns: dict[str, steps.Array]) -> list[tuple[float, float]]:
    """(IT kWh, validation loss) of each evaluation; [] where its energy is not known."""
    kept = (columns["evaluation"] > 0) & np.isfinite(columns["energy_kwh"]) & np.isfinite(columns["loss"])
    return list(zip(columns["energy_kwh"][kept].tolist(), columns["loss"][kept].tolist(), strict=True))


def _stamp(folder: RunFolder) -> Stamp:
    """Changes with whatever a comparison is read from. FileNotFoundError without a run.json."""
    named = (RECORD, "experiment.yaml", "tokenizer.model")
    stamps = []
    for path in (folder.run_file, *(folder.path / name for name in named), folder.metrics_file(0)):
        try:
            stat = path.stat()
        except FileNotFoundError:
            if path == folder.run_file:
                raise
            continue
        stamps.append((path.name, stat.st_mtime_ns, stat.st_size))
    if folder.energy_dir.is_dir():
        with os.scandir(folder.energy_dir) as files:
            for file in sorted(files, key=lambda each: each.name):
                with suppress(FileNotFoundError):
                    stat = file.stat()
                    stamps.append((file.name, stat.st_mtime_ns, stat.st_size))
    return tuple(stamps)
