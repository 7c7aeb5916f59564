"""A preflight of a cluster of three nodes, each with GPUs and S3 keys of its own: who is capped, who hangs, is slow."""

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray
from build import build
from clusters import ray_cluster
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console
from s3_server import BUCKET, REGION, S3, s3_server
from tiny import STEPS, write_spec

from energy.runs import RunFolder
from orchestrator.cluster.meters import node_names
from orchestrator.preflight import storage
from orchestrator.preflight.before_run import before_training
from orchestrator.preflight.check import preflight
from orchestrator.preflight.storage import require_storage_of_nodes
from orchestrator.screens.preflight import print_preflight
from orchestrator.spec.file import BadInput, load_experiment

HOOFPRINT = [sys.executable, "-m", "orchestrator"]
CAPPED, SLOWER = "GPU-bbbbbbbb-1111", "GPU-bbbbbbbb-2222"
AWAY, HANGING = "127.0.0.2", "127.0.0.3"
GPUS = {  # of each node; the last one's NVML does not return from any question about a GPU
    "head": "gpu uuid=GPU-aaaaaaaa-1111\ngpu uuid=GPU-aaaaaaaa-2222",
    AWAY: f"gpu uuid={CAPPED} limit=250 default_limit=400 reasons=64\ngpu uuid={SLOWER} clock=1200 max_clock=1200",
    HANGING: "gpu uuid=GPU-cccccccc-1111 hang=0",
}
LIMIT_S = 20


def hoofprint(*words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    own = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return subprocess.run([*HOOFPRINT, *words], capture_output=True, text=True, env=own | environment, timeout=600)


@pytest.fixture(scope="module")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[S3, S3]]:
    """Two servers, which give out keys of their own."""
    folder = tmp_path_factory.mktemp("s3")
    with s3_server(folder / "one.log") as one, s3_server(folder / "other.log") as other:
        yield one, other


@dataclass
class Nodes:
    cluster: Cluster
    by_address: dict[str, Any]

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def raylet(self, address: str) -> psutil.Process:
        return psutil.Process(self.by_address[address].all_processes["raylet"][0].process.pid)

    def processes(self, address: str, title: str) -> list[psutil.Process]:
        """The node's processes whose titles begin so."""
        found = []
        for process in self.raylet(address).children(recursive=True):
            try:
                if process.cmdline()[:1] and process.cmdline()[0].startswith(title):
                    found.append(process)
            except psutil.Error:
                continue  # it ended meanwhile
        return found


