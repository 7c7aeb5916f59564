"""One meter actor per node, pinned to it, with no CPUs reserved: it outlives workers and can never break them."""

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from energy.runs import write_json

LIVE_EVERY_S = 1.0  # how often a node's figures for screens are written


class MeterActor:
    """Hosts `energy.meter.Meter`; a restart of the actor reopens the same ledger and goes on.

    Every second it also replaces `live/<node>.json` in the run folder and Ray's own metrics, which screens read.
    """

    def __init__(self, run_dir: str, name: str, meter: dict[str, Any]):
        from energy.meter import Meter
        from energy.sensors.declared import node_sensors
        from orchestrator.ray_metrics import RayMetrics

        declared = meter.pop("declared")
        self._meter = Meter(
            Path(run_dir) / "energy" / f"{name}.ledger",
            node=name,
            gpus="all",
            sensors=node_sensors(name, **declared),
            **meter,
        )
        self._meter.start()
        self._live = Path(run_dir) / "live" / f"{name}.json"
        self._metrics = RayMetrics(name, Path(run_dir).name)
        self._stopped = threading.Event()
        threading.Thread(target=self._tell, name="meter-live", daemon=True).start()

    def describe(self) -> dict[str, Any]:
        return self._meter.describe()

    def stop(self) -> dict[str, Any]:
        """Ends the metering in good order; the meter's description with the warnings that came up meanwhile."""
        self._stopped.set()
        self._meter.stop()
        return self._meter.describe()

    def _tell(self) -> None:
        while not self._stopped.wait(LIVE_EVERY_S):
            try:
                write_json(self._live, self._meter.live(), durable=False)
            except OSError:
                continue  # a full disk: the meter itself says so, and the next second may have room again
            self._metrics.publish(self._meter.now(), self._meter.describe())


def start_meters(run_dir: Path, meter: dict[str, Any]) -> list[Any]:
    """A running meter on every live node of the cluster. `meter`: interval_s, attempt, declared."""
    actor: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, max_concurrency=2)(MeterActor)
    return [
        actor.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)).remote(
            str(run_dir), name, dict(meter)
        )
        for node_id, name in node_names(ray.nodes()).items()
    ]


def node_names(nodes: list[dict[str, Any]]) -> dict[str, str]:
    """{Ray's node id: name} of the live nodes: the host's, with the address where hosts share one.

    The same on every attempt, unlike Ray's ids: a node's ledger is continued when the run is.
    """
    alive = [node for node in nodes if node["Alive"]]
    hosts = Counter(node["NodeManagerHostname"] for node in alive)
    return {
        node["NodeID"]: node["NodeManagerHostname"]
        if hosts[node["NodeManagerHostname"]] == 1
        else f"{node['NodeManagerHostname']}-{node['NodeManagerAddress']}"
        for node in alive
    }


def describe_meters(meters: list[Any]) -> list[dict[str, Any]]:
    return ray.get([meter.describe.remote() for meter in meters], timeout=60)


def stop_meters(meters: list[Any]) -> tuple[list[dict[str, Any]], list[str]]:
    """Stops each meter after a last reading; their descriptions, and what could not be stopped in order.

    The ledger of such a meter holds what was read until then.
    """
    described, faults = [], []
    for meter in meters:
        try:
            described.append(ray.get(meter.stop.remote(), timeout=10))
        except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError) as error:
            faults.append(f"a meter could not be stopped in order: {type(error).__name__}")
    return described, faults
