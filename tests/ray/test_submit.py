"""`hoofprint submit`, `status` and `stop` against a Ray cluster of `ray start`, on ports of its own."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from tiny import write_spec

from orchestrator.checkpoints.saved import complete, step_of
from orchestrator.driver.revision import code_revision
from orchestrator.jobs.inside import RAYS_STOP_WAIT_S, STOP_WAIT, STOP_WAIT_S
from orchestrator.jobs.package import ROOMS

ROOT = Path(__file__).parents[2]

BIN = Path(sys.executable).parent
HOOFPRINT = [sys.executable, "-m", "orchestrator"]
# Such a run is stopped, and its last checkpoint is looked for: none before it need be written.
LONG = ["--set", "training.tokens=50M", "--set", "training.checkpoint_every_steps=100000"]


@dataclass(frozen=True)
class Cluster:
    url: str
    head: str
    folder: str
    environment: dict[str, str]

    def hoofprint(self, *words: str, cwd: Path, code: Path = ROOT) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*HOOFPRINT, *words],
            capture_output=True,
            text=True,
            timeout=600,
            cwd=cwd,
            env=self.environment | {"PYTHONPATH": str(code)},
        )

    def start(self, *words: str, cwd: Path) -> "subprocess.Popen[str]":
        """In the background, where a shell may have it ignore Ctrl-C: here it listens."""
        return subprocess.Popen(
            [*HOOFPRINT, *words],
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env=self.environment | {"PYTHONPATH": str(ROOT)},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def jobs(self) -> dict[str, dict[str, Any]]:
        """What Ray itself says of each job."""
        answer = requests.get(f"{self.url}/api/jobs/", timeout=60)
        answer.raise_for_status()
        return {job["submission_id"]: job for job in answer.json()}

    def lives(self, job: str) -> bool:
        return self.jobs()[job]["status"] in ("PENDING", "RUNNING")


def free_port() -> int:
    """A port that is free now, outside those that Ray keeps for its workers (10002 to 19999)."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port >= 20000:
            return port


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = tempfile.mkdtemp(prefix="hoofprint-ray-", dir="/tmp")  # short: Ray's sockets lie in it
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    environment["PATH"] = f"{BIN}:{environment['PATH']}"
    try:
        yield start_head(free_port(), folder, environment)
    finally:
        kill([process for process in psutil.process_iter() if _belongs(process, folder)])
        shutil.rmtree(folder, ignore_errors=True)


def start_head(gcs: int, folder: str, environment: dict[str, str]) -> Cluster:
    dashboard = free_port()
    ports = {
        "port": gcs,
        "dashboard-port": dashboard,
        "dashboard-agent-listen-port": free_port(),
        "dashboard-agent-grpc-port": free_port(),
        "metrics-export-port": free_port(),
        "ray-client-server-port": free_port(),
    }
    sizes = ["--num-cpus=2", "--num-gpus=0", f"--object-store-memory={100 * 2**20}"]
    command = [str(BIN / "ray"), "start", "--head", f"--temp-dir={folder}", *sizes]
    command += [f"--{name}={port}" for name, port in ports.items()]
    started = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert started.returncode == 0, started.stdout + started.stderr
    head = re.search(rf"[\d.]+:{gcs}", started.stdout)
    assert head is not None, started.stdout
    return Cluster(f"http://127.0.0.1:{dashboard}", head[0], folder, environment)


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=60)


def _belongs(process: psutil.Process, folder: str) -> bool:
    """A process of the cluster: Ray's have its folder in their arguments, its workers in their environment."""
    try:
        return any(folder in word for word in process.cmdline()) or folder in str(process.environ())
    except psutil.Error:
        return False


def wait_for_step(run: Path, step: int, is_alive: Any) -> None:
    metrics, deadline = run / "metrics" / "rank-0.jsonl", time.monotonic() + 300
    while not (metrics.exists() and f'"step": {step},' in metrics.read_text()):
        assert is_alive() and time.monotonic() < deadline
        time.sleep(0.3)


