"""What is different for a run whose driver is a Ray job: its folder must outlive the job, and so must its end."""

import os
from pathlib import Path

from orchestrator.driver.run_lock import ray_job
from orchestrator.spec.file import NOTHING, BadInput

STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"  # Ray's: how long `ray job stop` waits between SIGTERM and SIGKILL
STOP_WAIT_S = 3600
RAYS_STOP_WAIT_S = 3  # measured, and its default in ray.dashboard.modules.job
# Ray unpacks a job's working directory under this folder of its session, on each node, and removes it some time after.
_UNPACKED = "working_dir_files"


def require_lasting(runs_dir: Path) -> None:
    """BadInput where the run's folder would be thrown away with the job's working directory."""
    if ray_job() is not None and _UNPACKED in runs_dir.resolve().parts:
        raise BadInput(
            f"--runs {runs_dir} lies in the job's working directory, which Ray removes: give the absolute path of a "
            f"folder on storage that every node reaches; {NOTHING}"
        )


def doubts(cache: Path) -> list[str]:
    """What a job that was not submitted by `hoofprint submit` should know; nothing outside a job."""
    if ray_job() is None:
        return []
    found = []
    if _UNPACKED in cache.resolve().parts:
        found.append(
            f"data.cache {cache} lies in the job's working directory: ranks on other nodes cannot read it, "
            "and it is made anew for each job"
        )
    wait_s = os.environ.get(STOP_WAIT, str(RAYS_STOP_WAIT_S))
    if not wait_s.isdigit() or int(wait_s) <= RAYS_STOP_WAIT_S:
        found.append(
            f"`ray job stop` leaves this job {wait_s} s to end: `hoofprint stop` lets it checkpoint and report first, "
            f'as does --runtime-env-json \'{{"env_vars": {{"{STOP_WAIT}": "{STOP_WAIT_S}"}}}}\' of `ray job submit`'
        )
    return found
