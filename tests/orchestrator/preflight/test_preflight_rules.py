"""The rules of a preflight, as pure functions of what the nodes measured, and the words that people read."""

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from orchestrator.preflight import measure
from orchestrator.preflight.measure import Measuring, bus_gb_per_s
from orchestrator.preflight.node import REPEATS, disk_write_mb_per_s, repeated
from orchestrator.preflight.nodes import Held, Node, in_turn, ring
from orchestrator.preflight.rules import Finding, find_faults
from orchestrator.screens.preflight import in_lines, print_preflight
from orchestrator.spec.cluster_spec import ClusterSpec
from orchestrator.spec.file import BadInput, load_experiment

FLEET: dict[str, Any] = {"backend": "gloo", "bytes": 2**25, "nodes": 0, "bus_gb_per_s": None, "fault": None}
GPU = {"index": 0, "name": "NVIDIA H100 80GB HBM3", "throttle_reasons": [], "temperature_c": 60, "power_w": 500.0}
LIMITS = {"power_limit_w": 700.0, "default_power_limit_w": 700.0, "sm_clock_mhz": 1900, "max_sm_clock_mhz": 1980}
WRITES = ("No space left on device", "Read-only file system: '/shared'")
FINE = [
    {"section": "CPU", "name": "package-0", "state": "ok", "found": "energy counter", "todo": "", "details": {}},
    {"section": "software", "name": "torch", "state": "ok", "found": "2.13.0", "todo": "", "details": {}},
]


def ray_node(name: str, host: str = "", cpus: int = 2, free_cpus: float = 2) -> Node:
    return Node(name, name, host or name, "10.0.0.1", cpus, 0, free_cpus, 0)


def document(name: str, **told: Any) -> dict[str, Any]:
    """What a node's document becomes that has nothing wrong."""
    figures = {"matmul_tflop_per_s": 0.1, "disk_write_mb_per_s": 900.0, "all_reduce_gb_per_s": 10.0}
    return ray_node(name).document | figures | {"cpu_name": "EPYC", "sees_runs": True, "checks": FINE} | told


def gpu(uuid: str, rate: float | None = 700.0, **told: Any) -> dict[str, Any]:
    return GPU | LIMITS | {"uuid": uuid, "matmul_tflop_per_s": rate} | told


def faults(nodes: list[dict[str, Any]], below: float = 0.85) -> list[Finding]:
    return find_faults(nodes, FLEET, below)


def test_a_node_below_the_share_of_the_median_is_slow() -> None:
    rates = {"a": 0.100, "b": 0.084, "c": 0.102, "d": 0.099}
    nodes = [document(name, matmul_tflop_per_s=rate) for name, rate in rates.items()]
    [slow] = faults(nodes)
    assert (slow.node, slow.gpu, slow.check, slow.measured, slow.others) == ("b", None, "matmul", 0.084, 0.1)
    assert slow.said == "matmul 84.0 GFLOP/s: 84.0 % of the median of 4 nodes, 100 GFLOP/s" and "top" in slow.todo
    assert slow.as_json()["share"] == pytest.approx(0.84)
    assert faults(nodes, 0.8) == []
    # Exactly the share is not below it. Of two nodes the faster one is the measure.
    assert faults([document("a", disk_write_mb_per_s=850.0), document("b", disk_write_mb_per_s=1000.0)]) == []
    [slow] = faults([document("a", disk_write_mb_per_s=849.0), document("b", disk_write_mb_per_s=1000.0)])
    assert slow.node == "a" and slow.said == "disk write 849 MB/s: 84.9 % of the median of 2 nodes, 1,000 MB/s"


