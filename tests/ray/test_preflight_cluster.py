"""A preflight of a real cluster of three nodes, each with GPUs of its own: who is capped, who hangs, who is slow."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from build import build
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console
from tiny import write_spec

from orchestrator.driver.launch import RAY_ENVIRONMENT
from orchestrator.preflight.check import preflight
from orchestrator.screens.preflight import print_preflight
from orchestrator.spec.file import BadInput

HOOFPRINT = [sys.executable, "-m", "orchestrator"]
CAPPED = "GPU-bbbbbbbb-1111"
GPUS = {  # of each node; the last one's NVML does not return from any question about a GPU
    "head": "gpu uuid=GPU-aaaaaaaa-1111\ngpu uuid=GPU-aaaaaaaa-2222",
    "127.0.0.2": f"gpu uuid={CAPPED} limit=250 default_limit=400 reasons=64\ngpu uuid=GPU-bbbbbbbb-2222",
    "127.0.0.3": "gpu uuid=GPU-cccccccc-1111 hang=0",
}
LIMIT_S = 20


def hoofprint(*words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    own = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return subprocess.run([*HOOFPRINT, *words], capture_output=True, text=True, env=own | environment, timeout=600)


@pytest.fixture(scope="module")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def cluster(nvml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    # A cluster of a test must not become the one that another process joins by default.
    monkeypatch.setattr("ray._private.utils.write_ray_address", lambda *arguments: None)
    for key, value in RAY_ENVIRONMENT.items():
        monkeypatch.setenv(key, value)
    cluster = Cluster()
    try:
        for address, gpus in GPUS.items():
            config = tmp_path / f"{address}.txt"
            config.write_text(gpus)
            seen = {"LD_LIBRARY_PATH": str(nvml), "NVML_SIM": str(config)}
            place = {"node_ip_address": address} if cluster.head_node else {"include_dashboard": False}
            cluster.add_node(num_cpus=1, num_gpus=0, env_vars=seen, **place)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_each_node_is_measured_and_the_bad_ones_are_named(cluster: Cluster, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    # Below 1: of three nodes the slowest is named, whatever this machine does meanwhile.
    options = ["--runs", str(runs), "--limit-s", f"{LIMIT_S}", "--slow-below", "1", "--json"]
    done = hoofprint("doctor", "--cluster", "--address", cluster.address, *options)
    assert done.returncode == 1, done.stderr
    result = json.loads(done.stdout)
    assert list(runs.iterdir()) == []
    nodes = {node["address"] if node["address"] in GPUS else "head": node for node in result["nodes"]}
    assert len(nodes) == 3 and result["device"] == "cpu" and not result["ok"]
    for node in nodes.values():
        assert node["threads"] == 1 and node["sees_runs"] is True
        assert 0 < node["matmul_low"] <= node["matmul_tflop_per_s"] <= node["matmul_high"] < 1
        assert node["disk_write_mb_per_s"] > 0 and node["all_reduce_gb_per_s"] > 0
    fleet = result["all_reduce"]
    assert (fleet["backend"], fleet["nodes"], fleet["fault"], len(fleet["pairs"])) == ("gloo", 3, None, 3)
    assert fleet["bus_gb_per_s"] > 0 and all(pair["bus_gb_per_s"] > 0 for pair in fleet["pairs"])

    found = {(finding["node"], finding["gpu"], finding["check"]): finding for finding in result["findings"]}
    sound, capped, hung = (nodes[address]["node"] for address in GPUS)
    cap = found[capped, CAPPED, "power cap"]
    assert (cap["measured"], cap["others"], cap["unit"]) == (250, 400, "W")
    assert f"-i {CAPPED} -pl 400" in cap["todo"]
    assert "HW thermal slowdown, 60 °C" in found[capped, CAPPED, "throttle"]["said"]
    assert [key for key in found if key[1]] == [(capped, CAPPED, "power cap"), (capped, CAPPED, "throttle")]
    assert f"sensors not measured: no answer within {LIMIT_S} s" in found[hung, None, "not measured"]["said"]
    assert nodes["127.0.0.3"]["checks"] is None and nodes["head"]["checks"]
    assert not [key for key in found if key[0] == sound and key[2] not in ("matmul", "disk write", "all-reduce")]
    alike = [node for node in nodes.values() if node["checks"]]  # of the other one nobody knows which CPU it has
    slowest = min(alike, key=lambda node: node["matmul_tflop_per_s"])["node"]
    assert [key[0] for key in found if key[2] == "matmul"] == [slowest]
    for width in (80, 120):
        console = Console(width=width, record=True, file=open(os.devnull, "w"))
        print_preflight(result, console)
        text = console.export_text()
        assert CAPPED in text and "250 of 400" in text and max(map(len, text.splitlines())) <= width

    ray.init(address=cluster.address, log_to_driver=False)
    everywhere = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in ray.nodes()]
    holding = [Holder.options(scheduling_strategy=each).remote() for each in everywhere]
    ray.get([each.hold.remote() for each in holding])
    with pytest.raises(BadInput, match=r"0 of 1 CPUs free; .*0 of 1 CPUs free; .*0 of 1 CPUs free; `ray status`"):
        preflight(runs, lambda done, total, text: None)


@ray.remote(num_cpus=1)
class Holder:
    def hold(self) -> None:
        """Returns when the actor has its CPU."""


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
