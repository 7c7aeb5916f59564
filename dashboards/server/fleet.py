"""What every live run of a folder draws now, node by node, from the files that its meters and its driver replace.

A node's own file (live/<node>.json) has its devices and when they were read; the driver's (live.json) the tokens/s,
which GPUs the run holds and who waits for data; a preflight's (preflight.json) the power limits that were in force.
What none of them says is None.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dashboards.server.catalog import Listing, Live, ReadLive
from dashboards.server.nodes import Node, number_of, read_node
from dashboards.server.pages import BROKEN
from dashboards.server.preflight import Preflight, read_preflight
from energy.runs import MEASURE, RunFolder

HEAD_BYTES = 64 * 1024  # of a rank's metrics: where it says which GPUs it holds
AT_LIMIT = 0.98  # of its rated power: it can draw no more, and is slowed down to keep to it
LOW_POWER = 0.85  # of the median of its kind in the run: it works less than the others
MORE_PER_TOKEN = 1.1  # times the median node


@dataclass
class RunNow:
    """A live run: its nodes, and `faults`: what of its files could not be read."""

    name: str
    measured: bool = False  # a command, by `hoofprint measure`: nothing is trained
    doubt: str | None = None
    phase: str | None = None
    step: int | None = None
    total_steps: int | None = None
    tokens_per_s: float | None = None
    joule_per_token: float | None = None
    model: tuple[Any, ...] | None = None
    nodes: list[Node] = field(default_factory=list)
    stragglers: list[str] = field(default_factory=list)
    preflight: Preflight | None = None
    faults: list[str] = field(default_factory=list)

    @property
    def power_w(self) -> float | None:
        """Of the nodes that tell it: at least so much where `power_lacks` names others."""
        known = [node.power_w for node in self.nodes if node.power_w is not None]
        return math.fsum(known) if known else None

    @property
    def power_lacks(self) -> list[str]:
        """Nodes whose power is not known."""
        return [node.name for node in self.nodes if node.power_w is None]

    def as_json(self) -> dict[str, Any]:
        keys = ("doubt", "phase", "step", "total_steps", "power_w", "power_lacks", "tokens_per_s", "joule_per_token")
        told = {key: getattr(self, key) for key in (*keys, "stragglers", "faults")}
        seen = None if self.preflight is None else vars(self.preflight)
        return {"run": self.name, **told, "preflight": seen, "nodes": [node.as_json() for node in self.nodes]}


def read_fleet(listing: Listing, read_live: ReadLive) -> tuple[list[RunNow], list[str]]:
    """(the live runs by name, what is wrong with those that say that they run and are not shown)."""
    now = time.time()
    runs, wrong = [], []
    if not listing.is_whole:
        left = "the runs folder is" if listing.unread is None else f"{len(listing.unread)} folders are"
        wrong.append(f"{left} still to be read: another run that goes on may be in there")
    for entry in sorted(listing.entries, key=lambda entry: entry.name):
        if entry.status == "lost":
            wrong.append(f"{entry.name}: its process ended without a word, what it last drew is not of now")
        if entry.status != "running":
            continue
        folder = RunFolder(entry.path)
        run = RunNow(entry.name)
        live: Live | None = None
        try:
            live = read_live(folder)
            if not live.runs:
                continue  # it ended since the folder was listed
        except FileNotFoundError:
            continue
        except (OSError, *BROKEN) as error:
            run.faults.append(f"live.json cannot be read: {str(error).replace(f'{folder.path}/', '')}")
        _read_run(run, folder, live, now)
        runs.append(run)
    _against_median(runs)
    for run in runs:
        run.stragglers += outliers(run)
    return runs, wrong


def _read_run(run: RunNow, folder: RunFolder, live: Live | None, now: float) -> None:
    document: Mapping[str, Any] = {} if live is None or live.document is None else live.document
    run.doubt = None if live is None else live.doubt
    run.measured = live is not None and live.run.get("kind") == MEASURE
    try:
        own = _own_gpus(document)
        run.phase = None if document.get("phase") is None else str(document["phase"])
        run.step, run.total_steps = (_whole(document.get(key)) for key in ("step", "total_steps"))
        run.tokens_per_s = number_of(document.get("tokens_per_s"))
        run.joule_per_token = number_of(document.get("joule_per_token"))
        waiting = [_waiting(each) for each in document.get("stragglers") or ()]
        model = (live.run.get("model") or {}) if live is not None else {}
        run.model = (model["params"], model.get("sequence_length")) if model.get("params") else None
    except BROKEN as error:
        run.faults.append(f"live.json is not understood ({error}); it can be deleted, the run does not need it")
        own, waiting = None, []
    try:
        run.preflight = read_preflight(folder)
    except (OSError, *BROKEN) as error:
        run.faults.append(f"preflight.json cannot be read ({error})")
    limits_w = run.preflight.limits_w if run.preflight is not None else {}
    for path in sorted((folder.path / "live").glob("*.json")):
        try:
            run.nodes.append(read_node(path, folder, now, own, limits_w))
        except FileNotFoundError:
            continue  # taken away in this moment: the run has left the node
        except (OSError, *BROKEN) as error:
            run.faults.append(f"live/{path.name} cannot be read ({error})")
    _per_token(run)
    for rank, words in waiting:
        node = _node_of(rank, run, folder, document.get("attempt"))
        run.stragglers.append(f"rank {rank}{f' on {node}' if node else ', on a node that is not known,'} {words}")


def _own_gpus(document: Mapping[str, Any]) -> set[str] | None:
    """UUIDs of the devices that the driver counts as the run's; None where it does not list them."""
    nodes = document.get("nodes") or []
    if not nodes or any(node["devices"] is None for node in nodes):
        return None
    return {str(device["uuid"]) for node in nodes for device in node["devices"]}


