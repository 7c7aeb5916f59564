"""One meter actor per node, pinned to it, with no CPUs reserved: it outlives workers and can never break them.

Whose joules: where the ranks will run is not known before they do, and the start-up is to be metered too, so that every
node of the cluster is metered from the beginning. In a Ray of our own all of it is the run's, and so is a cluster that
the spec says is reserved for it (`cluster.exclusive`). In any other that we joined, a node is the run's from a
command's first rank on it, and a GPU when a rank held it; the node's CPUs, memory and what else its sensors cover then
count whole, because nobody can tell whose they were. The meters are told where the ranks are as soon as Ray says so,
and put it into their ledgers; the account leaves out the rest and says so (energy.accounting.placement). The meters of
other nodes go on: a restart may move a rank there.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
import ray._private.worker as ray_worker
from ray._private.state import actors as actor_table
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from energy.accounting.placement import ranks_event
from energy.metering.live import since
from energy.runs import RunFolder, write_json

LIVE_EVERY_S = 1.0  # how often a node's figures for screens are written
PLACEMENT_EVERY_S = 2.0  # how often Ray is asked where the ranks are
REPEAT_EVERY = 15  # times it was asked, meters are told what has not changed: one that Ray started again knows nothing
TELL_LAST_S = 10.0
DESCRIBE_S, STOP_S = 60.0, 10.0  # that all meters have to answer in
RANK_CLASS = "RayTrainWorker"


class MeterActor:
    """Hosts `energy.metering.meter.Meter`; a restart of the actor reopens the same ledger and goes on.

    Every second it also replaces `live/<node>.json` in the run folder and Ray's own metrics, which screens read.
    """

    def __init__(self, run_dir: str, name: str, meter: dict[str, Any], shared: bool):
        from energy.metering.meter import Meter
        from energy.sensors.declared import node_sensors
        from orchestrator.cluster.ray_metrics import RayMetrics

        declared = meter.pop("declared")
        # An actor that Ray restarts is told the attempt with which the run began: run.json knows of later ones.
        self._run, self._shared = RunFolder(run_dir), shared
        meter["attempt"] = max(meter["attempt"], len(self._run.read_run().get("attempts") or []))
        self._meter = Meter(
            self._run.ledger_file(name),
            node=name,
            gpus="all",
            sensors=node_sensors(name, **declared),
            whole_process=True,
            **meter,
        )
        self._meter.start()
        self._ranks: int | None = None
        self._placing = threading.Lock()
        self._before: dict[str, Any] | None = None  # of the screens' figures, what was read while the node was others'
        self._node_id = ray.get_runtime_context().get_node_id()
        self._live = Path(run_dir) / "live" / f"{name}.json"
        self._metrics = RayMetrics(name, Path(run_dir).name)
        self._stopped = threading.Event()
        threading.Thread(target=self._tell, name="meter-live", daemon=True).start()

    def describe(self) -> dict[str, Any]:
        return self._meter.describe()

    def mark(self, attempt: int) -> None:
        """The training was started again: readings from now on are the new attempt's."""
        self._meter.mark(attempt)

    def place(self, ranks: dict[str, int]) -> None:
        """Notes how many ranks of the run were on this node so far; `ranks`: by Ray's node ids."""
        with self._placing:  # of two calls that waited for the actor both run, in any order
            own = max(ranks.get(self._node_id, 0), self._ranks or 0)
            if own == self._ranks:
                return
            begins_s = None
            if self._left_out:
                begins_s, self._before = time.monotonic(), self._meter.live()
            self._ranks = own
            on_gpus = self._run.read_run().get("device_type") == "cuda"
            self._meter.note(ranks_event(own, shared=self._shared, on_gpus=on_gpus, from_monotonic_s=begins_s))
            if self._left_out:
                self._live.unlink(missing_ok=True)

    @property
    def _left_out(self) -> bool:
        return self._shared and self._ranks == 0

    def stop(self) -> dict[str, Any]:
        """Ends the metering in good order; the meter's description with the warnings that came up meanwhile."""
        self._stopped.set()
        self._meter.stop()
        return self._meter.describe()

    def _tell(self) -> None:
        while not self._stopped.wait(LIVE_EVERY_S):
            if self._left_out:
                continue
            self._metrics.publish(self._meter.now(), self._meter.describe())
            with suppress(OSError):  # a full disk: the meter itself says so, and the next second may have room again
                write_json(self._live, since(self._meter.live(), self._before), durable=False)


