"""The page of the cluster: nodes as rows, GPUs as cells coloured by their power over its limit."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment

from dashboards.server.answers import as_csv, as_json, html
from dashboards.server.catalog import Catalog, FolderFault, ReadLive
from dashboards.server.fleet import AT_LIMIT, RunNow, read_fleet
from dashboards.server.nodes import Device, Node
from dashboards.server.parts import HEAT_STEPS, UNKNOWN
from dashboards.server.web import Arguments, Response
from energy import human

LOOK_EVERY_S = 1.0  # however many look
REST = 5  # a look that takes so long is repeated after so many times as long
DENSE_FROM = 17  # devices of a node: so many cells have no room for figures
MOST_NODES = 512  # rows of a run; the JSON has all
NAMED = 3  # devices of a node by name
UNREAD_CLASS, NO_LIMIT_CLASS = "unread", "nolimit"
_WATT: human.Scales = ((1e7, 1e6, "MW"), (1e4, 1e3, "kW"), (0.0, 1.0, "W"))


class Cluster:
    """Answers /cluster, its part that changes (now), and the same as JSON and CSV."""

    def __init__(self, catalog: Catalog, read_live: ReadLive, environment: Environment) -> None:
        self._catalog, self._read_live, self._environment = catalog, read_live, environment
        self._lock, self._again_s = threading.Lock(), 0.0
        self._seen: tuple[list[RunNow], list[str], float, str] = ([], [], 0.0, "")

    def respond(self, what: str, arguments: Arguments) -> Response:
        """what: "" for the page, "now" for what changes of it, "json" or "csv": FolderFault where the runs folder
        cannot be read."""
        runs, wrong, now, fault = self._look()
        if fault and what in ("json", "csv"):  # a page says what is wrong, and these would be empty
            raise FolderFault(fault)
        wanted = set(arguments.every("run")) - {""}
        shown = [run for run in runs if not wanted or run.name in wanted]
        if what == "json":
            return as_json({"time_unix_s": now, "runs": [run.as_json() for run in shown], "not_shown": wrong},
                           "cluster.json")  # fmt: skip
        if what == "csv":
            return as_csv("cluster.csv", [row for run in shown for row in _flat(run)])
        context = {
            "runs": [_run(run) for run in shown],
            "sums": _sums(shown),
            "wanted": sorted(wanted),
            "left": len(runs) - len(shown),
            "wrong": wrong,
            "fault": fault,
            "now_unix_s": now,
            "scale": [f"h{step}" for step in range(HEAT_STEPS + 1)],
            "coloured": any(gpu.share is not None for run in shown for node in run.nodes for gpu in node.gpus),
            "uncoloured": any(not gpu.limit_w for run in shown for node in run.nodes for gpu in node.gpus),
            "at_limit": human.percent(AT_LIMIT).replace(".0 ", " "),
        }
        template = "fleet.html.j2" if what == "now" else "cluster.html.j2"
        return html(self._environment.get_template(template).render(**context))

    def _look(self) -> tuple[list[RunNow], list[str], float, str]:
        """(live runs, what is wrong with others, when in unix s, why the runs folder cannot be read)."""
        with self._lock:
            began = time.monotonic()
            if began >= self._again_s:
                listing = self._catalog.listing()
                self._seen = (*read_fleet(listing, self._read_live), time.time(), listing.fault)
                self._again_s = time.monotonic() + max(LOOK_EVERY_S, REST * (time.monotonic() - began))
            return self._seen


def _sums(runs: Sequence[RunNow]) -> dict[str, Any]:
    """Of all nodes together, each device once though two runs may share its node."""
    devices: dict[tuple[str, str], Device] = {}
    nodes: dict[str, bool] = {}
    besides_w: dict[str, float] = {}  # of each node, what it has beside GPUs, which may be another run's
    for run in runs:
        for node in run.nodes:
            nodes[node.name] = nodes.get(node.name, True) and node.power_w is None
            for device in node.devices or []:
                if (known := devices.get((node.name, device.uuid))) is None or known.power_w is None:
                    devices[node.name, device.uuid] = device
            if node.power_w is not None:
                beside_w = node.power_w - math.fsum(gpu.power_w or 0.0 for gpu in node.gpus)
                besides_w[node.name] = max(besides_w.get(node.name, beside_w), beside_w)
    gpus = [device for device in devices.values() if device.kind == "gpu"]
    read = [device.power_w for device in gpus if device.power_w is not None]
    lacks = {"node": sum(nodes.values()), "run": sum(not run.nodes for run in runs)}
    return {
        "runs": len(runs),
        "nodes": len(nodes),
        "nodes_unknown": lacks["node"],
        "gpus": len(gpus),
        "gpus_read": len(read),
        "gpu_power": _power(sum(read)) if read else UNKNOWN,
        "power": _power(math.fsum([*besides_w.values(), *read])) if besides_w else UNKNOWN,
        "power_lacks": " and ".join(f"{n} {what}{'s' * (n != 1)}" for what, n in lacks.items() if n),
    }


def _run(run: RunNow) -> dict[str, Any]:
    return {
        "name": run.name,
        "doubt": run.doubt,
        "phase": run.phase or ("a command that is measured" if run.measured else "no figures of a training yet"),
        "trains": not run.measured,
        "step": f"step {run.step:,} of {run.total_steps:,}" if run.step and run.total_steps else "",
        "power": UNKNOWN if run.power_w is None else f"{'at least ' * bool(run.power_lacks)}{_power(run.power_w)}",
        "rate": UNKNOWN if run.tokens_per_s is None else human.human_count(run.tokens_per_s),
        "per_token": UNKNOWN if run.joule_per_token is None else human.human_joule(run.joule_per_token),
        "stragglers": run.stragglers,
        "faults": run.faults,
        "nodes": [_node(node) for node in run.nodes[:MOST_NODES]],
        "more": max(0, len(run.nodes) - MOST_NODES),
        "limits": _limits(run),
        "preflight": run.preflight,
    }  # fmt: skip


def _limits(run: RunNow) -> list[str]:
    """Each kind of GPU of the run with its limits, and where these come from."""
    found: dict[str, set[str]] = {}
    for gpu in (gpu for node in run.nodes for gpu in node.gpus):
        limit = "limit unknown" if not gpu.limit_w else f"{gpu.limit_w:,.0f} W {'rated' if gpu.rated else 'in force'}"
        found.setdefault(gpu.name, set()).add(limit)
    return [f"{name}: {', '.join(sorted(limits))}" for name, limits in sorted(found.items())]


def _node(node: Node) -> dict[str, Any]:
    against = node.against_median
    return {
        "name": node.name,
        "cells": [_cell(device) for device in node.devices or []],
        "dense": len(node.devices or []) >= DENSE_FROM,
        "no_limit": _without_limit(node),
        "listed": node.devices is not None,
        "power": UNKNOWN if node.power_w is None else _power(node.power_w),
        "per_token": UNKNOWN if node.joule_per_token is None else human.human_joule(node.joule_per_token),
        "against": UNKNOWN if against is None else _percent_apart(against),
        "worse": against is not None and against > 1.05,
        **_health(node),
    }


def _without_limit(node: Node) -> str:
    """How many of a node's GPUs cannot be coloured, in words."""
    count, all_ = sum(not gpu.limit_w for gpu in node.gpus), len(node.gpus)
    if not count or node.silent:
        return ""
    return "power limit unknown" if count == all_ else f"power limit of {count} of {all_} GPUs unknown"


