"""An orderly end from outside: a run checkpoints, writes record and report, and then ends, wherever its driver is.

Both ways end in the file `stop` of the run's folder, which rank 0 looks for at each step. Ray itself leaves a job 3 s
between SIGTERM and SIGKILL (measured; RAY_JOB_STOP_WAIT_TIME_S in the job's own environment changes it).
"""

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from energy.run_holder import Holder, holder, is_held
from energy.run_version import require_known
from energy.runs import LOCK, STOP_FILE, RunFolder
from orchestrator.checkpoints.saved import newest_complete, step_of
from orchestrator.jobs.server import POLL_S, Job, list_jobs
from orchestrator.spec.file import BadInput

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

ENOUGH_S = 60.0  # a job that Ray gives less than this is not stopped through Ray
ASKED, NO_RUN_YET, NOT_SEEN = 0, 3, 4  # exit codes of the helper
TRIES = 5


def run_folder(run: str, runs_dir: Path) -> RunFolder:
    """The run of that name in `runs_dir`, or at that path. BadInput where there is none, ValueError where a newer
    hoofprint wrote it, for which a stop may be something else."""
    for path in (runs_dir / run, Path(run)):
        if (path / "run.json").exists():
            require_known(path)
            return RunFolder(path)
    raise BadInput(
        f"no run {run!r} in {runs_dir}: give its folder's name (and --runs), its path, or for a job --address"
    )


@dataclass(frozen=True)
class Asked:
    """A run that was asked to end, and who has it."""

    folder: RunFolder
    holder: Holder | None


def ask_folder(run: str, runs_dir: Path) -> Asked:
    """Asks a run whose folder is reached from here; BadInput when nobody works on it."""
    folder = run_folder(run, runs_dir)
    if not is_held(folder.path):
        status = folder.read_run().get("status")
        said = "its process died before it could say how it ended" if status == "running" else f"it is {status}"
        raise BadInput(f"{folder.path} is not at work: {said}")
    if not (folder.path / "experiment.yaml").exists():
        raise BadInput(f"{folder.path} is of `hoofprint measure`: it ends with the command that it measures")
    (folder.path / STOP_FILE).touch()
    return Asked(folder, holder(folder.path))


def wait_for_end(asked: Asked) -> None:
    """Until its driver has let go of the run, with record and report written."""
    while is_held(asked.folder.path):
        time.sleep(POLL_S)


def as_it_stands(folder: RunFolder) -> dict[str, Any]:
    """{run, path, status, error, checkpoint_step, report}: of a run that was not waited for, as it is so far. The step
    is that of its newest whole checkpoint, `report` the path of the report; None where there is none."""
    told, newest, report = folder.read_run(), newest_complete(folder.path / "checkpoints"), folder.path / "report.html"
    return {
        "run": folder.path.name,
        "path": str(folder.path),
        "status": told.get("status"),
        "error": told.get("error"),
        "checkpoint_step": None if newest is None else step_of(newest),
        "report": str(report) if report.exists() else None,
    }


def ask_job(client: "JobSubmissionClient", job: Job, say: Callable[[str], None]) -> None:
    """Asks a run that is a Ray job; RuntimeError when the request did not reach it.

    Ray's own stop where it leaves the job time enough. For any other job a helper job, beside the run's driver on its
    node, finds the run's folder by the lock that the driver holds, and puts the request there.
    """
    if job.stop_wait_s >= ENOUGH_S:
        client.stop_job(job.id)
        return
    say(f"Ray would leave {job.id} {job.stop_wait_s:g} s: asking the run itself, by a helper job on its node")
    for _ in range(TRIES):
        code = _send_helper(client, job)
        if code == ASKED:
            return
        # It may have begun meanwhile, on a node that nobody knew of.
        now = next((each for each in list_jobs(client)[0] if each.id == job.id), None)
        if now is None or not now.live:
            return
        if code == NO_RUN_YET or now.node_id is None:
            client.stop_job(job.id)  # it has no run folder yet: nothing is lost
            return
        job = now
    raise RuntimeError(
        f"the run could not be asked to stop: its driver is not to be seen on its node (in a container, or another "
        f"user's); put an empty file {STOP_FILE} into its folder, or ask Ray to kill it: ray job stop {job.id}"
    )


def _send_helper(client: "JobSubmissionClient", job: Job) -> int:
    """The exit code of a helper job beside the driver of `job`; RuntimeError when it could not do its work."""
    node = None if job.node_id is None else {"ray.io/node-id": job.node_id}
    helper = client.submit_job(entrypoint=helper_command(job.id), entrypoint_label_selector=node)
    while not client.get_job_status(helper).is_terminal():
        time.sleep(POLL_S)
    code = client.get_job_info(helper).driver_exit_code
    if code not in (ASKED, NO_RUN_YET, NOT_SEEN):
        raise RuntimeError(f"the run could not be asked to stop: {client.get_job_logs(helper).strip()}")
    client.delete_job(helper)
    return code


def helper_command(job_id: str) -> str:
    """A shell command that puts the stop file into the folder of the job's run; it needs no code of ours."""
    wanted = f'"job_submission_id": "{job_id}"'  # as Ray puts it into the environment of a job's driver
    script = f"""
mine=$(grep -lsaF {shlex.quote(wanted)} /proc/[0-9]*/environ)
for process in $mine; do
  for open in "${{process%/environ}}"/fd/*; do
    target=$(readlink "$open") || continue
    case "$target" in
      */{LOCK}) touch "${{target%/*}}/{STOP_FILE}" || exit 1; asked=yes;;
    esac
  done
done
[ -n "$mine" ] || exit {NOT_SEEN}
[ -n "$asked" ] || exit {NO_RUN_YET}
"""
    return f"exec sh -c {shlex.quote(script)}"
