"""How many workers the cluster has room for now, where they lie, and which machines are to be given back."""

from collections import Counter
from itertools import accumulate
from typing import Any

import ray
from ray._private.state import actors as actor_table
from ray._private.state import available_resources_per_node as free_by_node
from ray._private.state import state as cluster_state

from orchestrator.cluster.meters import RANK_CLASS, node_names
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.file import BadInput
from orchestrator.spec.sense import needs_a_gpu

NODES_TOLD = 16  # of a cluster whose GPUs are listed


def choose_workers(
    experiment: Experiment, before: tuple[int, str] | None = None, free: bool = False
) -> tuple[int, str]:
    """(workers, cpu or cuda): as many of the spec's workers as the cluster has GPUs or CPUs for; `free`: without those
    that others use now.

    before: what the run's first attempt had. A spec that names no kind of device is content at first with the GPUs that
    there are, and with the CPU where there are none; from then on it keeps that kind, and at least as many.
    BadInput, which says what is missing, where there is fewer than the spec allows, or where it names another kind than
    the run began with: a run's device-hours are of one kind.
    """
    cluster, there = experiment.cluster, _resources()
    gpus, names_a_kind = int(there.get("GPU", 0)), _names_a_kind(experiment)
    cpu = cluster.device == "cpu" or (not names_a_kind and (before[1] == "cpu" if before else gpus == 0))
    have, device = (int(there.get("CPU", 0)), "cpu") if cpu else (gpus, "cuda")
    if before is not None and before[1] != device:
        began, told = ("CPUs", "cpu") if before[1] == "cpu" else ("GPUs", "cuda")
        raise BadInput(
            f"the run began on {began} and keeps them, because its hours are booked as one kind: set cluster.device to "
            f"{told} or auto, or begin a new run from its weights (init_from)"
        )
    if free:  # what kind it is, the machines say: a GPU that is in use is no reason to go on without
        have = min(have, int(_free("CPU" if cpu else "GPU")) + sum(_ranks_by_node().values()))
    for (section, key), text in needs_a_gpu(experiment) if cpu else ():
        where = "the attempts before had none" if gpus else "the cluster has none"
        raise BadInput(f"{text}, and {where}: set {section}.{key} to auto")
    fewest = cluster.min_workers or cluster.workers
    if not cpu and not names_a_kind and cluster.min_workers is None:  # it may be written for the CPU, with more workers
        fewest = min(cluster.workers, before[0] if before else 1)
    for workers in range(min(have, cluster.workers), fewest - 1, -1):
        if _can_share(experiment, workers):
            return workers, device
    what = "CPUs" if cpu else "GPUs"
    if have >= fewest:
        most = min(have, cluster.workers)
        which = f"{most}" if fewest == most else f"{fewest} to {most}"
        raise BadInput(
            f"the cluster has {have} {what}, and a batch of {experiment.batch_sequences} sequences cannot be shared "
            f"evenly by {which} workers, in groups of {cluster.replicas} x {cluster.tensor_parallel} (cluster.replicas "
            "x tensor_parallel); set training.batch_tokens or cluster.min_workers"
        )
    wanted = f"{fewest}" if fewest == cluster.workers else f"{fewest} to {cluster.workers}"
    there_are = f"the cluster has {have}{'' if cpu else _gpus_by_node()}, {fewest - have} too few"
    kept = "" if names_a_kind or before is None else f"; the attempts before trained on {before[0]} {what}"
    ways = f"set cluster.workers{', min_workers or device' if before is None else ' or min_workers'}"
    if before is not None and not have:
        ways = "bring such machines back, or begin a new run from its weights (model.init_from)"
    raise BadInput(f"the spec wants {wanted} {what} and {there_are}{kept}; {ways}")


def _names_a_kind(experiment: Experiment) -> bool:
    return experiment.cluster.device != "auto" or experiment.cluster.accelerator is not None


