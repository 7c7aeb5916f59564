"""The addresses of the dashboard and what each answers. Everything is read, nothing is ever written."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dashboards.server import steps
from dashboards.server.answers import as_csv, as_json, as_report, html, plain_name
from dashboards.server.catalog import Catalog, FolderFault, Query, ReadLive
from dashboards.server.cluster import Cluster
from dashboards.server.compare import Compare
from dashboards.server.figure_files import DRAWING, FORMS, figure_file
from dashboards.server.pages import BROKEN, Pages
from dashboards.server.planning import Plan, Planning
from dashboards.server.power_store import PowerStore
from dashboards.server.rendering import environment
from dashboards.server.web import REPORT_POLICY, Arguments, Response, text
from energy.records.record import FILE_NAME as RECORD
from energy.records.record import SERIES, series_of
from energy.records.total import RunList
from energy.runs import RunFolder

STATIC = Path(__file__).with_name("static")
KINDS = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
FILES = {
    RECORD: "application/json",
    "report.html": "text/html; charset=utf-8",
    "report.md": "text/markdown; charset=utf-8",
}
OF_COMPARE = ("", ".json", ".csv", ".html", "-steps.json", *(f".{form}" for form in FORMS))
COMPARE = tuple(f"compare{what}" for what in OF_COMPARE)
FORM_PAGES = ("plan",)
POINTS, MOST_POINTS = 1000, 4000
LARGEST_FILE = 64_000_000
TOTAL_COLUMNS = (
    "runs", "gpu_hours", "energy_it_kwh", "energy_facility_kwh", "carbon_tco2eq", "embodied_tco2eq", "compute_flop",
)  # fmt: skip


class App:
    """Answers requests about the runs of a folder. read_live: `orchestrator.live.state.read`; base: the prefix."""

    def __init__(self, directory: Path, read_live: ReadLive, base: str = "", planning: Planning | None = None) -> None:
        self.catalog = Catalog(directory)
        self._live = read_live
        self._power, self._steps = PowerStore(), steps.StepStore()
        self._templates = templates = environment(base)
        self._pages = Pages(self.catalog, read_live, templates)
        self._compare = Compare(self.catalog, self._power, templates)
        self._cluster = Cluster(self.catalog, read_live, templates)
        self._plan = Plan(planning, templates, base)
        self._static = {path.name: path.read_bytes() for path in STATIC.iterdir() if path.suffix in KINDS}
        self._of_run: dict[str, Callable[[RunFolder, Mapping[str, str]], Response]] = {
            "": lambda folder, _: html(self._pages.run(folder)),
            "state": lambda folder, _: html(self._pages.state(folder)),
            "power.json": self._power_json,
            "power.csv": self._power_csv,
            "steps.json": self._steps_json,
            "steps.csv": self._steps_csv,
        }

    def warm_up(self) -> None:
        """What the first visitor would wait for: the list, and what shows records and compares them."""
        self.catalog.listing(whole=True)
        for name in self._templates.list_templates():
            self._templates.get_template(name)
        import dashboards.comparison
        import dashboards.report  # noqa: F401

    def respond(self, parts: Sequence[str], arguments: Arguments) -> Response:
        """parts: of the path, decoded; arguments: of the query."""
        try:
            return self._respond(parts, arguments)
        except FolderFault as fault:
            why = f"The runs folder cannot be read. {fault}"
            is_page = "." not in (parts[2:] or parts)[-1]
            return html(self._pages.missing(why, "Not readable now"), 503) if is_page else text(503, why)

    def _respond(self, parts: Sequence[str], arguments: Arguments) -> Response:
        match list(parts):
            case [""]:
                return html(self._pages.runs(Query.of(arguments)))
            case ["list"]:
                return html(self._pages.rows(Query.of(arguments)))
            case ["runs.json"]:
                return self._runs_json(Query.of(arguments))
            case ["runs.csv"]:
                entries = Query.of(arguments).select(self.catalog.readable(whole=True).entries)
                return as_csv("runs.csv", [entry.as_json() for entry in entries])
            case ["total"]:
                return html(self._pages.total())
            case ["total", "now"]:
                return html(self._pages.sums())
            case ["total.json"]:
                return as_json(self.catalog.total(), "total.json")
            case ["total.csv"]:
                return self._total_csv()
            case ["total.html"]:
                return self._total_report()
            case [name] if name in COMPARE:
                return self._compare.respond(name.removeprefix("compare"), arguments)
            case ["cluster" | "cluster.json" | "cluster.csv" as name]:
                return self._cluster.respond(name.removeprefix("cluster").removeprefix("."), arguments)
            case ["cluster", "now"]:
                return self._cluster.respond("now", arguments)
            case ["plan" | "plan.json" as name]:
                return self._plan.respond(name.removeprefix("plan"), arguments)
            case ["static", name] if name in self._static:
                return Response(200, self._static[name], f"{KINDS[Path(name).suffix]}; charset=utf-8")
            case ["run", name, *rest]:
                return self._run(name, "/".join(rest), arguments)
        return html(self._pages.missing("There is no such page."), 404)

    def submit(self, parts: Sequence[str], form: Arguments) -> Response:
        """The form of a page of FORM_PAGES. It asks, and changes nothing."""
        assert list(parts) == ["plan"]
        return self._plan.submit(form)

    def _run(self, name: str, what: str, arguments: Mapping[str, str]) -> Response:
        folder = self.catalog.find(name)
        if folder is None:
            why = self.catalog.why_not(name)
            return html(self._pages.missing(why or f"There is no run “{name}” in this folder (any more)."), 404)
        if what in FILES:
            return self._file(folder, what, "save" in arguments)
        is_figure = what.startswith("figure/")
        if what not in self._of_run and not is_figure:
            return html(self._pages.missing("There is no such page of a run."), 404)
        try:
            if is_figure:
                return figure_file(folder, what.removeprefix("figure/"), arguments)
            return self._of_run[what](folder, arguments)
        except FileNotFoundError:
            return html(self._pages.missing(f"The run “{name}” was there a moment ago, and is gone."), 404)
        except OSError as error:
            where = str(error.filename or "").replace(f"{folder.path}/", "")
            why = f"The files of “{name}” cannot be read: {error.strerror or error}{f' ({where})' if where else ''}."
            return html(self._pages.missing(why), 403)
        except BROKEN as error:
            traceback.print_exc()
            why = f"The files of “{name}” are not understood: {type(error).__name__}: {error}"
            return html(self._pages.missing(why), 422)

    def _runs_json(self, query: Query) -> Response:
        listing = self.catalog.readable(whole=True)
        rows = [entry.as_json() for entry in query.select(listing.entries)]
        return as_json({"runs": rows, "left_out": listing.left_out}, "runs.json")

    def _total_csv(self) -> Response:
        total = self.catalog.total()
        parts = [*total["by_purpose"].items(), ("total", total["total"])]
        keys = [*TOTAL_COLUMNS, *(f"{key}_unknown_runs" for key in TOTAL_COLUMNS[1:])]
        return as_csv("total.csv", [{"purpose": name} | {key: part[key] for key in keys} for name, part in parts])

    def _total_report(self) -> Response:
        from dashboards.summaries import total_html  # brings matplotlib along

        listing, total = self.catalog.readable(whole=True), self.catalog.total()
        if not listing.entries:
            return html(self._pages.missing("There is no run in this folder yet: nothing to report."), 404)
        entries = RunList(listing.entries, listing.left_out)
        with DRAWING:
            page = total_html(entries, total, f"Runs in {self.catalog.directory.resolve().name}")
        return as_report(page, "total.html")

    def _file(self, folder: RunFolder, name: str, save: bool) -> Response:
        path = folder.path / name
        try:
            if not path.resolve().is_relative_to(folder.path.resolve()) or not path.is_file():
                raise FileNotFoundError
            if path.stat().st_size > LARGEST_FILE:
                return text(413, f"{name} has more than {LARGEST_FILE // 10**6} MB: take it from the run's folder")
            body = path.read_bytes()
        except FileNotFoundError:
            return text(404, f"the run has no {name} yet; write it with: hoofprint report {folder.path.name}")
        except OSError as error:
            return text(403, f"{name} cannot be read: {error.strerror}")
        stem, _, ending = name.partition(".")
        saved = f"{plain_name(folder.path.name)}-{stem}.{ending}" if save or ending != "html" else ""
        return Response(200, body, FILES[name], saved, REPORT_POLICY)

    def _power_json(self, folder: RunFolder, arguments: Mapping[str, str]) -> Response:
        points = int(min(MOST_POINTS, max(10, _number(arguments, "points") or POINTS)))
        found = self._power.look(folder, _number(arguments, "from"), _number(arguments, "to"), points)
        run = folder.read_run()
        live = self._live_state(folder)
        found = found or {"edges_unix_s": []}
        edges = found["edges_unix_s"]
        grid, fault = _grid(folder, edges[0], edges[-1]) if edges else (None, None)
        notes = {} if fault is None else {"notes": [fault, *found["notes"]]}
        lanes = self._steps.lanes(folder, edges[0], edges[-1], points) if edges else {}
        return as_json(found | self._around(run, live) | notes | {"grid": grid, "lanes": lanes})

    def _around(self, run: Mapping[str, Any], live: Mapping[str, Any] | None) -> dict[str, Any]:
        """What is drawn over the curves: attempts, events, budgets as IT energy, and where it will end."""
        attempts = [
            {key: each.get(key) for key in ("attempt", "started_unix_s", "ended_unix_s", "status")}
            for each in run.get("attempts") or []
            if isinstance(each, dict)
        ]
        if live is None:
            return {"attempts": attempts, "events": [], "limits": [], "forecast": None}
        limits = []
        for each in live["budget"]:
            per_it = {"energy_it_kwh": 1.0, "energy_facility_kwh": live["pue"]}.get(each["quantity"])
            if per_it:
                of = "" if per_it == 1.0 else f" of {each['words']['of']}"
                limits.append({"kwh": each["limit"] / per_it, "text": f"limit {each['words']['limit']}{of}"})
        goes_on = run.get("status") == "running"
        forecast = {key: live["forecast"][key] for key in ("ends_unix_s", "energy_it_kwh")} if goes_on else None
        return {"attempts": attempts, "events": live["events"], "limits": limits, "forecast": forecast}

    def _live_state(self, folder: RunFolder) -> Mapping[str, Any] | None:
        """None also where it cannot be read: the page's own part says why."""
        try:
            document = self._live(folder).document
        except BROKEN:
            return None
        return document if document is not None and {"budget", "events", "forecast", "pue"} <= document.keys() else None

    def _power_csv(self, folder: RunFolder, arguments: Mapping[str, str]) -> Response:
        found = self._power.look(folder, _number(arguments, "from"), _number(arguments, "to"), MOST_POINTS, bands=None)
        rows = []
        for k, start in enumerate((found or {"edges_unix_s": []})["edges_unix_s"][:-1]):
            assert found is not None
            row = {"start_unix_s": start, "end_unix_s": found["edges_unix_s"][k + 1]}
            row |= {f"power_w {node}": column[k] for node, column in found["nodes"].items()}
            row |= {f"power_{end}_w": found[f"{end}_w"][k] for end in ("low", "high")}
            rows.append(row | {"devices_not_read": found["unread"][k]})
        return as_csv(f"{plain_name(folder.path.name)}-power.csv", rows)

    def _measured_steps(self, folder: RunFolder, quick: bool = False) -> dict[str, steps.Array]:
        return steps.measured(folder, self._steps, self._power.overview(folder), steps.POINTS if quick else 0)

    def _steps_json(self, folder: RunFolder, arguments: Mapping[str, str]) -> Response:
        return as_json(steps.chart(self._measured_steps(folder, "quick" in arguments)))

    def _steps_csv(self, folder: RunFolder, _: Mapping[str, str]) -> Response:
        return as_csv(f"{plain_name(folder.path.name)}-steps.csv", steps.rows(self._measured_steps(folder)))


def _grid(folder: RunFolder, start: float, end: float) -> tuple[list[tuple[float, float, float]] | None, str | None]:
    """((start, end, g/kWh) of the grid between two moments, None where no series was declared; why it is not known)."""
    try:
        series = series_of(folder)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error).removeprefix(f"{folder.path / SERIES}: ")
        return None, f"no grid is drawn, {SERIES} cannot be read: {why}"
    if series is None:
        return None, None
    pieces = zip(series.start_unix_s, series.end_unix_s, series.g_per_kwh, strict=True)
    return [(max(a, start), min(b, end), g) for a, b, g in pieces if a < end and b > start][:MOST_POINTS], None


def _number(arguments: Mapping[str, str], key: str) -> float | None:
    try:
        value = float(arguments[key])
    except (KeyError, ValueError):
        return None
    return value if math.isfinite(value) else None