@pytest.fixture(scope="module")
def nodes(nvml: Path, s3: tuple[S3, S3], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    folder = tmp_path_factory.mktemp("nodes")
    by_address = {}
    with ray_cluster(None) as cluster:
        for address, gpus in GPUS.items():
            config = folder / f"{address}.txt"
            config.write_text(gpus)
            server = s3[address == AWAY]
            seen = {"LD_LIBRARY_PATH": str(nvml), "NVML_SIM": str(config)}
            keys = server.environment(AWS_ENDPOINT_URL=f"http://127.0.0.1:{server.port}", AWS_REGION=REGION)
            place = {"node_ip_address": address} if cluster.head_node else {"include_dashboard": False}
            environment = seen | keys | {"AWS_EC2_METADATA_DISABLED": "true"}
            by_address[address] = cluster.add_node(num_cpus=1, num_gpus=0, env_vars=environment, **place)
        yield Nodes(cluster, by_address)


@pytest.fixture
def joined(nodes: Nodes) -> Iterator[None]:
    ray.init(address=nodes.address, log_to_driver=False)
    yield
    ray.shutdown()


@contextmanager
def whenever(nodes: Nodes, address: str, title: str, act: Callable[[psutil.Process], None]) -> Iterator[None]:
    """Does something to the node's process of this title, again and again while it has it."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            for process in nodes.processes(address, title):
                try:
                    while not over.is_set() and process.cmdline()[0].startswith(title):
                        act(process)
                except (psutil.Error, IndexError):
                    continue  # ended

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def test_each_node_is_measured_and_the_bad_ones_are_named(nodes: Nodes, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    # Below 1: of three nodes the slowest is named, whatever this machine does meanwhile.
    options = ["--runs", str(runs), "--limit-s", f"{LIMIT_S}", "--slow-below", "1", "--json"]
    done = hoofprint("doctor", "--cluster", "--address", nodes.address, *options)
    assert done.returncode == 1, done.stderr
    result = json.loads(done.stdout)
    assert list(runs.iterdir()) == []
    measured = {node["address"] if node["address"] in GPUS else "head": node for node in result["nodes"]}
    assert len(measured) == 3 and result["device"] == "cpu" and not result["ok"]
    for node in measured.values():
        assert node["threads"] == 1 and node["sees_runs"] is True
        assert 0 < node["matmul_low"] <= node["matmul_tflop_per_s"] <= node["matmul_high"] < 1
        assert node["disk_write_mb_per_s"] > 0 and node["all_reduce_gb_per_s"] > 0
    fleet = result["all_reduce"]
    assert (fleet["backend"], fleet["nodes"], fleet["fault"], len(fleet["pairs"])) == ("gloo", 3, None, 3)
    assert fleet["bus_gb_per_s"] > 0 and all(pair["bus_gb_per_s"] > 0 for pair in fleet["pairs"])

    found = {(finding["node"], finding["gpu"], finding["check"]): finding for finding in result["findings"]}
    sound, capped, hung = (measured[address]["node"] for address in GPUS)
    cap = found[capped, CAPPED, "power cap"]
    assert (cap["measured"], cap["others"], cap["unit"]) == (250, 400, "W")
    assert f"-i {CAPPED} -pl 400" in cap["todo"]
    assert "HW thermal slowdown, 60 °C" in found[capped, CAPPED, "throttle"]["said"]
    slower = found[capped, SLOWER, "clock"]
    assert slower["said"] == "its clock is at most 1200 MHz; the other 3 NVIDIA-Sim-A100: 1410 MHz"
    of_gpus = [(CAPPED, "power cap"), (CAPPED, "throttle"), (SLOWER, "clock")]
    assert [key for key in found if key[1]] == [(capped, *each) for each in of_gpus]
    assert f"sensors not measured: no answer within {LIMIT_S} s" in found[hung, None, "not measured"]["said"]
    assert measured[HANGING]["checks"] is None and measured["head"]["checks"]
    assert not [key for key in found if key[0] == sound and key[2] not in ("matmul", "disk write", "all-reduce")]
    alike = [node for node in measured.values() if node["checks"]]  # of the other one nobody knows which CPU it has
    slowest = min(alike, key=lambda node: node["matmul_tflop_per_s"])["node"]
    assert [key[0] for key in found if key[2] == "matmul"] == [slowest]
    for width in (80, 120):
        console = Console(width=width, record=True, file=open(os.devnull, "w"))
        print_preflight(result, console)
        text = console.export_text()
        assert CAPPED in text and "250 of 400" in text and max(map(len, text.splitlines())) <= width


@ray.remote(num_cpus=1)
class Holder:
    def hold(self) -> None:
        """Returns when the actor has its CPU."""


def test_a_cluster_that_others_use_is_not_measured(joined: None, tmp_path: Path) -> None:
    everywhere = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in ray.nodes()]
    holding = [Holder.options(scheduling_strategy=each).remote() for each in everywhere]
    ray.get([each.hold.remote() for each in holding])
    wait_for_free_cpus(0)
    with pytest.raises(BadInput, match=r"0 of 1 CPUs free; .*0 of 1 CPUs free; .*0 of 1 CPUs free; `ray status`"):
        preflight(tmp_path, lambda done, total, text: None)


def stop(process: psutil.Process) -> None:
    process.send_signal(signal.SIGSTOP)
    time.sleep(0.5)


def test_ranks_that_die_or_hang_are_named_and_hold_nothing(nodes: Nodes, joined: None, tmp_path: Path) -> None:
    """One node's rank is killed at work and its disk is full, another's stops in the middle of an all-reduce."""
    killed: list[int] = []

    def kill(process: psutil.Process) -> None:
        process.kill()
        killed.append(process.pid)

    raylet = nodes.raylet(AWAY)
    for process in (raylet, *raylet.children(recursive=True)):
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (2**24, resource.RLIM_INFINITY))
    try:
        for _ in range(3):  # on a busy machine a second's work may be over before it is seen
            wait_for_free_cpus(len(GPUS))
            with (
                whenever(nodes, AWAY, "ray::Rank.matmul", kill),
                whenever(nodes, HANGING, "ray::Rank.all_reduce", stop),
            ):
                result = preflight(tmp_path, lambda done, total, text: None, limit_s=LIMIT_S)
            if killed:
                break
        assert list(tmp_path.iterdir()) == []
        names = {node["address"] if node["address"] in GPUS else "head": node["node"] for node in result["nodes"]}
        said = [(each["node"], each["said"]) for each in result["findings"] if each["check"] == "not measured"]
        expected = [  # the sound one's partner stopped before it took the connection, or thereafter
            (names["head"], f"all-reduce not measured: (with|held up by) {names[HANGING]}"),
            (names[AWAY], "disk write not measured: File too large"),
            (names[AWAY], "matmul, all-reduce not measured: its process died"),
            (names[HANGING], f"all-reduce, sensors not measured: no answer within {LIMIT_S} s"),
        ]
        for node, text in expected:
            assert [other for other, whole in said if re.match(text, whole)] == [node], (text, said)
        assert len(said) == len(expected)
        # What the training then needs is free, and nobody is left who would take it later.
        wait_for_free_cpus(len(GPUS))
        for address in GPUS:
            assert nodes.processes(address, "ray::Rank") == [], address
    finally:
        for process in (raylet, *raylet.children(recursive=True)):
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def wait_for_free_cpus(count: int) -> None:
    """Until Ray says so: its nodes tell it what is free a moment after it is."""
    until = time.monotonic() + 60
    while ray.available_resources().get("CPU", 0) != count:
        assert time.monotonic() < until, ray.available_resources()
        time.sleep(0.2)


def test_copies_must_go_to_one_storage_from_every_node(nodes: Nodes, joined: None, s3: tuple[S3, S3]) -> None:
    """By the nodes' own keys and endpoints: one of them has those of another server."""

    def ask(uri: str, limit_s: float = 60) -> None:
        require_storage_of_nodes(uri, "run", "cpu", lambda text: pytest.fail(text), limit_s)

    [away] = [name for name in node_names(ray.nodes()).values() if name.endswith(AWAY)]
    with pytest.raises(BadInput, match=f"cannot be written from 1 of 3 nodes: on {away}: .*give the ranks a key"):
        ask(s3[0].uri)
    with pytest.raises(BadInput, match=f"is not one storage for all nodes: .*does not see what {away} wrote"):
        ask(f"s3://{BUCKET}/llama?region={REGION}")
    assert s3[0].names() == s3[1].names() == []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(BadInput, match="from 3 of 3 nodes: on .*: no answer within 4 s"):
            ask(f"s3://{BUCKET}/a?endpoint_override={endpoint}&scheme=http&region={REGION}", limit_s=4)
        until = time.monotonic() + 30
        while any(nodes.processes(address, "ray::NodeStorage") for address in GPUS):
            assert time.monotonic() < until
            time.sleep(0.2)


def test_a_run_folder_that_a_node_does_not_see_is_refused(
    nodes: Nodes, joined: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    screen: Any = SimpleNamespace(note=notes.append)
    ask = partial(before_training, load_experiment(write_spec(tmp_path)), RunFolder(tmp_path), "cpu", screen)
    ask()  # here all share one disk
    names = sorted(name for name in node_names(ray.nodes()).values() if name.endswith((AWAY, HANGING)))

    def look(folder: Path, sizes: dict[str, int]) -> list[str]:
        assert ray.util.get_node_ip_address() == AWAY, "nobody can say"
        return unseen(folder / "elsewhere", sizes)

    def unseen(folder: Path, sizes: dict[str, int]) -> list[str]:
        return [name for name in sizes if not (folder / name).exists()]

    monkeypatch.setattr(storage, "unseen", look)
    with pytest.raises(BadInput, match=f"^{names[0]} does not see {tmp_path}, .* that all nodes share .--runs.; "):
        ask()
    assert [note.partition(":")[0] for note in notes] == [f"{names[1]} did not say whether it sees {tmp_path}"]
    assert not list(tmp_path.glob(".probe-*"))


def slow(process: psutil.Process) -> None:
    """A tenth of its time."""
    process.send_signal(signal.SIGSTOP)
    time.sleep(0.09)
    process.send_signal(signal.SIGCONT)
    time.sleep(0.01)


@pytest.mark.stress
def test_a_run_that_is_only_warned_names_the_slow_node_and_goes_on(nodes: Nodes, tmp_path: Path) -> None:
    nodes.cluster.remove_node(nodes.by_address[HANGING])
    run, there = RunFolder(tmp_path / "runs" / "one"), tmp_path / "there"
    settings = [f"cluster.address={nodes.address}", "cluster.preflight=warn", f"checkpoint.copy_to={there.as_uri()}"]
    options = [part for setting in settings for part in ("--set", setting)]
    with whenever(nodes, AWAY, "ray::Rank.matmul", slow):
        spec = str(write_spec(tmp_path, workers=2))
        done = hoofprint("run", spec, "--runs", str(run.path.parent), "--name", run.path.name, *options)
    assert done.returncode == 0, done.stderr
    assert [step["step"] for step in run.steps()] == list(range(1, STEPS + 1))
    assert sorted(path.name for path in (there / "one" / "checkpoints").iterdir())[-1] == f"step-{STEPS:08d}"
    result = json.loads((run.path / "preflight.json").read_text())
    [slowest] = [finding for finding in result["findings"] if finding["check"] == "matmul"]
    assert slowest["node"].endswith(AWAY) and slowest["measured"] < 0.5 * slowest["others"]
    lines = [line.strip() for line in done.stderr.splitlines()]
    told = lines.index(f"{slowest['node']}: {slowest['said']}")
    assert lines[told + 1] == slowest["todo"]
    assert any(line.startswith("preflight of 2 nodes in ") for line in lines[:told])
    assert any(CAPPED in line and "power limit 250 W" in line for line in lines)


def test_a_run_that_is_to_stop_does_so_before_the_first_step(nvml: Path, tmp_path: Path) -> None:
    config = tmp_path / "gpus.txt"
    config.write_text(f"gpu uuid={CAPPED} limit=250 default_limit=400")
    runs = tmp_path / "runs"
    options = ["--runs", str(runs), "--name", "one", "--set", "cluster.preflight=stop"]
    seen = {"LD_LIBRARY_PATH": str(nvml), "NVML_SIM": str(config)}
    done = hoofprint("run", str(write_spec(tmp_path)), *options, **seen)
    assert done.returncode == 1, done.stderr
    assert f"{CAPPED}: power limit 250 W, default of the board 400 W" in done.stderr
    assert "the run failed: " in done.stderr and "--resume" in done.stderr
    run: dict[str, Any] = json.loads((runs / "one" / "run.json").read_text())
    assert run["status"] == "failed" and "(cluster.preflight is stop; " in run["error"] and CAPPED in run["error"]
    assert not list(runs.glob("one/metrics/*"))
    kept = json.loads((runs / "one" / "preflight.json").read_text())
    assert kept["nodes"][0]["matmul_tflop_per_s"] > 0 and [f["check"] for f in kept["findings"]] == ["power cap"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--cluster", "--address", "127.0.0.1:1"], "no Ray answers at 127.0.0.1:1"),
        (["--address", "127.0.0.1:1"], "give --cluster too"),
    ],
)
def test_what_cannot_be_asked_is_refused_at_once(words: list[str], said: str) -> None:
    done = hoofprint("doctor", *words)
    assert done.returncode == 2 and said in done.stderr and done.stdout == ""
