"""What the nodes of a run use now, from the files that their meters replace every second, for the driver.

The record books what meters read, and of the time between two meters of a node what its counters grew by. So does
this. A silent node may still be at work: until its next reading its last power is held, for HELD_S at the most, and no
longer once Ray calls it dead. A node that the run has nothing to do with any more takes its file away.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from energy.accounting.curves import counted_between
from energy.accounting.uncertainty import NODE_LEAST
from energy.metering.live import SILENT_S
from energy.runs import RunFolder

FEW_DEVICES = 64
ASK_EVERY_S = 5.0  # how often Ray is asked whether the silent ones live
# A node that lives may be silent for its full disk, or for storage that is away; its record will have it. Ray sees
# within a minute that one is dead.
HELD_S = 600.0
METER = ("meter_pid", "boot_id", "began_monotonic_s")  # another meter, which counts from 0, differs in one of them


@dataclass
class _Node:
    figures: dict[str, Any]
    seen_s: float  # when the driver saw these figures first
    changed_ns: int
    base_j: float | None = None  # of the meters before this one

    @property
    def power_w(self) -> float | None:
        """W of the devices whose power is known; None where it is known of none."""
        known = [device["power_w"] for device in self.figures["devices"] if device["counted"]]
        power_w = self.figures["power_w"]
        return None if power_w is None or all(of_it is None for of_it in known) else float(power_w)

    @property
    def energy_j(self) -> float | None:
        """J that were read so far; None where nothing was."""
        return _sum([self.base_j, self.figures["energy_j"]])


@dataclass
class NodesNow:
    """All nodes of one attempt. `used`: UUIDs of the GPUs that its ranks hold, where others use the cluster too.

    alive(): names that living nodes go by, None where that is not known. `dead`: nodes that are silent and not there.
    unread(path, error): told of what the storage does not show at this moment.
    """

    folder: RunFolder
    nodes: dict[str, _Node] = field(default_factory=dict)
    used: Collection[str] | None = None
    alive: Callable[[], Collection[str] | None] = field(default_factory=lambda: living_names)
    unread: Callable[[Path, OSError], None] = field(default=lambda path, error: None)
    dead: set[str] = field(default_factory=set)
    _asked_s: float = field(default=-math.inf, init=False)

    def look(self, now_s: float) -> None:
        """Reads the files that changed since the last look, and asks for those that are silent."""
        self._read_all(now_s)
        silent = {name for name, node in self.nodes.items() if not self._speaks(node, now_s)}
        self.dead &= silent
        if silent - self.dead and now_s - self._asked_s >= ASK_EVERY_S:
            self._asked_s = now_s
            alive = self.alive()
            if alive is not None:
                self.dead |= silent - set(alive)

    def _read_all(self, now_s: float) -> None:
        live = self.folder.path / "live"
        try:
            paths = [path for path in live.iterdir() if path.suffix == ".json"]
        except FileNotFoundError:  # no meter has written anything yet, or the last one has ended
            paths = []
        except OSError as error:  # nobody knows who went: all stand as they were seen last
            self.unread(live, error)
            return
        for path in paths:
            self._read(path, now_s)
        for gone in set(self.nodes) - {path.stem for path in paths}:
            del self.nodes[gone]

    def _read(self, path: Path, now_s: float) -> None:
        known = self.nodes.get(path.stem)
        try:
            changed_ns = path.stat().st_mtime_ns
            if known is not None and known.changed_ns == changed_ns:
                return
            figures = self._own(json.loads(path.read_bytes()))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return  # taken away or replaced in this moment: the next look is half a second away
        except OSError as error:
            self.unread(path, error)
            return
        if known is None:
            self.nodes[path.stem] = _Node(figures, now_s, changed_ns)
            return
        if any(figures[key] != known.figures[key] for key in METER):
            known.base_j = _sum([known.energy_j, _unread_j(known.figures, figures) or None])
        elif figures["energy_j"] is None:
            figures["energy_j"] = known.figures["energy_j"]  # what was read stands
        known.figures, known.seen_s, known.changed_ns = figures, now_s, changed_ns

    def _own(self, figures: dict[str, Any]) -> dict[str, Any]:
        """The figures without the GPUs of a shared node that no rank holds, as the record will have them: a sensor of
        the whole node has read these too, and one that then shows too little of the run's own is not believed."""
        if self.used is None:
            return figures
        devices = figures["devices"]
        others = [device for device in devices if device["kind"] == "gpu" and device["uuid"] not in self.used]
        figures["devices"] = own = [device for device in devices if device not in others]
        parts = [device for device in own if device["kind"] != "node"]
        for key in ("power_w", "energy_j"):
            if figures[key] is None or all(device[key] is None for device in own):
                figures[key] = None
                continue
            figures[key] -= sum(device[key] or 0.0 for device in others)
            whole = sum(device[key] or 0.0 for device in parts)
            gpus = sum(device[key] or 0.0 for device in parts if device["kind"] == "gpu")
            # As in energy.metering.live: its energy lacks what it did not read, and is never below that of the parts.
            if figures[key] < (NODE_LEAST * gpus if key == "power_w" else whole):
                figures[key] = whole
        return figures

    @property
    def energy_j(self) -> float | None:
        """IT energy in J of this attempt as it was last read; None before anything was."""
        return _sum(node.energy_j for node in self.nodes.values())

    def power_w(self, now_s: float) -> float | None:
        """W of all nodes that are not silent; None when all are."""
        return _sum(node.power_w for node in self.nodes.values() if self._speaks(node, now_s))

    def _speaks(self, node: _Node, now_s: float) -> bool:
        return now_s - node.seen_s < SILENT_S

    def held_w(self, now_s: float) -> float | None:
        """W that `energy_until` grows by: what nodes draw, or drew last, that are not known to be dead."""
        return _sum(
            node.power_w for name, node in self.nodes.items() if name not in self.dead and now_s - node.seen_s < HELD_S
        )

    def energy_until(self, now_s: float) -> float | None:
        """`energy_j` and, of each node, its power held from its last reading to now: that has been used up as well.
        Less than before when a node turns out to be dead."""
        return _sum(of for name, node in self.nodes.items() for of in (node.energy_j, self._held_j(name, node, now_s)))

    def _held_j(self, name: str, node: _Node, now_s: float) -> float | None:
        held_s = 0.0 if name in self.dead else min(now_s - node.seen_s, HELD_S)
        return None if node.power_w is None else node.power_w * held_s

    @property
    def read_s(self) -> float | None:
        return max((node.seen_s for node in self.nodes.values()), default=None)

    def documents(self, now_s: float, now_unix_s: float) -> list[dict[str, Any]]:
        """{node, power_w, energy_j, read_unix_s, missing, devices} of each. `power_w` is null where it is silent, both
        where no device of it was read. Devices are listed where there are few: of many, each node's are in its own
        live/<node>.json."""
        few = sum(len(node.figures["devices"]) for node in self.nodes.values()) <= FEW_DEVICES
        return [
            {
                "node": name,
                "power_w": node.power_w if self._speaks(node, now_s) else None,
                "energy_j": node.energy_j,
                "read_unix_s": now_unix_s - (now_s - node.seen_s),
                "missing": node.figures["missing"],
                "devices": node.figures["devices"] if few else None,
            }
            for name, node in sorted(self.nodes.items())
        ]


