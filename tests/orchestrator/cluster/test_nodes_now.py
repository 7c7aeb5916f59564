"""What the driver reads of its nodes and ranks while they work."""

import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from energy_fakes import FakeSensor, reading

from energy.accounting.account import account_run
from energy.metering import meter as meter_module
from energy.metering.live import SILENT_S, live_figures, since
from energy.metering.meter import Meter
from energy.runs import RunFolder, write_json
from orchestrator.cluster.nodes_now import ASK_EVERY_S, FEW_DEVICES, HELD_S, NodesNow
from orchestrator.live.stragglers import LOOK_EVERY_S, Stragglers

NOW = 1_760_000_000.0


def device(uuid: str, kind: str, power_w: float | None, energy_j: float, missing: str | None = None) -> dict[str, Any]:
    about = {"uuid": uuid, "name": uuid, "kind": kind, "missing": missing}
    return about | {"power_w": power_w, "energy_j": energy_j}


def node(folder: RunFolder, name: str, *devices: dict[str, Any]) -> None:
    figures = live_figures(name, NOW, devices) | {"boot_id": "one", "began_monotonic_s": 1.0}
    write_json(folder.path / "live" / f"{name}.json", figures, durable=False)


def test_gpus_that_no_rank_holds_are_not_the_runs_on_a_shared_node(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    gpus = [device(f"GPU-{n}", "gpu", 100.0 * n, 1000.0 * n) for n in (1, 2, 3)]
    node(folder, "n1", *gpus, device("cpu@n1", "cpu", 50.0, 500.0))
    own, all_of_it = NodesNow(folder, used={"GPU-1", "GPU-3"}), NodesNow(folder)
    for nodes in (own, all_of_it):
        nodes.look(NOW)
    assert (own.power_w(NOW), own.energy_j) == (450.0, 4500.0)
    assert (all_of_it.power_w(NOW), all_of_it.energy_j) == (650.0, 6500.0)
    assert [each["uuid"] for each in own.documents(NOW, NOW)[0]["devices"]] == ["GPU-1", "GPU-3", "cpu@n1"]


def test_what_is_not_known_is_not_zero(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    nodes = NodesNow(folder)
    nodes.look(NOW)
    assert [nodes.power_w(NOW), nodes.energy_j, nodes.energy_until(NOW), nodes.held_w(NOW)] == [None] * 4
    node(folder, "n1", device("GPU-1", "gpu", None, 0.0), device("GPU-2", "gpu", 300.0, 10.0, missing="GPU is lost"))
    nodes.look(NOW)
    assert nodes.power_w(NOW) is None and nodes.held_w(NOW) is None
    [told] = nodes.documents(NOW, NOW)
    assert told["power_w"] is None and told["missing"] == ["GPU-2"]
    node(folder, "n2", device("GPU-3", "gpu", 200.0, 20.0))
    nodes.look(NOW + 1)
    assert nodes.power_w(NOW + 1) == 200.0
    assert nodes.power_w(NOW + 1 + SILENT_S) is None


def test_what_a_node_read_while_it_was_others_is_not_shown() -> None:
    """A GPU that came up later has nothing to take off; of one that nothing is known of nothing is said."""
    before = live_figures("n1", NOW, [device("GPU-1", "gpu", 100.0, 1000.0), device("cpu@n1", "cpu", 50.0, 500.0)])
    gpus = [device("GPU-1", "gpu", 300.0, 1600.0), device("GPU-2", "gpu", 200.0, 20.0)]
    now = live_figures("n1", NOW + 2, [*gpus, device("cpu@n1", "cpu", 50.0, 600.0)])
    now["devices"][1]["energy_j"] = None
    told = since(now, before)
    assert [each["energy_j"] for each in told["devices"]] == [600.0, None, 100.0]
    assert (told["energy_j"], told["power_w"]) == (720.0, 550.0)
    assert since(now, None) == now


@pytest.mark.parametrize(
    ("whole", "used", "own"),
    [
        ((900.0, 90.0), {"GPU-1", "GPU-2"}, (900.0, 90.0)),
        ((900.0, 90.0), {"GPU-1"}, (500.0, 50.0)),  # the rest of the node counts whole
        ((900.0, 90.0), set(), (200.0, 20.0)),
        ((900.0, 25.0), {"GPU-1"}, (500.0, 30.0)),  # it was not read all the time
        ((540.0, 54.0), {"GPU-1"}, (300.0, 30.0)),  # less than half of the run's own GPU is left: it reads nonsense
    ],
)
def test_a_node_that_measures_itself_is_counted_once_and_without_others_gpus(
    whole: tuple[float, float], used: set[str], own: tuple[float, float], tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path)
    gpus = [device("GPU-1", "gpu", 300.0, 30.0), device("GPU-2", "gpu", 400.0, 40.0)]
    node(folder, "n1", *gpus, device("node@n1", "node", *whole))
    nodes = NodesNow(folder, used=used)
    nodes.look(NOW)
    assert (nodes.power_w(NOW), nodes.energy_j) == own


@pytest.mark.parametrize("used", [None, {"GPU-1", "GPU-3"}], ids=["all is the run's", "shared"])
def test_a_node_of_which_nothing_was_read_is_unknown_and_the_others_count(
    used: set[str] | None, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path)
    nodes = NodesNow(folder, used=used)

    def unread(meter_pid: int, *devices: dict[str, Any]) -> None:
        figures = live_figures("n1", NOW, [device("GPU-2", "gpu", 100.0, 10.0)] if used else [])
        shown = live_figures("n1", NOW, [device("GPU-1", "gpu", None, 0.0)])["devices"]
        figures |= {"boot_id": "one", "began_monotonic_s": 1.0, "meter_pid": meter_pid, "missing": ["GPU-1"]}
        figures["devices"] += [each | {"energy_j": None} for each in shown]
        write_json(folder.path / "live" / "n1.json", figures | ({} if used else {"power_w": None, "energy_j": None}))

    unread(1)
    nodes.look(NOW)
    assert [nodes.power_w(NOW), nodes.energy_j, nodes.energy_until(NOW + 5), nodes.held_w(NOW)] == [None] * 4
    node(folder, "n2", device("GPU-3", "gpu", 200.0, 20.0))
    nodes.look(NOW)
    assert [(each["power_w"], each["energy_j"]) for each in nodes.documents(NOW, NOW)] == [(None, None), (200.0, 20.0)]
    assert (nodes.power_w(NOW), nodes.energy_j, nodes.energy_until(NOW + 5)) == (200.0, 20.0, 1020.0)
    node(folder, "n1", device("GPU-1", "gpu", 300.0, 30.0))
    nodes.look(NOW)
    for meter_pid in (os.getpid(), 3, 3):  # then the same meter reads nothing any more, and another never does
        unread(meter_pid)
        nodes.look(NOW)
        assert nodes.energy_j == 50.0


def test_a_silent_node_is_held_until_ray_calls_it_dead_and_never_longer_than_a_limit(tmp_path: Path) -> None:
    folder, asked = RunFolder(tmp_path), list[float]()
    alive: set[str] | None = None
    now = NOW

    def names() -> set[str] | None:
        asked.append(now)
        return alive

    def held_kwh(passed_s: float) -> float:
        """Over what was read, `passed_s` after n1 was silent."""
        nonlocal now
        while now < NOW + passed_s:
            now += 0.5
            node(folder, "n2", device("GPU-2", "gpu", 100.0, now - NOW))
            nodes.look(now)
        used_j, read_j = nodes.energy_until(now), nodes.energy_j
        assert used_j is not None and read_j is not None
        # What is held back for the end goes by the same nodes, whether they speak or not.
        assert nodes.held_w(now) == 100.0 + 5000.0 * ("n1" not in nodes.dead and passed_s < HELD_S)
        return (used_j - read_j) / 3.6e6

    node(folder, "n1", device("GPU-1", "gpu", 5000.0, 9e6))
    nodes = NodesNow(folder, alive=names)
    assert held_kwh(SILENT_S - 1) == pytest.approx(5 * (SILENT_S - 1) / 3600, abs=1e-3)
    assert not asked  # while all speak Ray is left in peace
    assert held_kwh(60) == pytest.approx(5 * 60 / 3600, abs=1e-3)  # nobody knows
    assert min(after - before for before, after in pairwise(asked)) >= ASK_EVERY_S
    alive = {"n1", "n2"}
    assert held_kwh(HELD_S - 30) == pytest.approx(5 * (HELD_S - 30) / 3600, abs=1e-3)
    assert held_kwh(HELD_S + 300) == pytest.approx(5 * HELD_S / 3600, abs=1e-3)
    alive = {"n2"}
    assert held_kwh(HELD_S + 320) == 0.0 and nodes.dead == {"n1"}
    count = len(asked)
    assert held_kwh(HELD_S + 400) == 0.0 and len(asked) == count  # it is dead: nothing more is to be asked
    assert nodes.energy_j == pytest.approx(9e6 + now - NOW)  # what it used before stands
    node(folder, "n1", device("GPU-1", "gpu", 5000.0, 9.5e6))  # it was away: the same meter has counted on
    nodes.look(now)
    assert nodes.dead == set() and nodes.energy_until(now + 2) == pytest.approx(9.5e6 + now - NOW + 2 * 5100)


AWAY_S = 3600.0


@pytest.mark.parametrize(
    ("boot", "counter_j", "about", "gap_j"),
    [
        ("one", 3000.0 + 250 * AWAY_S, {}, 250 * AWAY_S),  # it lived all the while, and its counter tells
        ("one", 3000.0 + 250 * AWAY_S, {"share": 0.5}, 125 * AWAY_S),
        ("one", 500.0, {"range_mj": 1_000_000_000_000}, 1e9 - 2500.0),  # as of a CPU: it wrapped
        ("one", 500.0, {}, 0.0),  # it went backwards
        ("two", 900_000.0, {}, 0.0),  # the machine was restarted: what it used before that is not known
    ],
)
def test_a_node_that_comes_back_has_the_energy_of_its_record(
    boot: str, counter_j: float, about: dict[str, Any], gap_j: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path / "run")
    nodes = NodesNow(run, alive=set)
    live, now = run.path / "live" / "n1.json", NOW

    def metered(boot: str, counter_j: float) -> None:
        """Ten seconds of a GPU of 300 W and a host of 100 W, whose meter then is killed."""
        nonlocal now
        gpu = FakeSensor("GPU-1", [reading(counter_j + 300.0 * n, 300.0) for n in range(11)])
        gpu.describe_more(about)
        host = FakeSensor("cpu@n1", [reading(power_w=100.0) for _ in range(11)], kind="cpu", method="integrated")
        monkeypatch.setattr(meter_module, "boot_id", lambda: boot)
        meter = Meter(
            run.ledger_file("n1"), node="n1", sensors=[gpu, host], discover_sensors=False, clock=lambda: (now, now)
        )
        for second in range(11):
            now += second > 0
            meter.sample()
            write_json(live, meter.live(), durable=False)
            os.utime(live, ns=(int(now * 1e9), int(now * 1e9)))
            nodes.look(now)
        assert meter._writer is not None
        for appender in (meter._writer._main, meter._writer._raw, meter._writer._seconds):
            assert appender is not None
            os.close(appender._fd)  # as the kernel does

    metered("one", 0.0)
    read_j = 10 * (300 * about.get("share", 1.0) + 100)
    now += AWAY_S
    nodes.look(now)
    assert nodes.energy_until(now) == account_run(run).energy_j == pytest.approx(read_j)
    metered(boot, counter_j)
    assert nodes.energy_until(now) == pytest.approx(2 * read_j + gap_j, abs=1.0)
    assert nodes.energy_until(now) == pytest.approx(account_run(run).energy_j)


def test_of_many_devices_the_nodes_alone_are_listed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for number in range(FEW_DEVICES // 8 + 1):
        node(folder, f"n{number}", *(device(f"GPU-{number}-{n}", "gpu", 400.0, 1.0) for n in range(8)))
    nodes = NodesNow(folder)
    nodes.look(NOW)
    told = nodes.documents(NOW, NOW)
    assert len(told) == FEW_DEVICES // 8 + 1 and all(each["devices"] is None for each in told)
    assert all(each["power_w"] == 3200.0 for each in told)


def test_the_rank_that_waits_for_its_data_is_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.metrics_dir.mkdir()

    def never(path: Path, error: OSError) -> None:
        raise error

    seen = Stragglers(folder, never)
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
