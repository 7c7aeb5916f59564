"""The page that puts runs beside each other: which they are, each read again only when its files changed."""

from __future__ import annotations

import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import numpy as np
from jinja2 import Environment

from dashboards.server import steps
from dashboards.server.answers import as_csv, as_json, html, plain_name
from dashboards.server.catalog import Catalog
from dashboards.server.figure_files import DRAWING, FORMS
from dashboards.server.pages import BROKEN
from dashboards.server.power_store import PowerStore
from dashboards.server.web import Arguments, Response, text
from energy.records.record import FILE_NAME as RECORD
from energy.runs import RunFolder

if TYPE_CHECKING:  # they bring matplotlib along, which the list does without
    from dashboards.comparison import Compared, Comparison

FEWEST, MOST = 2, 8
KEPT_RUNS = 24
POINTS = 600  # of the curve of one run
SKETCHED = (
    "so large that its curve is drawn from some of its steps, and its energy up to each from some rows of each ledger; "
    "its figures and evaluations are all there"
)
REST = 4  # a run that goes on and took so long to read is read again after so many times as long


@dataclass(frozen=True)
class Side:
    """One run as it stands in a comparison: its figures, its phases by its record, and its curves for the chart."""

    compared: Compared
    phases: list[dict[str, Any]]
    curves: dict[str, list[Any]]
    sketched: str = ""  # of a very large run, from what its curves are drawn


class Compare:
    """Answers the addresses that begin with `compare`."""

    def __init__(self, catalog: Catalog, power: PowerStore, environment: Environment) -> None:
        self._catalog, self._power, self._environment = catalog, power, environment
        self._steps = steps.StepStore()
        self._reading = threading.Lock()
        self._kept: OrderedDict[Path, tuple[Any, Side, float]] = OrderedDict()

    def respond(self, what: str, arguments: Arguments) -> Response:
        """what: of the address after `compare`, such as "" or ".csv"."""
        names = list(dict.fromkeys(name for name in arguments.every("run") if name))
        if len(names) > MOST:
            why = f"{len(names)} runs are too many to tell apart: compare {FEWEST} to {MOST}."
            return self._page(names, None, [], [why], 400) if not what else text(400, why)
        sides, faults = self._read(names)
        if not what:
            missing = bool(faults) and len(sides) < FEWEST
            return self._page(names, sides, [*sides.values()], faults, 404 if missing else 200)
        if len(sides) < FEWEST:
            return text(404, "; ".join(faults) or f"name {FEWEST} to {MOST} runs: compare{what}?run=ONE&run=OTHER")
        found = _comparison([*sides.values()])
        stem = plain_name("-".join(["compare", *sides])[:120])
        if what == ".json":
            return as_json(found.as_json() | {"left_out": faults}, f"{stem}.json")
        if what == ".csv":
            from dashboards.server.compare_table import flat_rows

            return as_csv(f"{stem}.csv", flat_rows(found))
        if what == "-steps.json":
            return as_json({"runs": [self._curve(found, name, side) for name, side in sides.items()]})
        return self._figure(found, what.removeprefix("."), stem)

    def _read(self, names: Sequence[str]) -> tuple[dict[str, Side], list[str]]:
        """({name: side} of the runs that can be read, what is wrong with the others)."""
        sides, faults = {}, []
        for name in names:
            folder = self._catalog.find(name)
            if folder is None:
                faults.append(self._catalog.why_not(name) or f"There is no run “{name}” in this folder (any more).")
                continue
            try:
                sides[name] = self._side(folder)
            except FileNotFoundError as error:
                faults.append(f"{name}: a file was there a moment ago, and is gone ({error.filename or error})")
            except OSError as error:
                faults.append(f"{name}: cannot be read ({error.strerror}: {Path(error.filename or folder.path).name})")
            except BROKEN as error:
                traceback.print_exc()
                faults.append(f"{name}: its files are not understood ({str(error).replace(f'{folder.path}/', '')})")
        return sides, faults

    def _side(self, folder: RunFolder) -> Side:
        with self._reading:  # one at a time: two would take twice the memory and give the same
            stamp = _stamp(folder)
            before = self._kept.get(folder.path)
            if before is not None and (before[0] == stamp or time.monotonic() < before[2]):
                self._kept.move_to_end(folder.path)
                return before[1]
            began = time.monotonic()
            side = self._read_side(folder)
            self._kept[folder.path] = (stamp, side, time.monotonic() + REST * (time.monotonic() - began))
            self._kept.move_to_end(folder.path)
            while len(self._kept) > KEPT_RUNS:
                self._kept.popitem(last=False)
            return side

    def _read_side(self, folder: RunFolder) -> Side:
        from dashboards.comparison import read_compared
        from dashboards.figures import Source

        power, is_whole = self._power.energies(folder)
        sketched = not is_whole or steps.is_large(folder)
        source = Source(_Sketched(folder.path) if sketched else folder)
        compared = read_compared(source)
        columns = steps.measured(folder, self._steps, power, quick=POINTS if sketched else 0)
        if sketched:
            compared = replace(compared, path=_evaluations(columns))
        drawn = steps.chart(columns, POINTS)
        curves = {key: drawn[key] for key in ("kind", "step", "attempt", "loss", *steps.AXES)}
        return Side(compared, list(source.record["energy"]["phases"]), curves, SKETCHED if sketched else "")

    def _curve(self, found: Comparison, name: str, side: Side) -> dict[str, Any]:
        first = found.runs[0]
        apart: set[str] = set() if side.compared is first else found.blocked_at_any_moment(side.compared)
        return {"name": name, "loss_apart": "loss" in apart, "energy_apart": "energy_it_kwh" in apart} | side.curves

    def _figure(self, found: Comparison, form: str, stem: str) -> Response:
        from dashboards.figures import Missing

        try:
            with DRAWING:
                body = found.figure().file(form)
        except Missing as error:
            return text(404, str(error))
        return Response(200, body, FORMS[form], f"{stem}.{form}")

    def _page(
        self, names: list[str], sides: dict[str, Side] | None, shown: list[Side], faults: list[str], status: int
    ) -> Response:
        context: dict[str, Any] = {"faults": faults, "named": names, "fewest": FEWEST, "most": MOST, "runs": []}
        if sides is not None and len(shown) >= FEWEST:
            from dashboards.server import compare_table

            found = _comparison(shown)
            kept = list(sides)
            context |= {
                "runs": [
                    {"name": name, "state": compare_table.state_of(side.compared), "status": side.compared.status,
                     "purpose": side.compared.purpose,
                     "without": _query([each for each in kept if each != name]) if len(kept) > FEWEST else "",
                     "as_first": _query([name, *(each for each in kept if each != name)])}
                    for name, side in sides.items()
                ],
                "query": _query(kept),
                "sentences": found.sentences(),
                "caveats": found.caveats(),
                "rows": compare_table.figure_rows(found),
                "phases": compare_table.phase_rows([side.phases for side in shown]),
                "changed": found.changed_keys(),
                "has_loss": any(value is not None for side in shown for value in side.curves["loss"]),
                "sketched": {name: side.sketched for name, side in sides.items() if side.sketched},
                "running": [name for name, side in sides.items() if side.compared.status == "running"],
                "now_unix_s": time.time(),
            }  # fmt: skip
        return html(self._environment.get_template("compare.html.j2").render(**context), status)