def _sum(known: Iterable[float | None]) -> float | None:
    """Of what is known; None where nothing is."""
    values = [value for value in known if value is not None]
    return math.fsum(values) if values else None


def living_names() -> set[str] | None:
    """All names that meters may have given to the cluster's living nodes (orchestrator.cluster.meters.node_names); None
    where Ray does not say who lives."""
    import ray  # as late as the driver does, which sets Ray's environment first

    if not ray.is_initialized():
        return None
    try:
        hosts = {(node["NodeManagerHostname"], node["NodeManagerAddress"]) for node in ray.nodes() if node["Alive"]}
    except Exception:  # Ray raises many unrelated types here; all mean that nobody knows
        return None
    return {name for host, address in hosts for name in (host, f"{host}-{address}")}


def _unread_j(old: dict[str, Any], new: dict[str, Any]) -> float:
    """J that a node used between the last figures of a meter and the first of the next, without what that has read: as
    the record will book it, which knows nothing of devices without a counter, nor of a machine that was restarted."""
    before = {device["uuid"]: device for device in old["devices"]}
    boots, passed_s = (old["boot_id"], new["boot_id"]), new["time_unix_s"] - old["time_unix_s"]
    parts_j: list[float] = []
    node_j = [0.0]
    for device in new["devices"]:
        counters_mj = (before.get(device["uuid"], {}).get("counter_mj"), device.get("counter_mj"))
        used_j = counted_between(boots, counters_mj, passed_s, device)
        if not isinstance(used_j, str):
            (node_j if device["kind"] == "node" else parts_j).append(max(0.0, used_j - (device["energy_j"] or 0.0)))
    return max(math.fsum(parts_j), *node_j)