def _power(power_w: float) -> str:
    size, unit = human.scale_of(power_w, _WATT)
    return f"{human.digits(power_w / size)} {unit}"


def _percent_apart(ratio: float) -> str:
    apart = 100 * (ratio - 1)
    return "=" if abs(apart) < 0.5 else f"{apart:+.0f} %".replace("-", "−")


def _cell(device: Device) -> dict[str, str]:
    watts, share = device.power_w, device.share
    label = "" if device.kind == "gpu" else device.kind.upper() if len(device.kind) <= 4 else device.kind
    who = f"{device.name} {device.uuid}"
    if watts is None:
        return {"label": label, "text": "?", "class": UNREAD_CLASS, "title": f"{who}: not read: {device.missing}"}
    said = f"{who}: {human.digits(watts)} W"
    if share is None:
        limit = ", limit unknown" if device.kind == "gpu" else ""
        return {"label": label, "text": f"{watts:,.0f}", "class": NO_LIMIT_CLASS, "title": said + limit}
    step = min(HEAT_STEPS, round(HEAT_STEPS * share))
    full = " full" if share >= AT_LIMIT else ""
    limit = f"rated {device.limit_w:,.0f} W" if device.rated else f"power limit of {device.limit_w:,.0f} W"
    title = f"{said}, {human.percent(share)} of its {limit}"
    return {"label": label, "text": f"{watts:,.0f}", "class": f"h{step}{full}", "title": title}


def _health(node: Node) -> dict[str, Any]:
    """How its sensors are, in words, and whether that is well; how many GPUs draw all that they are rated for."""
    if node.silent:
        return {"health": f"silent for {human.human_time(node.age_s)}", "well": False, "full": ""}
    if node.devices is None:
        return {"health": "its devices are not told (metered by an older version)", "well": False, "full": ""}
    full = sum(gpu.share is not None and gpu.share >= AT_LIMIT for gpu in node.gpus)
    at_limit = f"{full} of {len(node.gpus)} GPUs at their limit" if full else ""
    if not node.unread:
        count = len(node.devices)
        return {"health": f"{count} of {count} read", "well": True, "full": at_limit}
    names = ", ".join(f"{device.uuid} ({device.missing})" for device in node.unread[:NAMED])
    more = f" and {len(node.unread) - NAMED} more" if len(node.unread) > NAMED else ""
    return {"health": f"{len(node.unread)} of {len(node.devices)} not read: {names}{more}", "well": False,
            "full": at_limit}  # fmt: skip


def _flat(run: RunNow) -> list[dict[str, Any]]:
    """A row a device; a node whose devices are not listed has one row of its own."""
    rows = []
    for node in run.nodes:
        about = {"run": run.name, "node": node.name, "node_power_w": node.power_w, "age_s": round(node.age_s, 1),
                 "node_joule_per_token": node.joule_per_token, "against_median": node.against_median}  # fmt: skip
        nothing = dict.fromkeys(("uuid", "name", "kind", "power_w", "limit_w", "missing", "limit_source"))
        devices: list[Device | None] = [*(node.devices or [])] or [None]
        rows += [about | (nothing if device is None else device.as_json()) for device in devices]
    return rows