def test_like_is_compared_with_like() -> None:
    """Another model of CPU or GPU is not slow, and neither is the only one of its kind."""
    assert faults([document("a"), document("b", cpu_name="Xeon", matmul_tflop_per_s=0.02)]) == []
    a100 = gpu("GPU-3", 250.0, name="NVIDIA A100-SXM4-80GB")
    gpus = {"a": [gpu("GPU-1"), a100], "b": [gpu("GPU-2")]}
    nodes = [document(name, gpus=its, matmul_tflop_per_s=None) for name, its in gpus.items()]
    assert faults(nodes) == []
    nodes[1]["gpus"].append(gpu("GPU-4", 500.0, sm_clock_mhz=1300, throttle_reasons=["SW power cap"]))
    found = faults(nodes)
    assert [(each.node, each.gpu, each.check) for each in found] == [("b", "GPU-4", "matmul"), ("b", "GPU-4", "clock")]
    assert found[0].said == "matmul 500 TFLOP/s: 71.4 % of the median of 3 GPUs, 700 TFLOP/s"
    assert found[1].said == "clock at work 1,300 MHz: 68.4 % of the median of 3 GPUs, 1,900 MHz"


def test_a_power_cap_is_named_with_what_the_others_have() -> None:
    capped = gpu("GPU-2", power_limit_w=500.0)
    [found] = faults([document("a", gpus=[gpu("GPU-1"), capped]), document("b", gpus=[gpu("GPU-3")])])
    assert (found.node, found.gpu, found.check, found.measured, found.others) == ("a", "GPU-2", "power cap", 500, 700)
    assert found.said == ("power limit 500 W, default of the board 700 W; the other 2 NVIDIA H100 80GB HBM3: 700 W")
    assert found.todo == "sudo nvidia-smi -i GPU-2 -pl 700, unless it is meant"
    # A whole fleet that is capped is named too; a limit that is not told, or above the default, is no cap.
    assert len(faults([document(n, gpus=[gpu(f"GPU-{n}", power_limit_w=300.0)]) for n in "abc"])) == 3
    for limits in ({"power_limit_w": None}, {"default_power_limit_w": None}, {"power_limit_w": 699.5}):
        assert faults([document("a", gpus=[gpu("GPU-1", **limits)])]) == []


@pytest.mark.parametrize(
    ("told", "check", "said", "todo"),
    [
        (
            {"power_limit_w": 350.0, "default_power_limit_w": None},
            "power cap",
            "power limit 350 W; the other 2 NVIDIA H100 80GB HBM3: 700 W",
            "-pl 700",
        ),
        (
            {"power_limit_w": 600.0, "default_power_limit_w": 600.0},
            "power cap",
            "power limit 600 W, default of the board 600 W; the other 2 NVIDIA H100 80GB HBM3: 700 W",
            "another kind of board",
        ),
        (
            {"max_sm_clock_mhz": 1755, "sm_clock_mhz": 1750},
            "clock",
            "its clock is at most 1755 MHz; the other 2 NVIDIA H100 80GB HBM3: 1980 MHz",
            "nvidia-smi -q -d CLOCK",
        ),
    ],
)
def test_a_board_that_differs_from_the_others_of_its_name(
    told: dict[str, Any], check: str, said: str, todo: str
) -> None:
    fleet = [document(name, gpus=[gpu(f"GPU-{name}")]) for name in "ab"]
    [found] = faults([*fleet, document("c", gpus=[gpu("GPU-c", **told)])])
    assert (found.node, found.gpu, found.check, found.said) == ("c", "GPU-c", check, said) and todo in found.todo
    # Of another name it is no like, and alone it has none.
    assert faults([*fleet, document("c", gpus=[gpu("GPU-c", name="NVIDIA H100 PCIe", **told)])]) == []


