"""Where a run of the benchmark lives: in a Ray of its own, or on an emulated cluster of two nodes; its processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import psutil

from benchmarks.resilience.stand_in import ROOT, StandIn, clean_environment
from energy.runs import RunFolder
from orchestrator.driver.launch import RAY_ENVIRONMENT
from orchestrator.live.progress import Tail

HOOFPRINT = [sys.executable, "-c", "from orchestrator.cli import main; main()"]
RANK, METER, CONTROLLER = "ray::RayTrainWorker", "ray::MeterActor", "ray::TrainController"
SECOND = "127.0.0.2"
END_LIMIT_S = 300.0


class Place(Protocol):
    """A Ray for runs. options: of `hoofprint run`, to come here."""

    name: str
    nodes: list[StandIn]
    options: list[str]

    def raylets(self, driver: int) -> list[int]: ...
    def close(self) -> None: ...


class OwnRay:
    """Each driver starts a Ray on this machine, which ends with it."""

    name = "a Ray of the run's own"

    def __init__(self, folder: Path) -> None:
        self.nodes, self.options = [StandIn(folder, 1, 2)], []

    def raylets(self, driver: int) -> list[int]:
        return [process.pid for process in children_of(driver) if name_of(process) == "raylet"]

    def close(self) -> None:
        pass


class TwoNodes:
    """A cluster of two nodes that have one CPU and two GPUs of the stand-in each; it outlives its drivers."""

    name = "a cluster of two nodes"

    def __init__(self, folder: Path) -> None:
        import ray._private.utils
        from ray.cluster_utils import Cluster

        self._before = {key: os.environ.pop(key) for key in list(os.environ) if key.startswith("RAY_")}
        os.environ.update(RAY_ENVIRONMENT)
        # The cluster must not become the one that another process joins by default.
        self._utils, self._write_address = ray._private.utils, ray._private.utils.write_ray_address
        self._utils.write_ray_address = lambda *arguments: None
        self.nodes = [StandIn(folder, 2, 2), StandIn(folder, 3, 2)]
        self._environment = {"PYTHONPATH": str(ROOT)}
        head = {"num_cpus": 1, "num_gpus": 0, "include_dashboard": True}
        self._cluster = Cluster(
            initialize_head=True, head_node_args={**head, "env_vars": self.nodes[0].environment | self._environment}
        )
        self.second: Any = None
        self.add_second()
        self.options = ["--set", f"cluster.address={self._cluster.address}", "--set", "cluster.exclusive=true"]

    def add_second(self) -> None:
        environment = self.nodes[1].environment | self._environment
        self.second = self._cluster.add_node(num_cpus=1, num_gpus=0, node_ip_address=SECOND, env_vars=environment)

    def kill_second(self) -> None:
        """kill -9 of its raylet, with which its workers end, and of what else was the node's."""
        raylet = self.second.all_processes["raylet"][0].process
        raylet.kill()
        raylet.wait()  # a zombie would count as alive
        self._cluster.remove_node(self.second, allow_graceful=False)

    def raylets(self, driver: int) -> list[int]:
        nodes = (self._cluster.head_node, *self._cluster.worker_nodes)
        return [node.all_processes["raylet"][0].process.pid for node in nodes if "raylet" in node.all_processes]

    def close(self) -> None:
        self._cluster.shutdown()
        self._utils.write_ray_address = self._write_address
        for key in [key for key in os.environ if key.startswith("RAY_")]:
            del os.environ[key]
        os.environ.update(self._before)


class Run:
    """`hoofprint run` in a process of its own, resumed by `start` where its folder is there."""

    def __init__(self, place: Place, path: Path, spec: Path, overrides: Sequence[str] = ()) -> None:
        self.place, self.folder, self.log = place, RunFolder(path), path.with_suffix(".log")
        self._spec, self._sets = spec, [part for each in overrides for part in ("--set", each)]
        self._process: subprocess.Popen[bytes] | None = None
        self._tail, self._newest = Tail(self.folder.metrics_file(0)), (0, 0)

    def start(self) -> None:
        path = self.folder.path
        where = ["--resume", str(path)] if path.exists() else ["--runs", str(path.parent), "--name", path.name]
        command = [*HOOFPRINT, "run", str(self._spec), *where, *self._sets, *self.place.options, "-q"]
        environment = clean_environment() | self.place.nodes[0].environment | {"PYTHONPATH": str(ROOT)}
        path.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True, cwd=path.parent
            )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        assert self._process is not None
        return self._process.poll()

    def processes(self, title: str) -> list[psutil.Process]:
        """Its processes of this kind, by their titles."""
        found = [child for raylet in self.place.raylets(self.pid) for child in children_of(raylet)]
        return [process for process in found if title_of(process).startswith(title)]

    def kill_driver(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def end(self, limit_s: float = END_LIMIT_S) -> int | None:
        """Its exit code; None of one that did not end, and is killed."""
        assert self._process is not None
        try:
            return self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            return None

    def attempts(self) -> list[dict[str, Any]]:
        return list(self.folder.read_run().get("attempts") or []) if self.folder.run_file.exists() else []

    def newest_step(self) -> tuple[int, int]:
        """(attempt, step) of the step that was trained last; zeros before there is one."""
        for event in self._tail.read():
            if event.get("event") == "step":
                self._newest = event["attempt"], event["step"]
        return self._newest

    def first_step(self, attempt: int) -> int:
        """The first step that an attempt trained, once it has."""
        return next(int(step["step"]) for step in self.folder.steps() if step["attempt"] == attempt)


def children_of(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def title_of(process: psutil.Process) -> str:
    """What a process calls itself; nothing of one that ended."""
    try:
        return next(iter(process.cmdline()), "")
    except psutil.Error:
        return ""


def name_of(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return ""


def wait_until(what: Any, limit_s: float, every_s: float = 0.02) -> bool:
    """Whether it became so in time."""
    until = time.monotonic() + limit_s
    while not what():
        if time.monotonic() > until:
            return False
        time.sleep(every_s)
    return True
