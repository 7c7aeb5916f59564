"""Preflight: what each node of a cluster does before the first step, and which of them are slow.

Two kinds of actors: a check on each node, which takes nothing that Ray counts, and ranks, one for each GPU (on a
cluster without GPUs one for a node's CPUs), which hold what they measure, so that no other job disturbs them. A node
that others use in part is not measured, and said to be busy. Each answer has a time limit, after which the node is
named and the others go on.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from orchestrator.preflight.measure import Measuring, Progress
from orchestrator.preflight.nodes import cluster_nodes
from orchestrator.preflight.rules import SLOW_BELOW, find_faults
from orchestrator.spec.file import BadInput

LIMIT_S = 120.0  # for each answer of a node; importing torch from a network drive takes a minute


def preflight(
    runs_dir: Path,
    progress: Progress,
    *,
    device: str = "auto",
    slow_below: float = SLOW_BELOW,
    limit_s: float = LIMIT_S,
) -> dict[str, Any]:
    """Checks every node of the cluster that this process has joined; the document of `doctor --cluster --json`.

    device: cpu or cuda, what ranks will compute on; auto: GPUs where there are any. slow_below: a node or GPU whose
    figure is less than this share of the median of its like is slow. limit_s: for each answer of a node.
    BadInput where nothing can be written under `runs_dir`, or where no node has room.
    """
    begun, nodes = time.time(), cluster_nodes()
    if device == "auto":
        device = "cuda" if any(node.gpus for node in nodes) else "cpu"
    measuring = Measuring(nodes, device, limit_s, progress)
    place = probe_folder(runs_dir)
    try:
        fleet = measuring.run(runs_dir, place)
    finally:
        measuring.end()
        shutil.rmtree(place, ignore_errors=True)  # on a network drive a killed node's file may outlast it for a moment
    documents = [node.document for node in nodes]
    faults = find_faults(documents, fleet, slow_below)
    return {
        "ok": not faults,
        "time_unix_s": begun,
        "duration_s": time.time() - begun,
        "device": device,
        "slow_below": slow_below,
        "findings": [fault.as_json() for fault in faults],
        "all_reduce": fleet,
        "nodes": documents,
    }


def probe_folder(runs_dir: Path) -> Path:
    """A new folder on the storage of the runs, which the nodes then look for."""
    parent = runs_dir.absolute()
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    try:
        return Path(tempfile.mkdtemp(prefix=".preflight-", dir=parent))
    except OSError as error:
        raise BadInput(
            f"{parent} cannot be written ({error.strerror}), where {runs_dir} is to lie; give another folder with "
            "--runs; nothing was measured"
        ) from error
