"""Runs as Ray jobs: submitted, listed, followed and stopped through the cluster's job server (Ray Jobs API)."""

import asyncio
import logging
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from orchestrator.jobs.inside import RAYS_STOP_WAIT_S, STOP_WAIT
from orchestrator.jobs.package import command, local_data, runtime_env, working_directory
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.file import NOTHING, BadInput

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

RUN, RUNS = "hoofprint_run", "hoofprint_runs"  # in a job's metadata: the run's name, and the folder it lies in
ANSWERS_WITHIN_S = 10.0
JOB_SERVER_PORT = 8265
COMMANDS = ("hoofprint", "orchestrator", "orchestrator.jobs.start")  # with `python -m` or without
LIVE = ("PENDING", "RUNNING")
STOPPED_EXIT, FAILED_EXIT = 130, 1
ENDINGS = {STOPPED_EXIT: "stopped", 3: "stopped by a budget", 2: "refused"}
LOST_LINK_S = 60.0  # how long a job server may be away before following gives up
POLL_S = 0.5
# Loggers of Ray that tell of each upload and of each connection that was closed.
_TALKATIVE = ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")


def connect(address: str) -> "JobSubmissionClient":
    """The job server at `address` (http://host:8265, or host:port); BadInput when it is none, or of another Ray."""
    import requests
    from packaging.specifiers import SpecifierSet

    url = _url(address)
    what_next = f"`ray start --head` prints the job server's address, with port {JOB_SERVER_PORT} by default"
    try:
        answer = requests.get(f"{url}/api/version", timeout=ANSWERS_WITHIN_S, headers=_authentication())
    except requests.exceptions.Timeout:
        raise BadInput(f"no answer from {url} in {ANSWERS_WITHIN_S:g} s; {what_next}; {NOTHING}") from None
    except requests.exceptions.RequestException as error:
        raise BadInput(f"no Ray job server answers at {url}: {_reason(error)}; {what_next}; {NOTHING}") from None
    if answer.status_code in (401, 403):
        raise BadInput(
            f"{url} wants a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH (or RAY_AUTH_TOKEN); {NOTHING}"
        )
    try:
        theirs = str(answer.json()["ray_version"])
    except (ValueError, KeyError, TypeError):
        raise BadInput(f"what answers at {url} is not a Ray job server; {what_next}; {NOTHING}") from None
    wanted = _wanted_ray()
    if not SpecifierSet(wanted).contains(theirs, prereleases=True):
        raise BadInput(f"the cluster at {url} runs Ray {theirs}, and hoofprint needs {wanted}; {NOTHING}")
    from ray.job_submission import JobSubmissionClient

    client = JobSubmissionClient(url)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    return client


def _url(address: str) -> str:
    scheme, separator, rest = address.partition("://")
    if separator and scheme not in ("http", "https"):
        port = f"with port {JOB_SERVER_PORT} by default"
        raise BadInput(f"--address {address}: expected the job server's, http://host:port, {port}; {NOTHING}")
    if not separator:
        scheme, rest = "http", address
    place, slash, path = rest.rstrip("/").partition("/")
    host, colon, port = place.rpartition(":")
    if not colon or "]" in port:  # no port, or one inside an IPv6 address
        place += "" if scheme == "https" else f":{JOB_SERVER_PORT}"
    elif not host or not port.isdigit():
        raise BadInput(f"--address {address}: expected http://host:port; {NOTHING}")
    return f"{scheme}://{place}{slash}{path}"


def _authentication() -> dict[str, str]:
    from ray.dashboard.modules.dashboard_sdk import get_auth_headers_if_auth_enabled

    return dict(get_auth_headers_if_auth_enabled({}))


def _reason(error: Exception) -> str:
    """The last cause of an error that wraps others, in words."""
    while (inner := error.__cause__ or error.__context__) is not None and isinstance(inner, Exception):
        error = inner
    return getattr(error, "strerror", None) or str(error)


