"""On a cluster that was joined, each node's meter learns from Ray how many ranks its node has, those that ended too."""

import time
from pathlib import Path

import ray
from build import NoCompiler
from clusters import ray_cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from benchmarks.resilience import meters as many_meters
from energy.accounting.account import account_run
from energy.ledger.readings import read_sessions
from energy.runs import RunFolder
from orchestrator.cluster.meters import describe_meters, joined, rank_counts, start_meters, stop_meters


@ray.remote(num_cpus=0)
class RayTrainWorker:
    """Named as Ray Train names its ranks."""

    def work(self) -> str:
        return ray.get_runtime_context().get_node_id()


def require_every_reading_of_many_nodes(work: Path) -> None:
    """The benchmark of 64 nodes in the Ray that is there, with four and for some seconds."""
    try:
        measured = many_meters.measure(work, 4, seconds=3.0, settle_s=1.5, driver_of=many_meters.drive)
    except NoCompiler:
        return  # without the stand-in no GPU's energy is known
    readings, driver = measured["readings"], measured["driver"]
    assert (readings["nodes"], readings["left_out"], readings["damaged"], driver["faults"]) == (4, 0, [], [])
    assert readings["ended_in_order"] == 4 and driver["nodes_seen"] == [4, 4]
    # The run's own watch: all nodes and the steps of rank 0 are in its live state, the waits of the other ranks too.
    assert driver["live"]["nodes"] == 4 and driver["live"]["step"] >= 1
    assert measured["gpus"] == 4 * many_meters.GPUS
    low, high = measured["percent_of_truth"]
    assert 99.0 < low <= high < 101.0


def test_the_meters_of_a_joined_cluster_know_where_the_ranks_were(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.write_run({"run_id": "shared", "device_type": "cpu"})
    with ray_cluster(1) as cluster:
        cluster.add_node(num_cpus=1, node_ip_address="127.0.0.2")
        ray.init(address=cluster.address, log_to_driver=False)
        assert joined()
        meters = start_meters(run.path, {"interval_s": 0.2, "attempt": 1, "declared": {}}, joined())
        assert [len(each["sensors"]) > 0 for each in describe_meters(meters)] == [True] * 2
        cluster.add_node(num_cpus=0, node_ip_address="127.0.0.3")  # it came later, and is metered from then on
        until = time.monotonic() + 60
        while not [path for path in run.ledgers() if path.stem.endswith("127.0.0.3")]:
            assert time.monotonic() < until
            time.sleep(0.1)
        assert len(meters) == 3
        # Before there is a rank all is others', for who asks meanwhile, and if this driver were killed now. It is noted
        # with a meter's next row.
        while account_run(run).devices or list(run.path.glob("live/*.json")):
            assert time.monotonic() < until
            time.sleep(0.1)
        home = next(node["NodeID"] for node in ray.nodes() if node["NodeManagerAddress"] == "127.0.0.2")
        strategy = NodeAffinitySchedulingStrategy(home, soft=False)
        ranks = [RayTrainWorker.options(scheduling_strategy=strategy).remote() for _ in range(2)]
        assert ray.get([rank.work.remote() for rank in ranks]) == [home, home]
        assert rank_counts() == {home: 2}
        while not list(run.path.glob("live/*.json")):
            assert time.monotonic() < until
            time.sleep(0.1)
        reserved = RunFolder(tmp_path / "reserved")  # `cluster.exclusive`
        reserved.write_run({"run_id": "reserved", "device_type": "cpu"})
        all_ours = start_meters(reserved.path, {"interval_s": 0.2, "attempt": 1, "declared": {}}, False)
        describe_meters(all_ours)
        for rank in ranks:
            ray.kill(rank)
        for started in (meters, all_ours):
            _, faults = stop_meters(started)
            assert faults == {}
        require_every_reading_of_many_nodes(tmp_path / "many")
    noted = {}
    for path in run.ledgers():
        [session] = read_sessions(path)[0]
        *_, event = [event for event in session.events if event["event"] == "ranks"]
        noted[path.stem] = (event["ranks"], event["shared"], event["on_gpus"], session.ended)
    [own] = [name for name in noted if name.endswith("127.0.0.2")]
    assert noted.pop(own) == (2, True, False, True)
    assert list(noted.values()) == [(0, True, False, True)] * 2
    account = account_run(run)
    assert {device.node for device in account.devices} == {own}
    assert any("no rank of this run was on that node" in text for text in account.warnings)
    assert account.other_nodes == list(noted)
    account = account_run(reserved)
    # All three nodes are this one machine: its CPU and memory are counted once, under one node's name.
    assert account.nodes == sorted([own, *noted]) and account.other_nodes == []
    kinds = [device.kind for device in account.devices]
    assert len(kinds) == len(set(kinds)) and any("counted once" in text for text in account.warnings)
