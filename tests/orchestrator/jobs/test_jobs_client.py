"""The job server: what is no Ray is refused by name; jobs are recognised, followed through gaps, and asked to stop."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent import futures
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc
from ray.job_submission import JobStatus
from tiny import write_spec

from energy.runs import LOCK
from orchestrator.cluster import versions as cluster_versions
from orchestrator.driver import stopping
from orchestrator.jobs import server as jobs
from orchestrator.jobs.server import connect
from orchestrator.spec.file import BadInput, load_experiment


@contextmanager
def server(status: int, body: str) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{web.server_port}"
    finally:
        web.shutdown()
        web.server_close()


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("http://head:8265", "http://head:8265"),
        ("head:8265/", "http://head:8265"),
        ("head", "http://head:8265"),
        ("https://ray.example.org", "https://ray.example.org"),
        ("[::1]:8265", "http://[::1]:8265"),
        ("http://head/ray/", "http://head:8265/ray"),
        ("[::1]/ray:a", "http://[::1]:8265/ray:a"),
        ("http://head:80/ray", "http://head:80/ray"),
        ("https://example.org/ray", "https://example.org/ray"),
    ],
)
def test_addresses(address: str, url: str) -> None:
    assert jobs._url(address) == url


@pytest.mark.parametrize("address", ["ray://head:10001", "head:port", ":8265"])
def test_what_is_no_address_of_a_job_server(address: str) -> None:
    with pytest.raises(BadInput, match="expected .*http://host:port.*nothing was started"):
        connect(address)


def test_what_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        with pytest.raises(
            BadInput, match=rf"no Ray job server answers at http://127.0.0.1:{port}: Connection refused"
        ):
            connect(f"127.0.0.1:{port}")
        silent.listen()
        monkeypatch.setattr(jobs, "ANSWERS_WITHIN_S", 0.3)
        with pytest.raises(BadInput, match=rf"no answer from http://127.0.0.1:{port} in 0.3 s"):
            connect(f"127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, "<html>", "is not a Ray job server"),
        (404, "{}", "is not a Ray job server"),
        (401, "", "wants a token: set RAY_AUTH_MODE=token"),
        (200, '{"ray_version": "2.9.3"}', "runs Ray 2.9.3, and hoofprint needs <3,>=2.60; nothing was started"),
    ],
)
def test_what_answers_and_will_not_do(status: int, body: str, said: str) -> None:
    with server(status, body) as address, pytest.raises(BadInput) as refused:
        connect(address)
    assert said in str(refused.value)


@contextmanager
def head(versions: dict[str, str] | None) -> Iterator[str]:
    """A head of a cluster, as far as it says its versions."""

    class Keys(gcs_service_pb2_grpc.InternalKVGcsServiceServicer):
        def InternalKVGet(self, request: Any, context: Any) -> Any:
            assert (request.namespace, request.key) == (b"cluster", b"CLUSTER_METADATA")
            return gcs_service_pb2.InternalKVGetReply(value=json.dumps(versions).encode())

    gcs = grpc.server(futures.ThreadPoolExecutor(1))
    if versions is not None:
        gcs_service_pb2_grpc.add_InternalKVGcsServiceServicer_to_server(Keys(), gcs)
    port = gcs.add_insecure_port("127.0.0.1:0")
    gcs.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        gcs.stop(None)


def test_versions_of_a_cluster_to_join(monkeypatch: pytest.MonkeyPatch) -> None:
    ray, python = "2.60.0", "3.11.7"
    monkeypatch.setattr("ray.__version__", ray)
    monkeypatch.setattr("platform.python_version", lambda: python)
    for versions in ({"ray_version": ray, "python_version": python}, None):
        with head(versions) as address:
            cluster_versions.require_same_versions(address, "cluster.address")
    with head({"ray_version": "2.55.1", "python_version": "3.11.9"}) as address:
        with pytest.raises(BadInput) as refused:
            cluster_versions.require_same_versions(address, "cluster.address")
        assert f"{address} (cluster.address) has other versions: Ray 2.55.1 there and 2.60.0 here, Python 3.11.9" in (
            str(refused.value)
        )
        monkeypatch.setenv("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL", "minor")
        with pytest.raises(BadInput, match=r"Ray 2\.55\.1 there and 2\.60\.0 here; "):
            cluster_versions.require_same_versions(address, "cluster.address")


def details(entrypoint: str, **more: Any) -> SimpleNamespace:
    """A job as Ray's client describes it."""
    given = {
        "submission_id": "a",
        "status": JobStatus.RUNNING,
        "metadata": None,
        "runtime_env": None,
        "start_time": 1000,
        "end_time": None,
        "driver_exit_code": None,
        "message": None,
        "driver_node_id": "n1",
    }
    return SimpleNamespace(entrypoint=entrypoint, **(given | more))