def _per_token(run: RunNow) -> None:
    """J per token of each node, where every node's GPUs are known: each of them does an equal part of a step."""
    gpus = sum(len(node.gpus) for node in run.nodes)
    alone = len(run.nodes) == 1
    if not run.tokens_per_s or any(node.devices is None for node in run.nodes) or not (gpus or alone):
        return
    for node in run.nodes:
        share = 1.0 if alone else len(node.gpus) / gpus
        if node.power_w is not None and share:
            node.joule_per_token = node.power_w / (run.tokens_per_s * share)


def _against_median(runs: Iterable[RunNow]) -> None:
    """Each node against the median of all nodes that train the same model, wherever there are two or more."""
    fleets: dict[Any, list[Node]] = {}
    for run in runs:
        nodes = [node for node in run.nodes if node.joule_per_token is not None]
        fleets.setdefault(run.model or run.name, []).extend(nodes)
    for nodes in fleets.values():
        median = statistics.median(node.joule_per_token or 0.0 for node in nodes) if len(nodes) > 1 else 0.0
        for node in nodes:
            node.against_median = (node.joule_per_token or 0.0) / median if median else None


def outliers(run: RunNow) -> list[str]:
    """Who is not like the others of the run, in words: GPUs that draw less, nodes that take more for a token."""
    found = []
    by_name: dict[str, list[float]] = {}
    speaking = [node for node in run.nodes if not node.silent]
    for gpu in (gpu for node in speaking for gpu in node.gpus):
        if gpu.power_w is not None:
            by_name.setdefault(gpu.name, []).append(gpu.power_w)
    per_token = [node.joule_per_token for node in speaking if node.joule_per_token is not None]
    usual_j = statistics.median(per_token) if per_token else math.inf
    for node in speaking:
        for gpu in node.gpus:
            median_w = statistics.median(by_name.get(gpu.name, [0.0]))
            if gpu.power_w is not None and gpu.power_w < LOW_POWER * median_w:
                less = f"draws {gpu.power_w:,.0f} W, the median {gpu.name} of this run {median_w:,.0f} W"
                found.append(f"{gpu.uuid} on {node.name} {less}")
        if node.joule_per_token is not None and node.joule_per_token > MORE_PER_TOKEN * usual_j:
            more = 100 * (node.joule_per_token / usual_j - 1)
            found.append(f"{node.name} takes {more:.0f} % more energy for a token than the median node of this run")
    return found


def _waiting(straggler: Mapping[str, Any]) -> tuple[int, str]:
    waited_s, window_s = float(straggler["data_wait_s"]), float(straggler["window_s"])
    return int(straggler["rank"]), f"waits for data: {waited_s:.0f} s of the last {window_s:.0f} s"


def _node_of(rank: int, run: RunNow, folder: RunFolder, attempt: Any) -> str | None:
    """The node whose GPU the rank holds in this attempt, by what it wrote first; None where that is not known."""
    try:
        with open(folder.metrics_file(rank), "rb") as file:
            lines = file.read(HEAD_BYTES).splitlines()
    except OSError:
        return None
    for line in lines:
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue  # cut at the end of the head, or torn
        if isinstance(event, dict) and event.get("event") == "devices" and event.get("attempt") == attempt:
            held = set(event.get("uuids") or ())
            return next((node.name for node in run.nodes for gpu in node.gpus if gpu.uuid in held), None)
    return None


def _whole(value: Any) -> int | None:
    number = number_of(value)
    return None if number is None else round(number)