class Meters(list[Any]):
    """The meter actors of a run. A thread tells them where its ranks are, and starts one on each node that joins, until
    `tell_last`: after a loss the ranks may go on there.

    start(node_id, name): a meter on a node.
    """

    def __init__(self, start: Callable[[str, str], Any]):
        super().__init__()
        self._start, self._metered = start, set[str]()
        self.nodes: list[str] = []  # of each, its node's name
        self._meet()
        self._told: dict[str, int] | None = None
        self._asked = 0
        self._stopped = threading.Event()
        self._teller = threading.Thread(target=self._tell, name="meter-placement", daemon=True)
        self._teller.start()

    def _tell(self) -> None:
        self._tell_once()  # that there is no rank yet: what a shared cluster does until there is one is others'
        while not self._stopped.wait(PLACEMENT_EVERY_S):
            self._tell_once()

    def _tell_once(self, last: bool = False) -> str | None:
        """What went wrong, if anything did."""
        try:
            more = not last and self._meet()
            ranks, told = rank_counts(), self._told or {}
            # A node that had a rank once keeps it: dead actors may be forgotten.
            ranks = {node: max(ranks.get(node, 0), told.get(node, 0)) for node in {*ranks, *told}}
            self._asked += 1
            if ranks != self._told or more or last or self._asked % REPEAT_EVERY == 0:
                self._told = ranks
                noted = [meter.place.remote(ranks) for meter in self]
                if noted:
                    ray.wait(noted, num_returns=len(noted), timeout=5)
        except Exception as error:  # Ray raises many unrelated types here; all mean that it does not answer
            return f"Ray did not say where the ranks were ({type(error).__name__}): what it last said stands, else all"
        return None

    def _meet(self) -> bool:
        """Starts a meter on each live node that had none; whether there was one. A node that was away has another of
        Ray's ids, and its name."""
        before = len(self)
        for node_id, name in node_names(ray.nodes()).items():
            if node_id not in self._metered:
                self._metered.add(node_id)
                self.append(self._start(node_id, name))
                self.nodes.append(name)
        return len(self) > before

    def tell_last(self) -> str | None:
        self._stopped.set()
        self._teller.join(TELL_LAST_S)
        if self._teller.is_alive():  # a cluster that falls apart may answer none of its calls
            return (
                f"Ray did not say within {TELL_LAST_S:.0f} s where the ranks were: what it last said stands, else all"
            )
        return self._tell_once(last=True)


def start_meters(run_dir: Path, meter: dict[str, Any], shared: bool) -> list[Any]:
    """A running meter on every live node of the cluster, and on those that join. `meter`: interval_s, attempt,
    declared. shared: others may use the cluster too, so that only where the ranks are is the run's."""
    actor: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, max_concurrency=2)(MeterActor)

    def start(node_id: str, name: str) -> Any:
        here = NodeAffinitySchedulingStrategy(node_id, soft=False)
        return actor.options(scheduling_strategy=here).remote(str(run_dir), name, dict(meter), shared)

    return Meters(start)


def joined() -> bool:
    """Whether this process joined a cluster that somebody else started, where others may run too."""
    node = ray_worker._global_node
    return node is None or not node.head


def rank_counts() -> dict[str, int]:
    """{Ray's node id: how many ranks of this job were placed there}, ended ones included."""
    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    places = [
        actor["Address"]["NodeID"]
        for actor in actor_table(job_id=job).values()
        if actor["ActorClassName"].rpartition(".")[2] == RANK_CLASS
    ]
    return dict(Counter(place for place in places if place.strip("f")))  # Ray writes "no node" in so many f


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


def mark_attempt(meters: list[Any], attempt: int) -> None:
    """Tells the meters that another attempt has begun. Nobody waits: one that is gone learns it from run.json."""
    for meter in meters:
        meter.mark.remote(attempt)


def describe_meters(meters: list[Any]) -> list[dict[str, Any]]:
    """What each meter has to read. A node that hangs or dies ends no run that can do without it: of that there is the
    name and a warning, for the record to say what is missing. RuntimeError where none answers."""
    silent = "does not answer: if it does not come back, its energy is missing"
    described, faults = _answers(meters, "describe", DESCRIBE_S, silent)
    if not described:
        raise RuntimeError(f"no node is metered: {'; '.join(faults.values())}")
    return [*described, *({"node": node, "sensors": [], "warnings": [fault]} for node, fault in faults.items())]


def stop_meters(meters: list[Any]) -> tuple[list[dict[str, Any]], dict[str | None, str]]:
    """Stops all meters after a last reading; their descriptions, and of those that could not be stopped in order {node:
    a line}, by None what is of no single node.

    The ledger of such a meter holds what was read until then.
    """
    told = meters.tell_last() if isinstance(meters, Meters) else None
    described, faults = _answers(meters, "stop", STOP_S, "could not be stopped in order")
    return described, ({} if told is None else {None: told}) | faults


def _answers(meters: list[Any], what: str, limit_s: float, else_: str) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """All are asked at once, and have so long together; of those that did not answer {node: a line}."""
    nodes = meters.nodes if isinstance(meters, Meters) else []
    asked = [getattr(meter, what).remote() for meter in meters]
    until = time.monotonic() + limit_s
    answers: list[dict[str, Any]] = []
    faults: dict[str, str] = {}
    for place, answer in enumerate(asked):
        try:
            answers.append(ray.get(answer, timeout=max(0.1, until - time.monotonic())))
        except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError) as error:
            node = nodes[place] if place < len(nodes) else "a node"
            faults[node] = f"the meter of {node} {else_} ({type(error).__name__})"
    return answers, faults


def of_all_nodes(earlier: list[dict[str, Any]], described: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Descriptions of meters, the newest of each node: a node that is lost was metered all the same."""
    return list({meter["node"]: meter for meter in [*earlier, *described]}.values())
