"""One meter actor per node, pinned to it, with no CPUs reserved: it outlives workers and can never break them."""

import socket
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


class MeterActor:
    """Hosts `energy.meter.Meter`; a restart of the actor reopens the same ledger and goes on."""

    def __init__(self, run_dir: str, node_id: str, interval_s: float, attempt: int):
        from energy.meter import Meter

        node = f"{socket.gethostname()}-{node_id[:6]}"
        self.node = socket.gethostname()
        self.meter = Meter(
            Path(run_dir) / "energy" / f"{node}.ledger",
            node=self.node,
            interval_s=interval_s,
            attempt=attempt,
            gpus="all",
        )
        self.meter.start()

    def describe(self) -> dict[str, Any]:
        return {"node": self.node, "sensors": self.meter.sensors, "warnings": self.meter.warnings}

    def stop(self) -> None:
        self.meter.stop()


def start_meters(run_dir: Path, interval_s: float, attempt: int) -> list[Any]:
    """A running meter on every live node of the cluster."""
    actor: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, max_concurrency=2)(MeterActor)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    return [
        actor.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
            str(run_dir), node["NodeID"], interval_s, attempt
        )
        for node in nodes
    ]


def describe_meters(meters: list[Any]) -> list[dict[str, Any]]:
    return ray.get([meter.describe.remote() for meter in meters], timeout=60)


def stop_meters(meters: list[Any]) -> list[str]:
    """Stops each meter after a last reading; what could not be stopped is named, its ledger holds what was read."""
    faults = []
    for meter in meters:
        try:
            ray.get(meter.stop.remote(), timeout=10)
        except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError) as error:
            faults.append(f"a meter could not be stopped in order: {type(error).__name__}")
    return faults
