"""Ray clusters of several nodes on this machine, each node a process of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from orchestrator.driver.launch import RAY_ENVIRONMENT


@contextmanager
def ray_cluster(slots: int | None, dashboard: bool = False, **environment: str) -> Iterator[Cluster]:
    """With a head of so many slots (None: without one yet), which other processes do not join by default."""
    head = None if slots is None else {"num_cpus": slots, "include_dashboard": dashboard}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray._private.utils.write_ray_address", lambda *arguments: None)
        for key, value in (RAY_ENVIRONMENT | environment).items():
            patch.setenv(key, value)
        arguments: dict[str, Any] = {} if head is None else {"initialize_head": True, "head_node_args": head}
        cluster = Cluster(**arguments)
        try:
            yield cluster
        finally:
            ray.shutdown()  # of this process, where it has joined
            cluster.shutdown()
