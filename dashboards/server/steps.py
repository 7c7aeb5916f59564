"""Steps and evaluations of a run for charts: loss against energy, tokens, FLOP or hours; and what it did when."""

from __future__ import annotations

import json
import math
import mmap
import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dashboards.server.power import Power
from energy.runs import RunFolder

Array = NDArray[np.float64]
KEPT_RUNS = 4
POINTS = 1200
AXES = ("energy_kwh", "tokens", "compute_flop", "hours")
KEPT = ("attempt", "step", "time_unix_s", "tokens", "loss")
LARGE_BYTES = 8_000_000  # of a metrics file: more takes half a second to read
EVALUATION, PHASE, TRAIN_STEP = b'"evaluation"', b'"phase"', b'"train_step"'
LANES = ("startup", "compile", "checkpoint", "evaluation")  # what a reader looks for beside the steps
LINES = 20  # between two steps, at most, where places in a file are looked at
SEAL_BYTES = 64  # of the end of what was read, by which a file that was replaced is known


class Metrics:
    """What a metrics file holds of steps and evaluations, in columns: weeks of steps are some MB. Only added to."""

    def __init__(self) -> None:
        self._columns = {key: array("d") for key in ("evaluation", *KEPT)}
        self._spans = {phase: array("d") for phase in LANES}  # start and end in turn
        self._read_bytes, self._file, self._seal = 0, 0, b""

    def read_on(self, path: Path) -> Metrics:
        """Reads what was appended since the last time; a file that was replaced from its beginning, anew."""
        with open(path, "rb") as file:
            inode = path.stat().st_ino
            file.seek(max(0, self._read_bytes - SEAL_BYTES))
            if self._read_bytes and (inode != self._file or file.read(len(self._seal)) != self._seal):
                return Metrics().read_on(path)
            self._file = inode
            file.seek(self._read_bytes)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # it is being written
                self._read_bytes += len(line)
                self._seal = (self._seal + line)[-SEAL_BYTES:]
                self._take(line)
        return self

    def sample(self, path: Path, count: int) -> None:
        """Takes the first whole line of a step after each of `count` places in the file, and every evaluation with the
        step before it."""
        size = path.stat().st_size
        if not size:
            return
        with open(path, "rb") as file:
            for offset in range(0, size, max(1, size // count)):
                file.seek(offset)
                file.readline()  # what one landed in
                for line in islice(file, LINES):
                    if line.endswith(b"\n") and EVALUATION not in line and self._take(line):
                        break
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
                place = whole.find(EVALUATION)
                while place >= 0:
                    end = whole.find(b"\n", place)
                    if end >= 0:
                        start = at = whole.rfind(b"\n", 0, place) + 1
                        taken, back = self._take(whole[start:end]), 0
                        while taken and at and back < LINES:  # which step it was after
                            back, before = back + 1, whole.rfind(b"\n", 0, at - 1) + 1
                            line, at = whole[before:at], before
                            taken = EVALUATION in line or not self._take(line)
                    place = whole.find(EVALUATION, end) if end >= 0 else -1

    def _take(self, line: bytes) -> bool:
        """Whether it tells of a step or an evaluation. What it tells of a phase is kept too."""
        if b'"step"' not in line and EVALUATION not in line and (PHASE not in line or TRAIN_STEP in line):
            return False
        try:
            event = json.loads(line)
        except ValueError:
            return False  # a line that a crash tore
        kind = event.get("event") if isinstance(event, dict) else None
        if kind == "phase" and event.get("phase") in self._spans:
            span = [_number(event.get(key)) for key in ("start_unix_s", "end_unix_s")]
            self._spans[event["phase"]].extend(span if span[0] <= span[1] else ())
        if kind not in ("step", "evaluation") or math.isnan(_number(event.get("time_unix_s"))):
            return False
        event["loss"] = event.get("loss" if kind == "step" else "validation_loss")
        self._columns["evaluation"].append(kind == "evaluation")
        for key in KEPT:
            self._columns[key].append(_number(event.get(key)))
        return True

    def columns(self) -> dict[str, Array]:
        """Copies, in the order of time: of steps and evaluations, recomputed steps included; NaN is not known."""
        found = {key: np.array(values, float) for key, values in self._columns.items()}
        order = np.argsort(found["time_unix_s"], kind="stable")
        return {key: values[order] for key, values in found.items()}

    def lanes(self, start: float, end: float, least_s: float) -> dict[str, list[list[float]]]:
        """{phase: spans between two moments (unix s)}, in order; those nearer to each other than least_s are one, so
        that ten thousand checkpoints are no more than can be drawn."""
        found = {}
        for phase, values in self._spans.items():
            spans = np.array(values, float).reshape(-1, 2)
            spans = spans[(spans[:, 1] >= start) & (spans[:, 0] <= end)]
            if not len(spans):
                continue
            spans = spans[np.argsort(spans[:, 0], kind="stable")]
            ends = np.maximum.accumulate(spans[:, 1])
            first = np.flatnonzero(np.append(True, spans[1:, 0] - ends[:-1] > least_s))
            shown = np.stack([spans[first, 0], ends[np.append(first[1:], len(spans)) - 1]], axis=1)
            found[phase] = np.round(np.clip(shown, start, end), 2).tolist()
        return found


class StepStore:
    """The metrics of the runs that were looked at last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[Path, Metrics] = OrderedDict()

    def sketch(self, folder: RunFolder, count: int) -> dict[str, Array]:
        """As `read`, at once: of a large file that was not read yet, from `count` lines at equal distances in it."""
        path, metrics = folder.metrics_file(0), Metrics()
        if folder.path in self._kept or not is_large(folder):
            return self.read(folder)
        metrics.sample(path, count)
        return metrics.columns()

    def read(self, folder: RunFolder) -> dict[str, Array]:
        """The columns of the run's metrics (`Metrics.columns`)."""
        with self._lock:
            return self._read_on(folder).columns()

    def lanes(self, folder: RunFolder, start: float, end: float, points: int) -> dict[str, list[list[float]]] | None:
        """`Metrics.lanes` for a chart of so many points; None of a large file that was not read yet."""
        if folder.path not in self._kept and is_large(folder):
            return None
        with self._lock:
            return self._read_on(folder).lanes(start, end, (end - start) / max(1, points))

    def _read_on(self, folder: RunFolder) -> Metrics:
        """With the lock held."""
        metrics = self._kept.get(folder.path) or Metrics()
        try:
            metrics = metrics.read_on(folder.metrics_file(0))
        except FileNotFoundError:
            self._kept.pop(folder.path, None)
            return Metrics()
        self._kept[folder.path] = metrics
        self._kept.move_to_end(folder.path)
        while len(self._kept) > KEPT_RUNS:
            self._kept.popitem(last=False)
        return metrics


def is_large(folder: RunFolder) -> bool:
    """Whether its steps take so long to read that `StepStore.sketch` leaves most of them out."""
    path = folder.metrics_file(0)
    return path.exists() and path.stat().st_size > LARGE_BYTES


def measured(folder: RunFolder, store: StepStore, power: Power | None, quick: int = 0) -> dict[str, Array]:
    """Every step and evaluation, with what it had taken by then: the columns of `Metrics.columns`, and of AXES.

    energy_kwh: IT energy up to then; NaN where nothing was metered. compute_flop: by the run's FLOP per token; NaN
    where that is not known. hours: since the first attempt began. An evaluation has the tokens of its step.
    quick: `StepStore.sketch` from so many lines in the place of all.
    """
    columns = store.sketch(folder, quick) if quick else store.read(folder)
    run = folder.read_run()
    flop, begun = _number((run.get("model") or {}).get("flop_per_token")), _number(run.get("created_unix_s"))
    times, evaluation = columns["time_unix_s"], columns["evaluation"] > 0
    nothing = np.full(len(times), np.nan)
    columns["tokens"][evaluation] = _tokens_at(columns["step"][evaluation], columns, ~evaluation)
    known = power is not None and power.cells > 0 and len(times) > 0
    columns["energy_kwh"] = power.energy_kwh(times) if known and power is not None else nothing
    columns["compute_flop"] = columns["tokens"] * (flop or math.nan)
    columns["hours"] = np.round((times - begun) / 3600, 6)
    return columns


def _tokens_at(steps: Array, columns: dict[str, Array], trained: NDArray[np.bool_]) -> Array:
    """The tokens of the training steps of these numbers; NaN where there is no such step."""
    known, tokens = columns["step"][trained], columns["tokens"][trained]
    order = np.argsort(known, kind="stable")
    place = np.searchsorted(known[order], steps, "right") - 1
    found = order[np.maximum(place, 0)] if len(order) else np.empty(0, np.int64)
    return np.where(known[found] == steps, tokens[found], math.nan) if len(order) else np.full(len(steps), math.nan)


def chart(columns: dict[str, Array], points: int = POINTS) -> dict[str, Any]:
    """The columns for JSON, None for what is not known; of very many steps those that `thinned` leaves.

    without_loss: how many steps and evaluations have no finite loss, and so no place in a chart.
    """
    kept = thinned(columns, points)
    listed = _listed({key: values[kept] for key, values in columns.items()})
    return listed | {"without_loss": int(np.isnan(columns["loss"]).sum())}


def rows(columns: dict[str, Array]) -> Iterator[dict[str, Any]]:
    """The same for a file, row by row and all of them: {kind, attempt, step, time_unix_s, tokens, loss, ...}."""
    listed = _listed(columns)
    for values in zip(*listed.values(), strict=True):
        yield dict(zip(listed, values, strict=True))


def thinned(columns: dict[str, Array], points: int = POINTS) -> NDArray[np.int64]:
    """Which rows to draw: of each stretch the steps of lowest and highest loss, the last one, and all evaluations."""
    known, evaluation = np.isfinite(columns["loss"]), columns["evaluation"] > 0
    steps = np.flatnonzero(known & ~evaluation)
    if len(steps) > points:
        size = math.ceil(2 * len(steps) / points)
        kept = {int(steps[-1])}
        for start in range(0, len(steps), size):
            losses = columns["loss"][steps[start : start + size]]
            kept |= {int(steps[start + losses.argmin()]), int(steps[start + losses.argmax()])}
        steps = np.array(sorted(kept))
    return np.concatenate([steps, np.flatnonzero(known & evaluation)]).astype(np.int64)


def _listed(columns: dict[str, Array]) -> dict[str, list[Any]]:
    """As lists, None for NaN; counts are whole numbers."""
    found: dict[str, list[Any]] = {
        "kind": ["evaluation" if each else "step" for each in columns["evaluation"].tolist()]
    }
    for key in (*KEPT, *(axis for axis in AXES if axis not in KEPT)):
        known = [None if each != each else each for each in columns[key].tolist()]
        if key in ("attempt", "step", "tokens"):
            known = [None if each is None else round(each) for each in known]
        if key == "energy_kwh":
            known = [None if each is None else float(f"{each:.7g}") for each in known]
        found[key] = known
    return found


def _number(value: Any) -> float:
    """NaN for what is no finite number."""
    fine = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if fine else math.nan