def _wanted_ray() -> str:
    from importlib import metadata

    from packaging.requirements import Requirement

    wanted = [Requirement(text) for text in metadata.requires("hoofprint") or []]
    return str(next(each.specifier for each in wanted if each.name == "ray"))


@dataclass(frozen=True)
class Job:
    """A run on a cluster, as its job server knows it. `run` and `runs_dir` are None where the command does not say."""

    id: str
    status: str  # PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED
    run: str | None
    runs_dir: str | None
    started_unix_s: float | None
    ended_unix_s: float | None
    exit_code: int | None  # of the driver; Ray keeps none of a job that it stopped
    message: str | None
    node_id: str | None  # where the driver runs
    stop_wait_s: float  # what Ray leaves it between SIGTERM and SIGKILL

    @property
    def live(self) -> bool:
        return self.status in LIVE

    @property
    def ending(self) -> str:
        """How it stands, in a word: Ray calls a run that stopped in order, and says so by its exit code, failed."""
        if self.status == "FAILED" and self.exit_code in ENDINGS:
            return ENDINGS[self.exit_code]
        return self.status.lower()

    @property
    def code(self) -> int:
        """The exit code of the run, or the one that says the same."""
        if self.status == "SUCCEEDED":
            return 0
        if self.status == "STOPPED":
            return STOPPED_EXIT
        return self.exit_code if self.exit_code is not None and self.exit_code > 0 else FAILED_EXIT


def _is_ours(details: Any) -> bool:
    """Whether a job of the cluster is a run of ours, submitted by whatever command."""
    words = _words(details.entrypoint)
    ours = any(PurePosixPath(word).name in COMMANDS for word in words)
    return RUN in (details.metadata or {}) or (ours and "run" in words)


def _job(details: Any) -> Job:
    metadata, words = details.metadata or {}, _words(details.entrypoint)
    resumed = _after(words, "--resume")
    variables = (details.runtime_env or {}).get("env_vars") or {}
    return Job(
        id=details.submission_id,
        status=str(details.status.value),
        run=metadata.get(RUN) or _after(words, "--name") or (PurePosixPath(resumed).name if resumed else None),
        runs_dir=metadata.get(RUNS) or _after(words, "--runs"),
        started_unix_s=None if details.start_time is None else details.start_time / 1e3,
        ended_unix_s=None if not details.end_time else details.end_time / 1e3,
        exit_code=details.driver_exit_code,
        message=details.message,
        node_id=details.driver_node_id,
        stop_wait_s=_number(variables.get(STOP_WAIT), RAYS_STOP_WAIT_S),
    )


def _words(entrypoint: str) -> list[str]:
    """The words of a shell command, and in their place those of a command inside it, as in `bash -c '...'`."""
    try:
        words = shlex.split(entrypoint)
    except ValueError:
        words = entrypoint.split()
    return [inner for word in words for inner in (_words(word) if " " in word and word != entrypoint else [word])]


def _after(words: Sequence[str], option: str) -> str | None:
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == option:
            return following or None
        if word.startswith(f"{option}="):
            return word.removeprefix(f"{option}=")
    return None


def _number(text: Any, otherwise: float) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        return otherwise


def list_jobs(client: "JobSubmissionClient") -> tuple[list[Job], int]:
    """(the runs among the cluster's jobs, newest first; how many other jobs it has)."""
    submitted = [details for details in client.list_jobs() if details.submission_id is not None]
    runs = [_job(details) for details in submitted if _is_ours(details)]
    return sorted(runs, key=lambda job: job.started_unix_s or 0.0, reverse=True), len(submitted) - len(runs)