class _Sketched(RunFolder):
    """A run whose metrics and ledgers are too large to be read whole for a page."""

    def evaluations(self) -> list[dict[str, Any]]:
        return []  # they are in the columns of `steps.measured`


def _evaluations(columns: dict[str, steps.Array]) -> list[tuple[float, float]]:
    """(IT kWh, validation loss) of each evaluation; [] where its energy is not known."""
    kept = (columns["evaluation"] > 0) & np.isfinite(columns["energy_kwh"]) & np.isfinite(columns["loss"])
    return list(zip(columns["energy_kwh"][kept].tolist(), columns["loss"][kept].tolist(), strict=True))


def _comparison(sides: Sequence[Side]) -> Comparison:
    from dashboards.comparison import Comparison

    return Comparison([side.compared for side in sides])


def _query(names: Sequence[str]) -> str:
    return f"?{urlencode([('run', name) for name in names], errors='surrogateescape')}"


def _stamp(folder: RunFolder) -> tuple[tuple[str, int, int], ...]:
    """Changes with whatever a comparison is read from. FileNotFoundError without a run.json."""
    named = (RECORD, "experiment.yaml", "tokenizer.model")
    paths = [folder.run_file, *(folder.path / name for name in named), folder.metrics_file(0)]
    if folder.energy_dir.is_dir():
        paths += sorted(folder.energy_dir.iterdir())
    stamps = []
    for path in paths:
        try:
            stat = path.stat()
        except FileNotFoundError:
            if path == folder.run_file:
                raise
            continue
        stamps.append((path.name, stat.st_mtime_ns, stat.st_size))
    return tuple(stamps)