def unlike_the_spec(experiment: Experiment, workers: int, device: str) -> str | None:
    """What is to be known where a choice is allowed and hardly what was meant; else None."""
    cluster, gpus = experiment.cluster, int(_resources().get("GPU", 0))
    if device == "cuda" and workers < cluster.workers and cluster.min_workers is None:
        return (
            f"the spec asks for {cluster.workers} workers and there {_are(gpus)}{_gpus_by_node()}: {workers} train; "
            f"cluster.min_workers={cluster.workers} refuses"
        )
    if device == "cpu" and gpus and not _names_a_kind(experiment):
        return (
            f"there {_are(gpus)}, and the attempts before trained on the CPU: this one does too; a new run from its "
            "weights (init_from) takes the GPUs"
        )
    return None


def _are(gpus: int) -> str:
    return "is 1 GPU" if gpus == 1 else f"are {gpus} GPUs"


def _gpus_by_node() -> str:
    """The nodes that stay, as in ` (a: 8, b: none)`; empty where there is none. Of many, those with the fewest."""
    nodes, leaving = ray.nodes(), draining()
    names = node_names(nodes)
    gpus = [
        (int(node["Resources"].get("GPU", 0)), names[node["NodeID"]])
        for node in nodes
        if node["Alive"] and node["NodeID"] not in leaving
    ]
    told = [f"{name}: {count or 'none'}" for count, name in sorted(gpus)[:NODES_TOLD]]
    more = [f"{len(gpus) - NODES_TOLD} more"] if len(gpus) > NODES_TOLD else []
    return f" ({', '.join(told + more)})" if told else ""


def _can_share(experiment: Experiment, workers: int) -> bool:
    """Whether so many workers form the spec's grid and divide its batch."""
    cluster = experiment.cluster
    if workers % (cluster.replicas * cluster.tensor_parallel):
        return False
    return experiment.batch_sequences % (workers // cluster.tensor_parallel) == 0


def _resources() -> dict[str, float]:
    """What the cluster's machines have, without those that are to be given back."""
    there: dict[str, Any] = dict(ray.cluster_resources())
    leaving = draining()
    for node in ray.nodes() if leaving else ():
        if node["Alive"] and node["NodeID"] in leaving:
            for kind, amount in node["Resources"].items():
                there[kind] = there.get(kind, 0.0) - amount
    return there


def _free(kind: str) -> float:
    """How many whole ones nobody uses now, on machines that stay: a rank takes no halves of two."""
    by_node, leaving = free_by_node(), draining()
    return float(sum(int(amounts.get(kind, 0.0)) for node, amounts in by_node.items() if node not in leaving))


def draining() -> set[str]:
    """Ray's ids of the nodes that a cloud, an autoscaler or a person has announced to take away."""
    return set(cluster_state.get_draining_nodes())


def ranks_to_lose() -> int:
    """How many of this job's ranks are on such nodes: a machine without any may go."""
    leaving = draining()
    return sum(count for node, count in _ranks_by_node().items() if node in leaving) if leaving else 0


def ranks_apart(experiment: Experiment, device: str) -> str | None:
    """What is to be known where ranks that were to be packed lie on more nodes than would hold them; else None.

    Ray cannot fill whole nodes where other work is on them.
    """
    ranks, kind = _ranks_by_node(), "GPU" if device == "cuda" else "CPU"
    if experiment.cluster.placement != "pack" or not ranks:
        return None
    rooms = sorted((node["Resources"].get(kind, 0.0) for node in ray.nodes() if node["Alive"]), reverse=True)
    held = accumulate(rooms)
    fewest = next((count for count, room in enumerate(held, 1) if room >= sum(ranks.values())), len(ranks))
    if len(ranks) <= fewest:
        return None
    return (
        f"the workers lie on {len(ranks)} nodes, where {fewest} would hold them: other work is on these nodes; "
        "exchanges between nodes are slower than within one"
    )


def _ranks_by_node() -> dict[str, int]:
    """{Ray's node id: this job's ranks that live there}."""
    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    return Counter(
        actor["Address"]["NodeID"]
        for actor in actor_table(job_id=job).values()
        if actor["ActorClassName"].rpartition(".")[2] == RANK_CLASS and actor["State"] == "ALIVE"
    )