@pytest.mark.parametrize(
    ("told", "checks", "words"),
    [
        ({"throttle_reasons": ["SW power cap"], "sm_clock_mhz": 1400}, [], ""),  # a GPU at its limit, as in training
        ({"throttle_reasons": ["idle"], "sm_clock_mhz": 345, "rate": None}, [], ""),
        ({"throttle_reasons": ["HW thermal slowdown"], "temperature_c": 91}, ["throttle"], "91 °C"),
        ({"throttle_reasons": ["HW power brake slowdown"], "rate": None}, ["throttle"], "at rest: HW power brake"),
        ({"throttle_reasons": ["application clocks setting"], "sm_clock_mhz": 1200}, ["clock"], "1200 of at most 1980"),
        ({"throttle_reasons": None, "sm_clock_mhz": None}, [], ""),
    ],
)
def test_clocks_that_something_holds_down(told: dict[str, Any], checks: list[str], words: str) -> None:
    found = faults([document("a", gpus=[gpu("GPU-1", **told)])])
    assert [each.check for each in found] == checks and all(words in each.said for each in found)


def test_a_sensor_or_package_that_the_others_have() -> None:
    no_counter = FINE[0] | {"state": "missing", "found": "energy_uj is not readable", "todo": "chmod o+r it"}
    other_torch = FINE[1] | {"found": "2.9.0"}
    checks = {"a": FINE, "b": [no_counter, FINE[1]], "c": FINE[1:], "d": [FINE[0], other_torch]}
    nodes = [document(name, checks=its) for name, its in checks.items()]
    nodes.append(document("e"))
    found = {each.node: each for each in faults(nodes)}
    assert list(found) == ["b", "c", "d"]
    assert found["b"].said == "CPU package-0: energy_uj is not readable; ok on 3 of 5 nodes"
    assert found["b"].todo == "chmod o+r it" and "not there" in found["c"].said
    assert found["d"].said == "torch 2.9.0, and 2.13.0 on 4 of 5 nodes"
    broken = FINE[1] | {"state": "broken", "found": "not installed", "todo": "pip install torch"}
    assert [each.node for each in faults(nodes[:2])] == ["b"]  # half of them have it
    seen = {"section": "GPU", "name": "0", "state": "ok", "found": "H100", "todo": "", "details": {}}
    with_gpus = [document(n, gpus=[gpu(n)], checks=FINE if n == "c" else [seen, *FINE]) for n in "abc"]
    [one] = faults([*with_gpus, document("head")])  # a node without GPUs lacks none
    assert one.node == "c" and one.said == "GPU 0: not there; ok on 2 of 3 nodes"
    [alone] = faults([document("a", checks=[broken])])
    assert alone.todo == "pip install torch"


def test_what_could_not_be_measured_is_a_finding() -> None:
    hung = document("a", missing={"sensors": "no answer within 5 s"}, checks=None)
    busy = document("b", missing={"matmul": "busy: 0 of 2 CPUs free", "all-reduce": "busy: 0 of 2 CPUs free"})
    away = document("c", sees_runs=False, disk_write_mb_per_s=None)
    blind = document("d", gpus_counted=8)
    killed = document("e", missing={"all-reduce": "its process died: worker died"})
    full, closed = (document(n, missing={"disk write": why}) for n, why in zip("fg", WRITES, strict=True))
    nodes = [hung, busy, away, blind, killed, full, closed]
    said = {each.node: f"{each.said} > {each.todo}" for each in faults(nodes)}
    assert said["a"].startswith("sensors not measured: no answer within 5 s > see dmesg")
    assert said["b"].startswith("matmul, all-reduce not measured: busy: 0 of 2 CPUs free > wait")
    assert "another one than the driver's > mount" in said["c"]
    assert said["d"].startswith("Ray counts 8 GPUs and NVML shows none")
    assert said["e"].startswith("all-reduce not measured: its process died: worker died > see dmesg there")
    assert said["f"].startswith("disk write not measured: No space left on device > free some space there")
    assert "Read-only file system: '/shared' > let the user that Ray runs as on that node write there" in said["g"]
    [failed] = find_faults([document("a")], FLEET | {"fault": "timed out"})
    assert failed.node == "all" and "timed out" in failed.said


