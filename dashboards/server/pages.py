"""The pages as HTML: what of the runs is put where. Templates escape everything; what is not known is a dash."""

from __future__ import annotations

import json
import time
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, UndefinedError

from dashboards.server.catalog import PER_PAGE, SORTS, Catalog, Live, Query, ReadLive, week
from dashboards.server.nodes import Node, read_nodes
from dashboards.server.parts import UNKNOWN, budget_bar, heat_map, live_cards, meter_cards
from energy import human
from energy.records.record import FILE_NAME as RECORD
from energy.records.total import BROKEN as BROKEN_FILES
from energy.records.total import NOT_SAID, Entry
from energy.runs import MEASURE, SERIES, RunFolder
from energy.schemas import require_known
from energy.units import JOULE_PER_KWH

BROKEN = (*BROKEN_FILES, UndefinedError)
NUMERIC = ("tokens", "loss", "energy", "carbon", "hours")


class Pages:
    def __init__(self, catalog: Catalog, read_live: ReadLive, environment: Environment) -> None:
        self._catalog, self._read_live, self._environment = catalog, read_live, environment

    def _render(self, template: str, **context: Any) -> str:
        return self._environment.get_template(f"{template}.html.j2").render(**context)

    def missing(self, message: str, title: str = "Not found") -> str:
        return self._render("missing", message=message, title=title)

    def runs(self, query: Query) -> str:
        return self._render("runs", **self._list(query))

    def rows(self, query: Query) -> str:
        """The part of the list that changes as one types or as runs go on."""
        return self._render("rows", **self._list(query))

    def _list(self, query: Query) -> dict[str, Any]:
        listing = self._catalog.listing()
        chosen = query.select(listing.entries)
        pages = max(1, -(-len(chosen) // PER_PAGE))
        page = min(query.page, pages)
        shown = chosen[(page - 1) * PER_PAGE : page * PER_PAGE]
        return {
            "listing": listing,
            "directory": str(self._catalog.directory),
            "query": query,
            "chosen": len(chosen),
            "rows": [self._row(entry) for entry in shown],
            "heads": [(key, label, key in NUMERIC) for key, (label, _) in SORTS.items()],
            "apart": query.sort in NUMERIC and any(entry.status == "running" for entry in chosen),
            "week": week(listing.entries, time.time()),
            "page": page,
            "pages": pages,
            "query_of": lambda **changes: _query(query, **({"page": page} | changes)),
        }

    def _row(self, entry: Entry) -> dict[str, Any]:
        row = {
            "name": entry.name,
            "status": entry.status,
            "purpose": entry.purpose if entry.purpose != NOT_SAID else UNKNOWN,
            "tokens": _count(entry.tokens),
            "loss": _loss(entry.loss),
            "energy": human.human_energy(entry.energy_it_kwh) if entry.energy_it_kwh is not None else UNKNOWN,
            "carbon": _carbon(entry.carbon_tco2eq),
            "hours": UNKNOWN if entry.gpu_hours is None else human.digits(entry.gpu_hours),
            "started": entry.start_unix_s,
            "note": entry.note,
            "sofar": "",
        }
        if entry.status == "running":
            row |= self._sofar(entry)
        return row

    def _sofar(self, entry: Entry) -> dict[str, Any]:
        """Of a run that goes on, what its live state says."""
        try:
            folder = RunFolder(entry.path)
            document = self._read_live(folder).document
            if document is None:
                return {"note": "", **_metered(read_nodes(folder, time.time()))}
            done, planned = document["step"], document["total_steps"]
            return {
                "sofar": f"step {done:,} of {planned:,}" if done and planned else str(document["phase"]),
                "tokens": _count(document["tokens"]),
                "loss": _loss(document["loss"]),
                "energy": UNKNOWN
                if document["energy_it_kwh"] is None
                else human.human_energy(document["energy_it_kwh"]),
                "carbon": _carbon(document["carbon_tco2eq"]),
                "note": "",
            }
        except (OSError, *BROKEN) as error:
            return {"note": f"its live state cannot be read: {error}"}

    def total(self) -> str:
        return self._render("total", **self._total())

    def sums(self) -> str:
        """The part of the total's page that changes while the folder is read."""
        return self._render("sums", **self._total())

    def _total(self) -> dict[str, Any]:
        listing = self._catalog.listing()
        total, looked = self._catalog.total_so_far(listing) if listing.entries else (None, None)
        parts = total["by_purpose"].values() if total else ()
        most = max((part["energy_it_kwh"] or 0.0 for part in parts), default=0.0)
        about = {"listing": listing, "directory": str(self._catalog.directory)}
        return about | {"total": total, "most": most, "looked": looked if listing.is_whole else None}

    def run(self, folder: RunFolder) -> str:
        """The page of one run; its record, where it cannot be read, is named and the rest shown."""
        run, fault = folder.read_run(), ""
        shown: dict[str, Any] = {"headline": [], "phases": [], "partial": "", "warnings": []}
        try:
            record = json.loads((folder.path / RECORD).read_text(encoding="utf-8"))
            require_known(record)
            shown = self._of_record(record)
        except FileNotFoundError:
            pass  # the page says that it has none
        except (OSError, *BROKEN) as error:
            fault = f"{RECORD} cannot be shown: {error}"
        files = [name for name in (RECORD, "report.html", "report.md") if (folder.path / name).is_file()]
        about = {key: run.get(key) for key in ("purpose", "name", "created_unix_s", "ended_unix_s")}
        place = {"name": folder.path.name, "run": about, "fault": fault, "files": files}
        return self._render("run", **place, **shown, **self._now(folder))

    def state(self, folder: RunFolder) -> str:
        """The part of a run's page that changes while it goes on."""
        return self._render("state", name=folder.path.name, **self._now(folder))

    def _of_record(self, record: dict[str, Any]) -> dict[str, Any]:
        from dashboards.report import headline, state_line  # brings matplotlib along, which the list does without

        phases = record["energy"]["phases"]
        if record["energy"]["energy_it_kwh"] is None:  # some versions wrote 0 where nothing was read
            phases = [part | {"energy_kwh": None, "share": None} for part in phases]
        phases = sorted(phases, key=lambda part: -(part["energy_kwh"] or 0.0))
        most = max((part["share"] or 0.0 for part in phases), default=0.0)
        shown = [part | {"width": round(100 * (part["share"] or 0.0) / most, 1) if most else 0.0} for part in phases]
        quality = record["quality"]
        return {
            "headline": headline(record),
            "phases": shown,
            "partial": state_line(record) if record["run"]["partial"] else "",
            "warnings": [*quality["warnings"], *(f"damaged: {each}" for each in quality["damaged"])],
        }

    def _now(self, folder: RunFolder) -> dict[str, Any]:
        empty: dict[str, Any] = {"document": None, "status": "", "doubt": None, "is_live": False, "fault_live": ""}
        empty |= {"cells": [], "scale": "", "cards": [], "nodes_left": 0, "error": None, "budget": []}
        empty["is_measured"] = False
        try:
            live = self._read_live(folder)
        except FileNotFoundError:
            raise
        except (OSError, *BROKEN) as error:
            run = folder.read_run()
            return empty | {"status": str(run.get("status")), "fault_live": str(error), "error": run.get("error")}
        found = empty | {"status": live.status, "doubt": live.doubt, "error": live.run.get("error")}
        found["is_live"] = live.runs or live.at_work
        found["is_measured"] = live.run.get("kind") == MEASURE
        try:
            found |= self._of_document(live)
        except BROKEN as error:
            found["fault_live"] = f"live.json is not understood ({error}); it can be deleted, the run does not need it"
        return found

    def _of_document(self, live: Live) -> dict[str, Any]:
        document = live.document if live.runs or live.status == "lost" else None
        if document is None and not live.runs:
            return self._of_last_devices(live)
        nodes = read_nodes(live.folder, time.time()) if document is None or _unlisted(document) else None
        if nodes is not None:  # before a training, and of many devices: each node's are in a file of its own
            told = [(node.name, _devices(node)) for node in nodes]
        else:
            assert document is not None
            told = [
                (node["node"], [(d["uuid"], d["name"], d["kind"], d["power_w"], d["missing"]) for d in node["devices"]])
                for node in document["nodes"]
            ]
        cells, scale = heat_map(told)
        found = {"cells": cells, "scale": scale, "nodes_left": sum(not devices for _, devices in told)}
        if document is None:
            return found | {"cards": meter_cards(nodes or [])}
        budget, by_hour = [budget_bar(each) for each in document["budget"]], (live.folder.path / SERIES).exists()
        return found | {"document": document, "cards": live_cards(document, by_hour), "budget": budget}

    def _of_last_devices(self, live: Live) -> dict[str, Any]:
        """Of a run that has ended, the mean power of each device by its record."""
        try:
            record = json.loads((live.folder.path / RECORD).read_text(encoding="utf-8"))
            require_known(record)
            nodes: dict[str, list[Any]] = {}
            for each in record["energy"]["devices"]:
                known_s = _known_s(record["energy"], each)
                known = known_s > 0 and each["energy_kwh"] is not None
                mean_w = each["energy_kwh"] * JOULE_PER_KWH / known_s if known else None
                nodes.setdefault(each["node"], []).append((each["uuid"], each["name"], each["kind"], mean_w, None))
        except (OSError, *BROKEN):
            return {}  # the page says what is wrong with the record
        cells, scale = heat_map(nodes.items())
        return {"cells": cells, "scale": f"mean of the time that was metered; {scale}" if scale else ""}


def _known_s(energy: dict[str, Any], device: dict[str, Any]) -> float:
    """Time in s of which the energy of a device is known, by a record. One from before this was noted has it of all
    attempts, without what was not read: too long of a device that came late."""
    if "metered_s" in device:
        return float(device["metered_s"] or 0.0)
    crash = next((part for part in energy["phases"] if part["phase"] == "gap"), {"seconds": 0.0, "energy_kwh": 0.0})
    tells = device["method"] == "counter" and crash["energy_kwh"]  # of the time between a crash and the restart too
    lost_s = max(0.0, device["gap_s"] - crash["seconds"])
    return float(sum(part["seconds"] for part in energy["attempts"]) - lost_s + (crash["seconds"] if tells else 0.0))


def _unlisted(document: dict[str, Any]) -> bool:
    """Whether a live state leaves out the devices of its nodes."""
    return any(node["devices"] is None for node in document["nodes"])


def _devices(node: Node) -> list[tuple[str, str, str, float | None, Any]]:
    """Of a node as `heat_map` takes them."""
    return [(each.uuid, each.name, each.kind, each.power_w, each.missing) for each in node.devices or []]


def _metered(nodes: list[Node]) -> dict[str, Any]:
    """What a row of the list says of a run without figures of a training: at its start, or of `measure`."""
    energy, power = meter_cards(nodes) or [{"value": UNKNOWN}, {"value": ""}]
    return {"energy": energy["value"], "sofar": power["value"]}


def _count(value: float | None) -> str:
    return human.human_count(value) if value else UNKNOWN


def _loss(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.3f}"


def _carbon(tonnes: float | None) -> str:
    """Without the unit's second half, which stands in the head of the column."""
    return UNKNOWN if tonnes is None else human.human_carbon(tonnes).removesuffix(" CO₂eq")


def _query(query: Query, **changes: Any) -> str:
    """The arguments of a link: those of the page with changes, without what is the usual."""
    now = {"q": query.words, "sort": query.sort, "order": "down" if query.descending else "up"} | changes
    usual = Query.of({"sort": str(now["sort"])})
    kept = {
        "q": now["q"],
        "sort": "" if now["sort"] == "started" else now["sort"],
        "order": "" if (now["order"] == "down") == usual.descending else now["order"],
        "page": "" if now["page"] == 1 else now["page"],
    }
    arguments = urlencode({key: value for key, value in kept.items() if value != ""}, errors="surrogateescape")
    return f"?{arguments}" if arguments else ""
