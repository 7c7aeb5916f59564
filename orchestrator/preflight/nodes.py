"""The nodes of a cluster as preflight sees them, and who measures beside whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import ray
from ray._private.state import available_resources_per_node
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.cluster.meters import node_names


@dataclass(eq=False)
class Node:
    """A node: what Ray says of it, its actors, and the document that grows with their answers."""

    ray_id: str
    name: str
    host: str
    address: str
    cpus: int
    gpus: int
    free_cpus: float
    free_gpus: float
    check: Any = None
    ranks: list[Held] = field(default_factory=list)
    document: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.document = {
            "node": self.name,
            "address": self.address,
            "cpus": self.cpus,
            "gpus_counted": self.gpus,
            "cpu_name": None,
            "threads": None,
            "matmul_tflop_per_s": None,  # of its CPUs, in float32; a GPU's, in bfloat16, stands with the GPU
            "all_reduce_gb_per_s": None,
            "all_reduce_within_gb_per_s": None,  # between the GPUs of the node
            "disk_write_mb_per_s": None,
            "sees_runs": None,  # whether the driver's folder of runs is there
            "gpus": [],
            "checks": None,  # the doctor's
            "missing": {},  # {what was not measured: why}
        }

    def missing(self, what: str, why: str) -> None:
        self.document["missing"].setdefault(what, why)

    def gpu(self, uuid: str, name: str) -> dict[str, Any]:
        """The document of one of its GPUs; NVML need not show it."""
        gpus: list[dict[str, Any]] = self.document["gpus"]
        if all(gpu["uuid"] != uuid for gpu in gpus):
            gpus.append({"index": None, "uuid": uuid, "name": name})
        return next(gpu for gpu in gpus if gpu["uuid"] == uuid)


@dataclass(eq=False)
class Held:
    """A rank, the node that it is on, and its GPU."""

    node: Node
    actor: Any
    uuid: str | None = None
    name: str = ""


Pair = tuple[Node, Node]
Nodes = TypeVar("Nodes", bound=tuple[Node, ...])


def cluster_nodes() -> list[Node]:
    """The live nodes by name, with what Ray counts on each and what of it is free."""
    free, told = available_resources_per_node(), ray.nodes()
    names = node_names(told)
    nodes = [
        Node(
            ray_id=node["NodeID"],
            name=names[node["NodeID"]],
            host=node["NodeManagerHostname"],
            address=node["NodeManagerAddress"],
            cpus=int(node["Resources"].get("CPU", 0)),
            gpus=int(node["Resources"].get("GPU", 0)),
            free_cpus=free.get(node["NodeID"], {}).get("CPU", 0.0),
            free_gpus=free.get(node["NodeID"], {}).get("GPU", 0.0),
        )
        for node in told
        if node["NodeID"] in names
    ]
    return sorted(nodes, key=lambda node: node.name)


def ring(nodes: Sequence[Node]) -> list[Pair]:
    """Each node with the next, the last with the first; two nodes are one pair."""
    if len(nodes) < 2:
        return []
    return [(a, b) for a, b in zip(nodes, [*nodes[1:], nodes[0]], strict=True)][: len(nodes) if len(nodes) > 2 else 1]


def in_turn(groups: Sequence[Nodes]) -> list[list[Nodes]]:
    """Rounds of groups of nodes, so that no machine has two at a time."""
    rounds: list[tuple[set[str], list[Nodes]]] = []
    for group in groups:
        hosts = {node.host for node in group}
        for taken, members in rounds:
            if not taken & hosts:
                taken |= hosts
                members.append(group)
                break
        else:
            rounds.append((set(hosts), [group]))
    return [members for _, members in rounds]


def on(node: Node) -> NodeAffinitySchedulingStrategy:
    """Of an actor that is to be on this node and no other."""
    return NodeAffinitySchedulingStrategy(node.ray_id, soft=False)


def other(pair: Pair, node: Node) -> Node:
    return pair[1] if pair[0] is node else pair[0]