def test_a_cluster_without_room_is_refused_at_once() -> None:
    def measuring(*nodes: Node) -> Measuring:
        return Measuring(nodes, "cpu", 1.0, lambda done, total, text: None)

    with pytest.raises(BadInput, match="a: 0 of 2 CPUs free; b: 1 of 2 CPUs free; `ray status`"):
        measuring(ray_node("a", free_cpus=0), ray_node("b", free_cpus=1))
    with pytest.raises(BadInput, match="no CPUs to measure: 1 node"):
        measuring(ray_node("a", cpus=0, free_cpus=0))
    busy, head = ray_node("busy", free_cpus=1), ray_node("head", cpus=0, free_cpus=0)
    measuring(ray_node("a"), busy, head)
    assert busy.document["missing"] == dict.fromkeys(("matmul", "all-reduce"), "busy: 1 of 2 CPUs free")
    assert head.document["missing"] == {}  # no rank would be there


def test_neighbours_meet_two_at_a_time() -> None:
    nodes = [ray_node(name) for name in "abcde"]
    pairs = ring(nodes)
    assert [a.name + b.name for a, b in pairs] == ["ab", "bc", "cd", "de", "ea"]
    rounds = in_turn(pairs)
    assert sorted(len(each) for each in rounds) == [1, 2, 2] and sum(rounds, []) != pairs
    for each in rounds:
        names = [node.name for pair in each for node in pair]
        assert len(names) == len(set(names))
    assert ring(nodes[:1]) == [] and len(ring(nodes[:2])) == 1 and len(ring(nodes[:3])) == 3
    same = [ray_node(name, host="one") for name in "abc"]  # an emulated cluster
    assert [len(each) for each in in_turn([(node,) for node in same])] == [1, 1, 1]