def last_trained(run: Path) -> int:
    events = [json.loads(line) for line in (run / "metrics" / "rank-0.jsonl").read_text().splitlines() if line]
    return max(event["step"] for event in events if event["event"] == "step")


def assert_ended_in_order(run: Path) -> None:
    """Stopped by its own word: a checkpoint of the very last step, a record and a report."""
    assert json.loads((run / "run.json").read_text())["status"] == "stopped"
    assert (run / "checkpoints" / f"step-{last_trained(run):08d}" / ".metadata").exists()
    assert json.loads((run / "footprint.json").read_text())["run"]["status"] == "stopped"
    assert "partial" in (run / "report.html").read_text()


def test_code_spec_and_data_travel_and_the_exit_code_comes_back(cluster: Cluster, tmp_path: Path) -> None:
    write_spec(tmp_path)
    copy = tmp_path / "code"
    for room in ROOMS:
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    with (copy / "orchestrator" / "ranks" / "worker.py").open("a") as worker:  # code that is nowhere on the cluster
        worker.write(
            "\n_as_it_was = run_rank\n\n\ndef run_rank(job):\n"
            "    Path(job.run_dir, 'by-the-code-that-travelled').touch()\n    return _as_it_was(job)\n"
        )
    local = ["--set", "data.sources.0.path=text", "--set", "data.cache=cache", "--set", "cluster.address=far:6379"]
    runs = tmp_path / "runs"
    where = ["--address", cluster.url, "--runs", str(runs), "--name", "one"]
    done = cluster.hoofprint("submit", "spec.yaml", *where, *local, cwd=tmp_path, code=copy)
    assert done.returncode == 0, done.stderr
    assert "step=20/20" in done.stderr and "Footprint of one" in done.stderr
    run = json.loads((runs / "one" / "run.json").read_text())
    assert run["status"] == "completed"
    assert (runs / "one" / "by-the-code-that-travelled").exists()
    assert run["code_revision"] in (None, code_revision())  # of the copy, which is no checkout
    assert not (tmp_path / "cache").exists() and (runs / ".corpus").is_dir()
    said = cluster.hoofprint("status", "one", "--address", cluster.url, "--json", cwd=tmp_path)
    [job] = json.loads(said.stdout)["jobs"]
    assert (job["status"], job["exit_code"], job["run"], job["runs_dir"]) == ("SUCCEEDED", 0, "one", str(runs))

    again = cluster.hoofprint("submit", "spec.yaml", *where, *local, cwd=tmp_path)
    assert again.returncode == 2  # the run's own: its name is taken
    assert "exists" in again.stderr and "ended: refused, exit code 2" in again.stderr


def test_a_job_is_left_alone_found_again_and_stopped_in_order(cluster: Cluster, tmp_path: Path) -> None:
    write_spec(tmp_path)
    run, at = tmp_path / "runs" / "two", ["--address", cluster.url]
    submitted = cluster.hoofprint(
        "submit", "spec.yaml", *at, "--runs", str(run.parent), "--name", "two", "--detach", *LONG, cwd=tmp_path
    )
    assert submitted.returncode == 0, submitted.stderr
    assert f"hoofprint stop two --address {cluster.url}" in submitted.stderr
    wait_for_step(run, 3, lambda: cluster.lives("two"))

    twice = cluster.hoofprint("submit", "spec.yaml", *at, "--runs", str(run.parent), "--name", "two", cwd=tmp_path)
    assert twice.returncode == 2 and "at work as job two" in twice.stderr
    shown = cluster.hoofprint("status", *at, cwd=tmp_path)
    assert "two" in shown.stdout and "running" in shown.stdout
    following = cluster.start("status", "two", "--follow", *at, cwd=tmp_path)
    assert following.stderr is not None
    while not re.search(r"step=\d+/", following.stderr.readline()):  # a live line a minute, the first after a step
        assert following.poll() is None
    following.send_signal(signal.SIGINT)
    _, rest = following.communicate(timeout=60)
    assert following.returncode == 0 and "two goes on" in rest
    assert cluster.jobs()["two"]["status"] == "RUNNING"

    stopped = cluster.hoofprint("stop", "two", *at, cwd=tmp_path)
    assert stopped.returncode == 0, stopped.stderr
    assert "Footprint of two" in stopped.stderr and stopped.stdout == "two: stopped\n"
    assert_ended_in_order(run)
    assert cluster.jobs()["two"]["status"] == "STOPPED"


