"""A node of a live run as its meter tells of it: live/<node>.json, replaced once a second."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dashboards.server.preflight import is_number
from energy.accounting.uncertainty import NODE_LEAST
from energy.factors import match_accelerator
from energy.metering.live import SILENT_S
from energy.runs import RunFolder

LARGEST_FILE = 4_000_000
SILENT = "its node is silent"


@dataclass(frozen=True)
class Device:
    """power_w: None where it was not read; limit_w: the power limit that the run's preflight saw in force, else the
    rated power by the factor tables (`rated`), None where they lack it."""

    uuid: str
    name: str
    kind: str
    power_w: float | None
    missing: str | None
    limit_w: float | None
    rated: bool = True

    @property
    def share(self) -> float | None:
        """Of its limit."""
        return None if self.power_w is None or not self.limit_w else self.power_w / self.limit_w

    def as_json(self) -> dict[str, Any]:
        told = {key: getattr(self, key) for key in ("uuid", "name", "kind", "power_w", "limit_w", "missing")}
        source = None if self.limit_w is None else "rated power" if self.rated else "preflight"
        return told | {"limit_source": source}


@dataclass
class Node:
    """A node of a run. devices: None where its file does not list them; power_w: None where it is silent."""

    name: str
    power_w: float | None
    age_s: float
    devices: list[Device] | None
    energy_j: float | None = None  # since its meter began
    joule_per_token: float | None = None
    against_median: float | None = None  # 1 is the median of the nodes that train the same model

    @property
    def silent(self) -> bool:
        return self.age_s > SILENT_S

    @property
    def gpus(self) -> list[Device]:
        return [device for device in self.devices or [] if device.kind == "gpu"]

    @property
    def unread(self) -> list[Device]:
        return [device for device in self.devices or [] if device.missing is not None]

    def as_json(self) -> dict[str, Any]:
        told = {key: getattr(self, key) for key in ("power_w", "age_s", "silent", "joule_per_token", "against_median")}
        devices = None if self.devices is None else [device.as_json() for device in self.devices]
        return {"node": self.name, **told, "devices": devices}


def read_node(
    path: Path, folder: RunFolder, now: float, own: set[str] | None = None, limits_w: Mapping[str, float] | None = None
) -> Node:
    """The node of a file of `folder`. own: UUIDs of the run's GPUs, None for all of the node; limits_w: by UUID, those
    that a preflight saw.

    OSError or ValueError, LookupError, TypeError, AttributeError for a file that cannot be read.
    """
    if not path.resolve().is_relative_to(folder.path.resolve()):
        raise ValueError("a link that leads out of the run")
    stat = path.stat()
    if stat.st_size > LARGEST_FILE:
        raise ValueError(f"more than {LARGEST_FILE // 10**6} MB")
    figures = json.loads(path.read_bytes())
    # The node's clock and the storage's need not agree with ours: it is silent where both say so.
    age_s = max(0.0, min(now - float(figures["time_unix_s"]), now - stat.st_mtime))
    power_w, energy_j = number_of(figures["power_w"]), number_of(figures.get("energy_j"))
    if figures.get("devices") is None:
        return Node(path.stem, None if age_s > SILENT_S else power_w, age_s, None, energy_j)
    devices = []
    by_whole = any(each["kind"] == "node" and each.get("counted") for each in figures["devices"])
    for each in figures["devices"]:
        device = _device(each, limits_w or {})
        if device.kind == "gpu" and own is not None and device.uuid not in own:
            counted = by_whole or each.get("counted")  # it is in the reading of a sensor of the whole node
            power_w = None if power_w is None else power_w - (device.power_w or 0.0) * bool(counted)
            continue  # of a shared node: no rank of this run holds it
        devices.append(device)
    if own is not None and by_whole and power_w is not None:
        parts = [device for device in devices if device.kind != "node" and device.power_w is not None]
        if power_w < NODE_LEAST * math.fsum(device.power_w or 0.0 for device in parts if device.kind == "gpu"):
            power_w = math.fsum(device.power_w or 0.0 for device in parts)  # of the run too little: it is not believed
    if age_s > SILENT_S:  # what it said last is not of now
        devices = [replace(device, power_w=None, missing=SILENT) for device in devices]
    if not any(device.power_w is not None for device in devices):
        power_w = None
    return Node(path.stem, power_w, age_s, sorted(devices, key=lambda device: device.kind != "gpu"), energy_j)


def read_nodes(folder: RunFolder, now: float) -> list[Node]:
    """All nodes of a live run, by name, that tell of themselves; errors as of `read_node`."""
    found = []
    for path in sorted((folder.path / "live").glob("*.json")):
        with suppress(FileNotFoundError):  # taken away in this moment: the run has left the node
            found.append(read_node(path, folder, now))
    return found


def _device(each: Mapping[str, Any], limits_w: Mapping[str, float]) -> Device:
    uuid, kind, name = str(each["uuid"]), str(each["kind"]), str(each["name"])
    power_w = None if each["missing"] else number_of(each["power_w"])
    missing = None if power_w is not None else str(each["missing"] or "silent")
    if uuid in limits_w:
        return Device(uuid, name, kind, power_w, missing, limits_w[uuid], rated=False)
    known = match_accelerator(name) if kind == "gpu" else None
    return Device(uuid, name, kind, power_w, missing, known.tdp_w if known else None)


def number_of(value: Any) -> float | None:
    """None also for what is no finite number."""
    return float(value) if is_number(value) else None
