"""The page that puts runs beside each other: what is told of them, and what is taken along."""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from jinja2 import Environment

from dashboards.server.answers import as_csv, as_json, as_report, html, plain_name
from dashboards.server.catalog import Catalog
from dashboards.server.figure_files import DRAWING, FORMS
from dashboards.server.pages import BROKEN
from dashboards.server.power_store import PowerStore
from dashboards.server.sides import NoRecord, Side, Sides
from dashboards.server.web import Arguments, Response, text

if TYPE_CHECKING:  # they bring matplotlib along, which the list does without
    from dashboards.comparison import Comparison

FEWEST, MOST = 2, 8


class Compare:
    """Answers the addresses that begin with `compare`."""

    def __init__(self, catalog: Catalog, power: PowerStore, environment: Environment) -> None:
        self._catalog, self._sides, self._environment = catalog, Sides(power), environment

    def respond(self, what: str, arguments: Arguments) -> Response:
        """what: of the address after `compare`, such as "" or ".csv"."""
        names = list(dict.fromkeys(name for name in arguments.every("run") if name))
        if len(names) > MOST:
            why = f"{len(names)} runs are too many to tell apart: compare {FEWEST} to {MOST}."
            return self._page(names, None, [], [why], 400) if not what else text(400, why)
        sides, faults = self._read(names, with_curves=bool(what) or "whole" in arguments)
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
        if what == ".html":
            from dashboards.summaries import comparison_html

            with DRAWING:
                return as_report(comparison_html(found, [side.phases for side in sides.values()]), f"{stem}.html")
        if what == "-steps.json":
            runs = [self._curve(found, name, side) for name, side in sides.items()]
            return as_json({"runs": runs, "sentences": found.sentences(), "left_out": faults})
        return self._figure(found, what.removeprefix("."), stem)

    def _read(self, names: Sequence[str], with_curves: bool) -> tuple[dict[str, Side], list[str]]:
        """({name: side} of the runs that can be read, what is wrong with the others).

        with_curves: also of runs where they take so long that a page does not wait for them.
        """
        sides, faults = {}, []
        for name in names:
            folder = self._catalog.find(name)
            if folder is None:
                faults.append(self._catalog.why_not(name) or f"There is no run “{name}” in this folder (any more).")
                continue
            try:
                sides[name] = self._sides.read(folder, with_curves)
            except NoRecord as error:
                faults.append(f"{name}: {error}")
            except FileNotFoundError as error:
                faults.append(f"{name}: a file was there a moment ago, and is gone ({error.filename or error})")
            except OSError as error:
                faults.append(f"{name}: cannot be read ({error.strerror}: {Path(error.filename or folder.path).name})")
            except BROKEN as error:
                traceback.print_exc()
                faults.append(f"{name}: its files are not understood ({str(error).replace(f'{folder.path}/', '')})")
        return sides, faults

    def _curve(self, found: Comparison, name: str, side: Side) -> dict[str, Any]:
        first = found.runs[0]
        apart: set[str] = set() if side.compared is first else found.blocked_at_any_moment(side.compared)
        told = {"name": name, "loss_apart": "loss" in apart, "energy_apart": "energy_it_kwh" in apart}
        return told | (side.curves or {})

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
                "whole": f"{_query(kept)}&whole=yes",
                "later": [name for name, side in sides.items() if side.curves is None],
                "sentences": found.sentences(),
                "caveats": found.caveats(),
                "rows": compare_table.figure_rows(found),
                "phases": compare_table.phase_rows([side.phases for side in shown]),
                "changed": found.changed_keys(),
                "has_loss": any(side.curves is None or any(value is not None for value in side.curves["loss"])
                                for side in shown),
                "sketched": {name: side.sketched for name, side in sides.items() if side.sketched},
                "running": [name for name, side in sides.items() if side.compared.status == "running"],
                "now_unix_s": time.time(),
            }  # fmt: skip
        return html(self._environment.get_template("compare.html.j2").render(**context), status)


def _comparison(sides: Sequence[Side]) -> Comparison:
    from dashboards.comparison import Comparison

    return Comparison([side.compared for side in sides])


def _query(names: Sequence[str]) -> str:
    return f"?{urlencode([('run', name) for name in names], errors='surrogateescape')}"