def find(client: "JobSubmissionClient", name: str) -> Job:
    """The job of the run `name`, or with that id: the one that lives, else the newest; BadInput names what there is."""
    runs, _ = list_jobs(client)
    for job in sorted(runs, key=lambda job: not job.live):
        if name in (job.id, job.run):
            return job
    there = ", ".join(job.run or job.id for job in runs if job.live) or "none"
    every = f"hoofprint status --all --address {client.get_address()}"
    raise BadInput(f"the cluster has no run {name!r}; what runs there: {there} ({every} lists all)")


def submit(
    client: "JobSubmissionClient",
    spec: Path,
    experiment: Experiment,
    runs_dir: PurePosixPath,
    run: str,
    *,
    resume: bool = False,
    overrides: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
    install: bool = False,
) -> tuple[str, list[str]]:
    """(the job's id, what must be on the cluster and was not looked for). BadInput when nothing was submitted."""
    if not runs_dir.is_absolute():
        raise BadInput(
            f"--runs {runs_dir}: expected an absolute path on the cluster, on storage that every node reaches: a run's "
            f"folder must outlive its job; {NOTHING}"
        )
    travels, there = local_data(experiment)
    runs, _ = list_jobs(client)
    clash = next((job for job in runs if job.live and job.run == run and job.runs_dir == str(runs_dir)), None)
    if clash is not None:
        again = f"hoofprint status {clash.id} --follow --address {client.get_address()}"
        raise BadInput(f"the run {run} is at work as job {clash.id}; follow it: {again}")
    with working_directory(spec, travels) as folder:
        job = client.submit_job(
            entrypoint=command(spec, experiment, overrides, runs_dir, run, resume),
            submission_id=_free_id(run, {job.id for job in runs}),
            runtime_env=runtime_env(folder, install, variables or {}),
            metadata={RUN: run, RUNS: str(runs_dir)},
        )
    return job, [str(path) for path in there]


def _free_id(run: str, taken: set[str]) -> str:
    """A run that is gone on with is another job of the same run."""
    number = 1
    while (name := run if number == 1 else f"{run}-attempt-{number}") in taken:
        number += 1
    return name


def follow(client: "JobSubmissionClient", job_id: str, write: Callable[[str], None], tail: int | None = None) -> Job:
    """Writes the job's log as it grows until the job has ended, through interruptions of the link; the ended job.

    tail: start with so many of the lines that are there already; None: with all of them.
    """
    seen = 0
    if tail is not None:
        log = client.get_job_logs(job_id)
        seen = len(log)
        write("".join(log.splitlines(keepends=True)[-tail:]))
    import aiohttp

    lost_since: float | None = None
    while True:
        try:
            for text in _fresh(client, job_id, seen):
                write(text)
                seen += len(text)
            job = _job(client.get_job_info(job_id))
            lost_since = None
            if not job.live:
                return job
        except (RuntimeError, OSError, aiohttp.ClientError) as error:
            lost_since = time.monotonic() if lost_since is None else lost_since
            if time.monotonic() - lost_since > LOST_LINK_S:
                # It lies on the head: with that gone, Ray ends the run too.
                raise ConnectionError(
                    f"the job server has not answered for {LOST_LINK_S:g} s, and whether the run goes on is not known "
                    f"({error}); ask again: hoofprint status {job_id} --follow --address {client.get_address()}; its "
                    "folder tells too (hoofprint status --runs); a run that is lost goes on with hoofprint run --resume"
                ) from error
        time.sleep(POLL_S)


def _fresh(client: "JobSubmissionClient", job_id: str, skip: int) -> Iterator[str]:
    """Pieces of the log as they come, without the first `skip` characters: Ray tells a log from its start only."""
    stream = client.tail_job_logs(job_id)
    with asyncio.Runner() as runner:
        while True:
            text = runner.run(_next(stream))
            if text is None:
                return
            passed, skip = min(skip, len(text)), max(0, skip - len(text))
            if text[passed:]:
                yield text[passed:]


async def _next(stream: Any) -> str | None:
    piece: str | None = await anext(stream, None)
    return piece
