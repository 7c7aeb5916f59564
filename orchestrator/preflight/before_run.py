"""Preflight as people ask for it: `hoofprint doctor --cluster`, and as the first part of a run."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from energy.runs import RunFolder, write_json
from orchestrator.cluster.reach import require_cluster
from orchestrator.driver.endings import cause
from orchestrator.screens.preflight import Stages, in_lines
from orchestrator.screens.run import RayLog, RunScreen
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.file import BadInput

PREFLIGHT = "preflight.json"  # in the run folder: of its last start


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


def before_training(experiment: Experiment, folder: RunFolder, device: str, screen: RunScreen) -> None:
    """The preflight of a run where `cluster.preflight` asks for one; leaves preflight.json.

    PreflightFailed where something was found and it is `stop`.
    """
    if experiment.cluster.preflight == "off":
        return
    from orchestrator.preflight.check import preflight

    try:
        result = preflight(folder.path, lambda done, of, text: screen.progress(0, None, text), device=device)
    except BadInput as refusal:  # no room now: the training would wait for it
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