def test_a_job_of_ray_job_submit_is_stopped_in_order_too(cluster: Cluster, tmp_path: Path) -> None:
    """Ray leaves such a job 3 s, which is less than a checkpoint, a record and a report may take."""
    write_spec(tmp_path)
    run = tmp_path / "runs" / "plain"
    code = json.dumps({"env_vars": {"PYTHONPATH": str(ROOT)}})
    shell = ["ray", "job", "submit", "--address", cluster.url, "--working-dir", str(tmp_path), "--no-wait"]
    shell += ["--runtime-env-json", code, "--submission-id"]
    command = ["--", "python", "-m", "orchestrator", "run", "spec.yaml", *LONG]
    subprocess.run([*shell, "lost", *command], check=True, env=cluster.environment)
    where = ["--runs", str(run.parent), "--name", "plain"]
    subprocess.run([*shell, "by-hand", *command, *where], check=True, env=cluster.environment)
    wait_for_step(run, 3, lambda: cluster.lives("by-hand"))
    refused = cluster.jobs()["lost"]
    assert refused["driver_exit_code"] == 2
    assert "--runs runs lies in the job's working directory" in refused["message"]

    stopped = cluster.hoofprint("stop", "plain", "--address", cluster.url, cwd=tmp_path)
    assert stopped.returncode == 0, stopped.stderr
    assert "Ray would leave by-hand 3 s" in stopped.stderr and stopped.stdout == "by-hand: stopped\n"
    assert_ended_in_order(run)
    assert cluster.jobs()["by-hand"]["driver_exit_code"] == 130


def test_a_run_in_another_terminal_is_seen_refused_to_a_second_driver_and_stopped(
    cluster: Cluster, tmp_path: Path
) -> None:
    write_spec(tmp_path)
    runs, run = str(tmp_path / "runs"), tmp_path / "runs" / "here"
    joined = ["--set", f"cluster.address={cluster.head}"]
    driver = cluster.start("run", "spec.yaml", "--runs", runs, "--name", "here", *joined, *LONG, cwd=tmp_path)
    wait_for_step(run, 3, lambda: driver.poll() is None)

    second = cluster.hoofprint("run", "spec.yaml", "--resume", str(run), *LONG, cwd=tmp_path)
    assert second.returncode == 2
    assert f"{run} is at work in another process (host {socket.gethostname()}, process {driver.pid}, started " in (
        second.stderr
    )
    [seen] = json.loads(cluster.hoofprint("status", "--runs", runs, "--json", cwd=tmp_path).stdout)["runs"]
    assert (seen["run"], seen["status"], seen["pid"]) == ("here", "running", driver.pid)
    assert seen["step"] >= 3 and seen["loss"] > 0

    stopped = cluster.hoofprint("stop", "here", "--runs", runs, cwd=tmp_path)
    assert stopped.returncode == 0, stopped.stderr
    assert "here: stopped, checkpoint of step" in stopped.stdout
    driver.communicate(timeout=120)
    assert driver.returncode == 130
    assert_ended_in_order(run)
    assert "nothing runs" in cluster.hoofprint("status", "--runs", runs, cwd=tmp_path).stdout
    over = cluster.hoofprint("stop", "here", "--runs", runs, cwd=tmp_path)
    assert over.returncode == 2 and "it is stopped" in over.stderr


def wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.2)


LAST_WORDS = """
import pathlib, signal, sys, time
told = pathlib.Path(sys.argv[1])
def end(*_):
    for beat in range(60):
        told.write_text(str(beat))
        time.sleep(0.1)
    told.write_text("ended")
    raise SystemExit
signal.signal(signal.SIGTERM, end)
told.write_text("up")
time.sleep(600)
"""


