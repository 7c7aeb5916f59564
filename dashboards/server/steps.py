"""Steps and evaluations of a run for charts: loss against energy, tokens, FLOP or hours."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from dashboards.server.power import Power
from energy.runs import RunFolder

KEPT_RUNS = 4
REST = 8  # metrics that take so long to read are read again after so many times as long
POINTS = 1200
AXES = ("energy_kwh", "tokens", "compute_flop", "hours")


class StepStore:
    """The metrics of the runs that were looked at last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[Path, tuple[Any, tuple[list[Any], list[Any]], float]] = OrderedDict()

    def read(self, folder: RunFolder) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """(steps, evaluations) of the run, recomputed steps included."""
        with self._lock:
            try:
                stat = folder.metrics_file(0).stat()
            except FileNotFoundError:
                return [], []
            state = (stat.st_mtime_ns, stat.st_size)
            before = self._kept.get(folder.path)
            if before is not None and (before[0] == state or time.monotonic() < before[2]):
                return before[1]
            began = time.monotonic()
            events = folder.events()
            steps = [event for event in events if event.get("event") == "step" and _is_number(event.get("time_unix_s"))]
            evaluations = [event for event in events if event.get("event") == "evaluation"]
            self._kept[folder.path] = (
                state,
                (steps, evaluations),
                time.monotonic() + REST * (time.monotonic() - began),
            )
            self._kept.move_to_end(folder.path)
            while len(self._kept) > KEPT_RUNS:
                self._kept.popitem(last=False)
            return steps, evaluations


def table(folder: RunFolder, store: StepStore, power: Power | None) -> list[dict[str, Any]]:
    """Every step with a loss or an evaluation: {kind, attempt, step, time_unix_s, loss, tokens, energy_kwh, ...}.

    energy_kwh: IT energy up to then; None where nothing was metered. compute_flop: by the run's FLOP per token; None
    where that is not known. hours: since the first attempt began.
    """
    steps, evaluations = store.read(folder)
    run = folder.read_run()
    flop = (run.get("model") or {}).get("flop_per_token")
    begun = run.get("created_unix_s")
    rows = [_row("step", event, event.get("loss")) for event in steps]
    tokens_at = {event["step"]: event.get("tokens") for event in steps if "step" in event}
    for event in evaluations:
        if _is_number(event.get("time_unix_s")):
            row = _row("evaluation", event, event.get("validation_loss"))
            rows.append(row | {"tokens": tokens_at.get(event.get("step"))})
    if not rows:
        return rows
    rows.sort(key=lambda row: row["time_unix_s"])
    times = np.array([row["time_unix_s"] for row in rows], float)
    energy = power.energy_kwh(times).tolist() if power is not None and power.cells else [None] * len(rows)
    for row, kwh in zip(rows, energy, strict=True):
        row["energy_kwh"] = None if kwh is None else float(f"{kwh:.7g}")
        row["compute_flop"] = row["tokens"] * flop if row["tokens"] is not None and flop else None
        row["hours"] = None if begun is None else round((row["time_unix_s"] - begun) / 3600, 6)
    return rows


def thinned(rows: list[dict[str, Any]], points: int = POINTS) -> list[dict[str, Any]]:
    """At most `points` steps: of each stretch those of lowest and highest loss; all evaluations, none unknown."""
    known = [row for row in rows if _is_number(row["loss"])]
    steps = [row for row in known if row["kind"] == "step"]
    if len(steps) > points:
        size = math.ceil(2 * len(steps) / points)
        kept: list[dict[str, Any]] = []
        for start in range(0, len(steps), size):
            part = steps[start : start + size]
            ends = {id(row): row for row in (min(part, key=_loss), max(part, key=_loss))}
            kept += sorted(ends.values(), key=lambda row: row["time_unix_s"])
        steps = [*kept, steps[-1]] if kept[-1] is not steps[-1] else kept
    return steps + [row for row in known if row["kind"] == "evaluation"]


def _loss(row: dict[str, Any]) -> float:
    return float(row["loss"])


def _row(kind: str, event: dict[str, Any], loss: Any) -> dict[str, Any]:
    keys = ("attempt", "step", "time_unix_s", "tokens")
    return {"kind": kind, **{key: event.get(key) for key in keys}, "loss": loss if _is_number(loss) else None}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