def test_the_bus_bandwidth_is_of_the_slowest_rank_and_the_median_repeat() -> None:
    # Repeats last 2, 4 and 3 s; of 4 GB each link carries 2 x 3/4: 6 GB in 3 s.
    seconds = [[1.0, 4.0, 3.0], [2.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    assert bus_gb_per_s(4_000_000_000, seconds) == pytest.approx(2.0)


def test_a_rank_that_nccl_ends_because_its_partner_hangs_is_not_to_blame(monkeypatch: pytest.MonkeyPatch) -> None:
    sound, hung = ray_node("sound"), ray_node("hung")
    told = {"free_port": {"results": {"pair": 1234}}, "ping": {}}
    told["all_reduce"] = {
        "died": {("pair", 0)}, "silent": {("pair", 1)},
        "faults": {("pair", 0): "its process died: SIGABRT", ("pair", 1): "no answer within 9 s"},
    }  # fmt: skip

    class Rank:
        def __getattr__(self, call: str) -> Any:
            return SimpleNamespace(remote=lambda *arguments: call)

    class Answers:
        def __init__(self, asked: dict[Any, str], *limits: Any):
            self.results, self.faults, self.died, self.silent = {}, {}, set(), set()
            vars(self).update(told[next(iter(asked.values()))])

        def wait(self) -> "Answers":
            return self

    monkeypatch.setattr(measure, "Answers", Answers)
    monkeypatch.setattr(measure.ray, "kill", lambda actor: None)
    for node in (sound, hung):
        node.ranks = [Held(node, Rank())]
    measuring = Measuring([sound, hung], "cpu", 9.0, lambda done, total, text: None)
    rates, faults = measuring._reduce("between", "all-reduce", {"pair": [sound.ranks[0], hung.ranks[0]]})
    assert (rates, faults) == ({}, {"pair": "no answer within 9 s"})
    assert sound.document["missing"] == {"all-reduce": "held up by hung, which does not answer"}
    assert hung.document["missing"] == {"all-reduce": "no answer within 9 s"}


def test_repeats_wait_for_all_their_work_and_leave_the_warm_up_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock of its own: work is launched in 1 ms, and a wait lasts until 20 ms of each are done."""
    now, done, called = [0.0], [0.0], []

    def launch() -> None:
        called.append("work")
        now[0] += 0.001
        # The first one chooses kernels, and takes a second.
        done[0] = max(done[0], now[0]) + (1.0 if len(called) == 1 else 0.02)

    def wait() -> None:
        now[0] = max(now[0], done[0])

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    halfway: list[float] = []
    seconds = repeated(launch, wait, 0.5, lambda: halfway.append(done[0] - now[0]))
    assert len(seconds) == REPEATS and seconds == pytest.approx([0.02] * REPEATS, rel=0.05)
    assert len(halfway) == 1 and halfway[0] > 0.02  # at work


def test_a_disk_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert disk_write_mb_per_s(tmp_path / "probe") > 0 and list(tmp_path.iterdir()) == []
    synced: list[int] = []
    monkeypatch.setattr("os.fsync", lambda file: synced.append(file))
    disk_write_mb_per_s(tmp_path / "probe")
    assert len(synced) >= 2

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        disk_write_mb_per_s(tmp_path / "probe")
    assert list(tmp_path.iterdir()) == []


def result(nodes: list[dict[str, Any]], fleet: dict[str, Any] = FLEET) -> dict[str, Any]:
    found = [each.as_json() for each in find_faults(nodes, fleet)]
    more = {"ok": not found, "duration_s": 14.2, "device": "cuda", "slow_below": 0.85, "all_reduce": fleet}
    return json.loads(json.dumps({"findings": found, "nodes": nodes} | more))


def screen(shown: dict[str, Any], width: int) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))
    print_preflight(shown, console)
    return console.export_text()


@pytest.mark.parametrize("width", [80, 120])
def test_a_screen_names_the_slow_one_and_fits(width: int) -> None:
    uuids = [f"GPU-{number:08d}-1111-2222-3333-444444444444" for number in range(4)]
    gpus = [gpu(uuid, 702.0) for uuid in uuids]
    gpus[3] = gpu(uuids[3], 431.0, power_limit_w=400.0, sm_clock_mhz=1100, throttle_reasons=["SW power cap"])
    nodes = [
        document(f"ip-10-0-{i}-17.eu-west-1.compute.internal", matmul_tflop_per_s=None, gpus=gpus[2 * i : 2 * i + 2])
        for i in range(2)
    ]
    nodes[1]["all_reduce_within_gb_per_s"] = 312.0
    shown = result(nodes, FLEET | {"bus_gb_per_s": 9.87, "nodes": 2})
    text = screen(shown, width)
    assert max(map(len, text.splitlines())) <= width
    joined = " ".join(text.split())
    for words in (uuids[3], "431 to 702", "400 of 700", "1,100 of 1,980", f"-i {uuids[3]} -pl 700", "9.87 GB/s"):
        assert words in joined
    lines = in_lines(shown)
    assert lines[0] == "preflight of 2 nodes in 14.2 s: 3 findings" and any(uuids[3] in line for line in lines[1:])


def test_a_large_cluster_shows_who_is_wrong() -> None:
    nodes = [document(f"n{number:03d}") for number in range(256)]
    nodes[77]["disk_write_mb_per_s"] = 90.0
    text = screen(result(nodes), 80)
    assert "n077" in text and "n078" not in text and "and 255 more" in text and "10.0 % of the median of 256" in text
    nodes[77]["disk_write_mb_per_s"] = 900.0
    assert "no node is below 0.85 of the median" in screen(result(nodes), 80)


def test_the_key_of_the_spec() -> None:
    laptop = Path(__file__).parents[3] / "experiments" / "laptop.yaml"
    assert load_experiment(laptop).cluster.preflight == "off"
    for written, read in (("off", "off"), ("warn", "warn"), ("stop", "stop")):  # YAML reads off as false
        assert load_experiment(laptop, [f"cluster.preflight={written}"]).cluster.preflight == read
    for wrong in ("on", "0", "maybe"):
        with pytest.raises(BadInput, match="preflight"):
            load_experiment(laptop, [f"cluster.preflight={wrong}"])
    assert ClusterSpec.model_json_schema()["properties"]["preflight"]["enum"] == ["off", "warn", "stop", False]