@pytest.mark.stress
def test_ray_leaves_a_plain_job_three_seconds_and_one_of_ours_as_long_as_it_takes(
    cluster: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "last_words.py").write_text(LAST_WORDS)
    told = {name: tmp_path / name for name in ("plain", "ours")}
    for name, file in told.items():
        job: dict[str, Any] = {"entrypoint": f"{sys.executable} {tmp_path}/last_words.py {file}", "submission_id": name}
        if name == "ours":
            job["runtime_env"] = {"env_vars": {STOP_WAIT: str(STOP_WAIT_S)}}
        requests.post(f"{cluster.url}/api/jobs/", json=job, timeout=60).raise_for_status()
    wait_until(lambda: all(file.exists() for file in told.values()))
    for name in told:
        requests.post(f"{cluster.url}/api/jobs/{name}/stop", timeout=60).raise_for_status()
    wait_until(lambda: not any(cluster.lives(name) for name in told))
    assert told["ours"].read_text() == "ended"
    left_s = int(told["plain"].read_text()) / 10  # by the beats of the one that was killed
    assert 0.3 * RAYS_STOP_WAIT_S < left_s < 1.5 * RAYS_STOP_WAIT_S


@pytest.mark.stress
def test_a_head_that_is_gone_ends_the_run_in_order(cluster: Cluster, tmp_path: Path) -> None:
    """The last one here: the cluster ends with it. The run goes on in the one that is started at its place."""
    write_spec(tmp_path)
    run, joined = tmp_path / "runs" / "headless", ["--set", f"cluster.address={cluster.head}"]
    often = ["--set", "training.checkpoint_every_steps=2"]
    driver = cluster.start(
        "run", "spec.yaml", "--runs", str(run.parent), "--name", run.name, *joined, *LONG, *often, cwd=tmp_path
    )
    wait_for_step(run, 5, lambda: driver.poll() is None)
    kill(head_of(cluster))
    _, said = driver.communicate(timeout=300)
    assert driver.returncode == 1, said
    assert f"the run failed: the head of the Ray cluster ({cluster.head}) is gone: no answer for 30 s" in said
    proposed = re.search(rf"go on from step (\d+): hoofprint run spec.yaml --resume {run}", said)
    assert proposed is not None and int(proposed[1]) >= 4, said
    assert (run / "checkpoints" / f"step-{int(proposed[1]):08d}" / ".metadata").exists()
    assert json.loads((run / "footprint.json").read_text())["run"]["status"] == "failed"
    assert (run / "report.html").exists()

    resume = ["run", "spec.yaml", "--resume", str(run), *joined, *LONG, *often]
    start_again(cluster)
    driver = cluster.start(*resume, cwd=tmp_path)
    wait_for_step(run, int(proposed[1]) + 5, lambda: driver.poll() is None)
    [head] = head_of(cluster)
    command = head.cmdline()
    kill([head])
    subprocess.Popen(command, env=cluster.environment, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    driver.communicate(timeout=300)
    assert driver.returncode  # at once: it is another cluster, which Ray refuses to take for its own
    start_again(cluster)
    newest = step_of(complete(run / "checkpoints")[0])
    assert newest >= int(proposed[1]) + 4
    driver = cluster.start(*resume, cwd=tmp_path)
    wait_for_step(run, newest + 10, lambda: driver.poll() is None)
    (run / "stop").touch()
    driver.communicate(timeout=300)
    assert driver.returncode == 130
    assert_ended_in_order(run)


def head_of(cluster: Cluster) -> list[psutil.Process]:
    return [each for each in psutil.process_iter() if each.name() == "gcs_server" and _belongs(each, cluster.folder)]


def start_again(cluster: Cluster) -> None:
    """As `ray stop` and `ray start` at the same place."""
    kill([each for each in psutil.process_iter() if _belongs(each, cluster.folder)])
    start_head(int(cluster.head.rpartition(":")[2]), cluster.folder, cluster.environment)
