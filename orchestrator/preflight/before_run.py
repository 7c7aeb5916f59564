"""Preflight as people ask for it: `hoofprint doctor --cluster`, and as the first part of a run."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from energy.runs import RunFolder, write_json
from orchestrator.checkpoints.probe import refusal_here
from orchestrator.cluster.reach import require_cluster
from orchestrator.driver.endings import cause
from orchestrator.screens.preflight import Stages, in_lines
from orchestrator.screens.run import RayLog, RunScreen
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.file import BadInput

PREFLIGHT = "preflight.json"  # in the run folder: of its last start
STORAGE_LIMIT_S = 60.0  # a storage that takes longer for a few bytes takes hours for checkpoints


class PreflightFailed(RuntimeError):
    """There is no cluster to look at; or something was found, and the spec says `preflight: stop`."""


def examine_cluster(address: str | None, runs_dir: Path, slow_below: float, limit_s: float) -> dict[str, Any]:
    """Joins the cluster at `address` (else of RAY_ADDRESS), or starts a local Ray, and checks every node of it.

    BadInput where it does not answer, has no room or the storage cannot be written; PreflightFailed where Ray itself
    fails, with the file of the temporary folder that holds what it said.
    """
    joined = address or os.environ.get("RAY_ADDRESS") or ""
    if joined.startswith("ray://"):
        raise BadInput(
            f"{joined}: Ray's client does not see the nodes one by one; on a machine of the cluster give "
            "HOST:PORT as `ray start --head` prints it; nothing was started"
        )
    require_cluster(address, "--address")
    import ray

    from orchestrator.driver.launch import open_ray
    from orchestrator.preflight.check import preflight

    descriptor, log = tempfile.mkstemp(prefix="hoofprint-preflight-", suffix=".log")
    os.close(descriptor)
    try:
        with Stages() as tell, RayLog(Path(log)):
            tell(0, None, f"joining Ray at {joined}" if joined else "starting Ray")
            open_ray(address)
            try:
                result = preflight(runs_dir, tell, slow_below=slow_below, limit_s=limit_s)
            finally:
                ray.shutdown()
    except (BadInput, KeyboardInterrupt):
        os.unlink(log)
        raise
    except Exception as error:  # Ray raises many unrelated types
        raise PreflightFailed(f"{cause(error)}; what Ray said: {log}") from error
    os.unlink(log)
    return result


def before_preparing(experiment: Experiment, run_id: str, limit_s: float = STORAGE_LIMIT_S) -> None:
    """BadInput where copies of checkpoints cannot be written, before a corpus or Ray is there.

    The ranks of a Ray of our own have this machine and environment. Of a cluster, whose nodes `before_training` asks,
    only what no node could is refused here.
    """
    uri = experiment.checkpoint.copy_to
    if uri is None:
        return
    own = (experiment.cluster.address or os.environ.get("RAY_ADDRESS") or "local") == "local"
    refusal = refusal_here(uri, run_id if own else None, limit_s)
    if refusal is not None:
        raise BadInput(f"{refusal}; nothing was started")


def before_training(experiment: Experiment, folder: RunFolder, device: str, screen: RunScreen) -> None:
    """The preflight of a run where `cluster.preflight` asks for one; leaves preflight.json.

    BadInput, in any case, where a node of a joined cluster does not see the run's folder, or cannot write the copies of
    checkpoints that the spec wants; PreflightFailed where something was found and `cluster.preflight` is `stop`.
    """
    from orchestrator.cluster.meters import joined

    if joined():
        from orchestrator.preflight.check import LIMIT_S
        from orchestrator.preflight.storage import require_run_seen, require_storage_of_nodes

        require_run_seen(folder.path, device, screen.note, STORAGE_LIMIT_S)
        if (copy_to := experiment.checkpoint.copy_to) is not None:
            require_storage_of_nodes(copy_to, folder.path.name, device, screen.note, LIMIT_S)
    if experiment.cluster.preflight == "off":
        return
    import ray

    from orchestrator.preflight.check import preflight

    try:
        result = preflight(folder.path, lambda done, of, text: screen.progress(0, None, text), device=device)
    except (BadInput, ray.exceptions.RayError) as refusal:  # no room now, or no answer: the training has its own waits
        if experiment.cluster.preflight == "stop":
            raise
        screen.note(f"no preflight: {refusal}")
        return
    write_json(folder.path / PREFLIGHT, result)
    for line in in_lines(result):
        screen.note(line)
    if experiment.cluster.preflight == "stop" and not result["ok"]:
        first, more = result["findings"][0], len(result["findings"]) - 1
        where = " ".join(filter(None, (first["node"], first["gpu"])))
        said = f"{where}: {first['said']}{f', and {more} more' if more else ''}"
        raise PreflightFailed(f"{said} (cluster.preflight is stop; {PREFLIGHT} has all)")
