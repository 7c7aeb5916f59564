"""What the driver reads of its nodes and ranks while they work."""

import json
from pathlib import Path
from typing import Any

from energy.metering.live import live_figures
from energy.runs import RunFolder, write_json
from orchestrator.cluster.nodes_now import FEW_DEVICES, SILENT_S, NodesNow
from orchestrator.live.stragglers import LOOK_EVERY_S, Stragglers

NOW = 1_760_000_000.0


def device(uuid: str, kind: str, power_w: float | None, energy_j: float, missing: str | None = None) -> dict[str, Any]:
    about = {"uuid": uuid, "name": uuid, "kind": kind, "missing": missing}
    return about | {"power_w": power_w, "energy_j": energy_j}


def node(folder: RunFolder, name: str, *devices: dict[str, Any]) -> None:
    write_json(folder.path / "live" / f"{name}.json", live_figures(name, NOW, devices), durable=False)


def test_gpus_that_no_rank_holds_are_not_the_runs_on_a_shared_node(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    gpus = [device(f"GPU-{n}", "gpu", 100.0 * n, 1000.0 * n) for n in (1, 2, 3)]
    node(folder, "n1", *gpus, device("cpu@n1", "cpu", 50.0, 500.0))
    own, all_of_it = NodesNow(folder, used={"GPU-1", "GPU-3"}), NodesNow(folder)
    for nodes in (own, all_of_it):
        nodes.look(NOW)
    assert (own.power_w(NOW), own.energy_j) == (450.0, 4500.0)
    assert (all_of_it.power_w(NOW), all_of_it.energy_j) == (650.0, 6500.0)
    assert [each["uuid"] for each in own.documents(NOW)[0]["devices"]] == ["GPU-1", "GPU-3", "cpu@n1"]


def test_what_is_not_known_is_not_zero(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    nodes = NodesNow(folder)
    nodes.look(NOW)
    assert (nodes.power_w(NOW), nodes.energy_j, nodes.energy_until(NOW)) == (None, None, None)
    node(folder, "n1", device("GPU-1", "gpu", None, 0.0), device("GPU-2", "gpu", 300.0, 10.0, missing="GPU is lost"))
    nodes.look(NOW)
    assert nodes.power_w(NOW) is None
    [told] = nodes.documents(NOW)
    assert told["power_w"] is None and told["missing"] == ["GPU-2"]
    node(folder, "n2", device("GPU-3", "gpu", 200.0, 20.0))
    nodes.look(NOW + 1)
    assert nodes.power_w(NOW + 1) == 200.0
    assert nodes.power_w(NOW + 1 + SILENT_S) is None


def test_a_node_that_measures_itself_is_not_counted_twice(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    node(folder, "n1", device("GPU-1", "gpu", 300.0, 30.0), device("node@n1", "node", 900.0, 90.0))
    nodes = NodesNow(folder, used=set())  # the GPU is in the node's own figure, whoever holds it
    nodes.look(NOW)
    assert (nodes.power_w(NOW), nodes.energy_j) == (900.0, 90.0)


def test_of_many_devices_the_nodes_alone_are_listed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for number in range(FEW_DEVICES // 8 + 1):
        node(folder, f"n{number}", *(device(f"GPU-{number}-{n}", "gpu", 400.0, 1.0) for n in range(8)))
    nodes = NodesNow(folder)
    nodes.look(NOW)
    told = nodes.documents(NOW)
    assert len(told) == FEW_DEVICES // 8 + 1 and all(each["devices"] is None for each in told)
    assert all(each["power_w"] == 3200.0 for each in told)


def test_the_rank_that_waits_for_its_data_is_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.metrics_dir.mkdir()
    seen = Stragglers(folder)
    seen.look(NOW)
    assert seen.found is None  # nobody has said anything
    for rank in range(4):
        folder.metrics_file(rank).touch()
    seen.look(NOW + LOOK_EVERY_S)
    assert seen.found == []

    def wait(rank: int, end: float, seconds: float) -> None:
        mark = {"event": "phase", "phase": "data_wait", "start_unix_s": end - seconds, "end_unix_s": end}
        with folder.metrics_file(rank).open("a") as file:
            file.write(json.dumps(mark) + "\n")

    wait(1, NOW + 12, 0.5)  # too little to matter
    for second in range(5):
        wait(2, NOW + 11 + second, 0.9)
    seen.look(NOW + LOOK_EVERY_S + 1)
    assert seen.found == []  # it looks every ten seconds only
    seen.look(NOW + 2 * LOOK_EVERY_S)
    assert [(each["rank"], round(each["data_wait_s"], 3)) for each in seen.found or []] == [(2, 4.5)]
    seen.look(NOW + 100)
    assert seen.found == []  # that was long ago
