"""Which nodes Ray says are alive, by the names that their meters have: a cluster that loses one."""

import time

import pytest
import ray
from clusters import ray_cluster

from orchestrator.cluster.meters import node_names
from orchestrator.cluster.nodes_now import living_names


@pytest.mark.stress
def test_a_lost_node_is_not_among_the_living() -> None:
    assert living_names() is None  # no cluster: nobody knows
    often = {"RAY_health_check_period_ms": "500", "RAY_health_check_timeout_ms": "1000"}
    with ray_cluster(1, **often) as cluster:
        lost = cluster.add_node(num_cpus=1, node_ip_address="127.0.0.2")
        ray.init(address=cluster.address, log_to_driver=False)
        names = node_names(ray.nodes())  # as their meters were named when they began
        [head] = (name for node_id, name in names.items() if node_id != lost.node_id)
        there = living_names()
        assert there is not None and there >= {names[lost.node_id], head}
        cluster.remove_node(lost, allow_graceful=False)
        until = time.monotonic() + 60
        while names[lost.node_id] in (living_names() or ()) and time.monotonic() < until:
            time.sleep(0.2)
        there = living_names()
        assert there is not None and names[lost.node_id] not in there and head in there
