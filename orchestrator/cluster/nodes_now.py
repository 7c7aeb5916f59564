"""What the nodes of a run use now, from the files that their meters replace every second, for the driver.

A meter that is started again counts from 0; what its node took in between is then held at its last power, until the
record books what the counters grew by. A node that the run has nothing to do with any more takes its file away.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from energy.runs import RunFolder

FEW_DEVICES = 64
SILENT_S = 10.0  # a node whose file is older than this is not known to draw anything


@dataclass
class _Node:
    figures: dict[str, Any]
    seen_unix_s: float  # by the driver's clock, which the node's need not agree with
    changed_ns: int
    base_j: float = 0.0  # of the meters before this one

    @property
    def power_w(self) -> float | None:
        """W of the devices whose power is known; None where it is known of none."""
        known = [device["power_w"] for device in self.figures["devices"] if device["counted"]]
        return None if all(power_w is None for power_w in known) else float(self.figures["power_w"])

    @property
    def energy_j(self) -> float:
        return self.base_j + float(self.figures["energy_j"])


@dataclass
class NodesNow:
    """All nodes of one attempt. `used`: UUIDs of the GPUs that its ranks hold, where others use the cluster too."""

    folder: RunFolder
    nodes: dict[str, _Node] = field(default_factory=dict)
    used: Collection[str] | None = None

    def look(self, now: float) -> None:
        """Reads the files that changed since the last look."""
        there = set()
        for path in self.folder.path.glob("live/*.json"):
            there.add(path.stem)
            self._read(path, now)
        for gone in set(self.nodes) - there:
            del self.nodes[gone]

    def _read(self, path: Path, now: float) -> None:
        known = self.nodes.get(path.stem)
        try:
            changed_ns = path.stat().st_mtime_ns
            if known is not None and known.changed_ns == changed_ns:
                return
            figures = self._own(json.loads(path.read_bytes()))
        except (OSError, ValueError, KeyError, TypeError):
            return  # taken away or replaced in this moment: the next look is half a second away
        if known is None:
            self.nodes[path.stem] = _Node(figures, now, changed_ns)
            return
        if figures["meter_pid"] != known.figures["meter_pid"]:
            held_j = known.figures["power_w"] * (figures["time_unix_s"] - known.figures["time_unix_s"])
            known.base_j += known.figures["energy_j"] + max(0.0, held_j - figures["energy_j"])
        known.figures, known.seen_unix_s, known.changed_ns = figures, now, changed_ns

    def _own(self, figures: dict[str, Any]) -> dict[str, Any]:
        """The figures without the GPUs of a shared node that no rank holds, as the record will have them."""
        if self.used is None:
            return figures
        others = [
            device
            for device in figures["devices"]
            if device["kind"] == "gpu" and device["counted"] and device["uuid"] not in self.used
        ]
        for key in ("power_w", "energy_j"):
            figures[key] -= sum(device[key] or 0.0 for device in others)
        figures["devices"] = [device for device in figures["devices"] if device not in others]
        return figures

    @property
    def energy_j(self) -> float | None:
        """IT energy in J of this attempt as it was last read; None before anything was."""
        return math.fsum(node.energy_j for node in self.nodes.values()) if self.nodes else None

    def power_w(self, now: float) -> float | None:
        """W of all nodes that are not silent; None when all are."""
        known = [w for node in self.nodes.values() if (w := node.power_w) is not None and self._speaks(node, now)]
        return math.fsum(known) if known else None

    def _speaks(self, node: _Node, now: float) -> bool:
        return now - node.seen_unix_s < SILENT_S

    def energy_until(self, now: float) -> float | None:
        """`energy_j` and, of each node, its power held from its last reading to now: that has been used up as well."""
        if not self.nodes:
            return None
        return math.fsum(
            node.energy_j + node.figures["power_w"] * max(0.0, now - node.seen_unix_s) for node in self.nodes.values()
        )

    @property
    def read_unix_s(self) -> float | None:
        return max((node.seen_unix_s for node in self.nodes.values()), default=None)

    def documents(self, now: float) -> list[dict[str, Any]]:
        """{node, power_w, energy_j, read_unix_s, missing, devices} of each; `power_w` is null where it is silent, and
        devices are listed where there are few: of many, each node's are in its own live/<node>.json."""
        few = sum(len(node.figures["devices"]) for node in self.nodes.values()) <= FEW_DEVICES
        return [
            {
                "node": name,
                "power_w": node.power_w if self._speaks(node, now) else None,
                "energy_j": node.energy_j,
                "read_unix_s": node.seen_unix_s,
                "missing": node.figures["missing"],
                "devices": node.figures["devices"] if few else None,
            }
            for name, node in sorted(self.nodes.items())
        ]