class Client:
    """A job server with a log that comes in pieces, of which some are broken off."""

    def __init__(
        self, all_jobs: list[SimpleNamespace], tails: list[list[str | Exception]] | None = None, log: str = ""
    ):
        self.jobs, self.tails, self.log = all_jobs, tails or [], log
        self.stopped: list[str] = []
        self.submitted: list[dict[str, Any]] = []

    def list_jobs(self) -> list[SimpleNamespace]:
        return self.jobs

    def get_address(self) -> str:
        return "http://head:8265"

    def get_job_info(self, job_id: str) -> SimpleNamespace:
        if not self.tails:
            self.jobs[0].status = JobStatus.SUCCEEDED
        return self.jobs[0]

    def get_job_logs(self, job_id: str) -> str:
        return self.log

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        for piece in self.tails.pop(0):
            if isinstance(piece, Exception):
                raise piece
            yield piece

    def stop_job(self, job_id: str) -> None:
        self.stopped.append(job_id)

    def submit_job(self, **given: Any) -> str:
        self.submitted.append(given)
        return given.get("submission_id") or "helper"


@pytest.mark.parametrize(
    ("entrypoint", "run", "runs_dir"),
    [
        ("hoofprint run s.yaml --runs /r --name x", "x", "/r"),
        ("/opt/bin/hoofprint run s.yaml --runs=/r --name=x", "x", "/r"),
        ("exec python -m orchestrator.jobs.start run s.yaml --runs /r --resume /r/x", "x", "/r"),
        ("bash -c 'cd /d; exec python -m orchestrator run s.yaml --name x'", "x", None),
        ("hoofprint run s.yaml", None, None),
    ],
)
def test_runs_among_the_jobs(entrypoint: str, run: str | None, runs_dir: str | None) -> None:
    others = [
        details("python train.py"),
        details("hoofprint plan s.yaml"),
        details("hoofprint run x", submission_id=None),
    ]
    found, count = jobs.list_jobs(Client([*others, details(entrypoint)]))  # type: ignore[arg-type]
    assert [(job.run, job.runs_dir, job.stop_wait_s) for job in found] == [(run, runs_dir, 3)]
    assert count == 2


def test_the_job_that_lives_is_meant() -> None:
    named = {jobs.RUN: "x", jobs.RUNS: "/r"}
    old = details("x", submission_id="x", metadata=named, start_time=5000, status=JobStatus.STOPPED)
    new = details("x", submission_id="x-attempt-2", metadata=named, start_time=9000)
    client: Any = Client([old, new])
    assert jobs.find(client, "x").id == "x-attempt-2"
    assert jobs.find(client, "x-attempt-2").live
    said = "no run 'y'; what runs there: x .hoofprint status --all --address http://head:8265 lists all"
    with pytest.raises(BadInput, match=said):
        jobs.find(client, "y")


@pytest.mark.parametrize(
    ("status", "exit_code", "code", "ending"),
    [
        (JobStatus.SUCCEEDED, 0, 0, "succeeded"),
        (JobStatus.STOPPED, None, 130, "stopped"),
        (JobStatus.FAILED, 130, 130, "stopped"),
        (JobStatus.FAILED, 3, 3, "stopped by a budget"),
        (JobStatus.FAILED, 2, 2, "refused"),
        (JobStatus.FAILED, -9, 1, "failed"),
        (JobStatus.FAILED, None, 1, "failed"),
    ],
)
def test_endings(status: JobStatus, exit_code: int | None, code: int, ending: str) -> None:
    job = jobs._job(details("hoofprint run x", status=status, driver_exit_code=exit_code))
    assert (job.code, job.ending) == (code, ending)


def test_a_log_is_followed_through_a_broken_link_and_no_line_comes_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "POLL_S", 0.01)
    tails: list[list[str | Exception]] = [["a\nb\n", "c\n", RuntimeError("broken")], ["a\nb\nc\nd", "\ne\n"]]
    said: list[str] = []
    client: Any = Client([details("hoofprint run x")], tails)
    assert jobs.follow(client, "a", said.append).ending == "succeeded"
    assert "".join(said) == "a\nb\nc\nd\ne\n"
    client = Client([details("hoofprint run x")], [["a\nb\nc\nd\n"]], log="a\nb\nc\n")
    said.clear()
    jobs.follow(client, "a", said.append, tail=2)
    assert "".join(said) == "b\nc\nd\n"


def test_a_job_server_that_stays_away_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "POLL_S", 0.01)
    monkeypatch.setattr(jobs, "LOST_LINK_S", 0.05)
    client: Any = Client([details("hoofprint run x")], [[RuntimeError("gone")]] * 1000)
    with pytest.raises(ConnectionError, match="is not known .*status a --follow"):
        jobs.follow(client, "a", lambda text: None)


def test_a_log_that_is_silent_between_two_gaps_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each gap has its own minute, also where nothing was written in between."""
    now_s = iter(range(0, 10**6, 50))
    monkeypatch.setattr(jobs, "time", SimpleNamespace(monotonic=lambda: float(next(now_s)), sleep=lambda _: None))
    gap: list[str | Exception] = [RuntimeError("gone")]
    client: Any = Client([details("hoofprint run x")], [gap, [], gap, [], gap, []])
    assert jobs.follow(client, "a", lambda text: None).ending == "succeeded"


def test_submitting(tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    experiment, shared = load_experiment(spec), PurePosixPath("/shared/runs")
    named = {jobs.RUN: "x", jobs.RUNS: str(shared)}
    ended = details("x", submission_id="x", metadata=named, status=JobStatus.FAILED)
    client: Any = Client([ended])
    job, there = jobs.submit(client, spec, experiment, shared, "x", resume=True)
    assert job == "x-attempt-2" and there == [str(tmp_path / "text")]
    assert client.submitted[0]["metadata"] == named
    with pytest.raises(BadInput, match="expected an absolute path on the cluster"):
        jobs.submit(client, spec, experiment, PurePosixPath("runs"), "y")
    ended.status = JobStatus.PENDING
    said = "is at work as job x; follow it: hoofprint status x --follow --address http://head:8265"
    with pytest.raises(BadInput, match=said):
        jobs.submit(client, spec, experiment, shared, "x")
    assert len(client.submitted) == 1


def test_ray_stops_what_it_leaves_time() -> None:
    client: Any = Client([])
    patient = details("hoofprint run x", runtime_env={"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "3600"}})
    stopping.ask_job(client, jobs._job(patient), lambda text: None)
    assert client.stopped == ["a"] and not client.submitted


@pytest.mark.parametrize(
    ("codes", "nodes", "stopped", "said"),
    [
        ([stopping.ASKED], ["n1"], False, None),
        ([stopping.NO_RUN_YET], ["n1"], True, None),
        ([stopping.NOT_SEEN], [None], True, None),  # it has not begun
        ([stopping.NOT_SEEN, stopping.ASKED], [None, "n1"], False, None),  # it began on a node that nobody knew of
        ([stopping.NOT_SEEN] * stopping.TRIES, ["n1"] * stopping.TRIES, False, "in a container"),
    ],
)
def test_a_run_is_asked_where_it_is_and_killed_only_where_it_has_nothing_to_lose(
    codes: list[int], nodes: list[str | None], stopped: bool, said: str | None
) -> None:
    at = iter([*nodes, nodes[-1]])
    job = details("hoofprint run x", driver_node_id=next(at))

    class Asked(Client):
        def submit_job(self, **given: Any) -> str:
            job.driver_node_id = next(at)  # it goes on meanwhile
            return super().submit_job(**given)

        def get_job_status(self, job_id: str) -> JobStatus:
            return JobStatus.FAILED

        def get_job_info(self, job_id: str) -> SimpleNamespace:
            return details("sh", driver_exit_code=codes[len(self.submitted) - 1])

        def delete_job(self, job_id: str) -> None:
            pass

    client: Any = Asked([job])
    if said is None:
        stopping.ask_job(client, jobs._job(job), lambda text: None)
    else:
        with pytest.raises(RuntimeError, match=said):
            stopping.ask_job(client, jobs._job(job), lambda text: None)
    assert client.stopped == ["a"] * stopped
    wanted = [None if node is None else {"ray.io/node-id": node} for node in nodes]
    assert [given["entrypoint_label_selector"] for given in client.submitted] == wanted[: len(codes)]


def test_the_helper_finds_the_run_by_the_lock_of_its_driver(tmp_path: Path) -> None:
    (tmp_path / "a run").mkdir()
    code = "import sys, time; lock = open(sys.argv[1], 'w'); print('open', flush=True); time.sleep(600)"
    job = {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"metadata": {"job_submission_id": "job-1"}})}
    driver = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "a run" / LOCK)],
        env=os.environ | job,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert driver.stdout is not None and driver.stdout.readline() == "open\n"
    stop = tmp_path / "a run" / stopping.STOP_FILE
    try:
        other = subprocess.run(stopping.helper_command("job-10"), shell=True, timeout=60)
        assert other.returncode == stopping.NOT_SEEN and not stop.exists()
        asked = subprocess.run(stopping.helper_command("job-1"), shell=True, timeout=60)
        assert asked.returncode == stopping.ASKED and stop.exists()
        assert driver.poll() is None  # asked, and not killed
    finally:
        driver.kill()
        driver.wait()
