"""How a step is computed where the spec says `auto`: by the memory of the plan, the same for the plan and the ranks."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from model.config import LlamaConfig
from model.memory import Compute
from model.sharding import Layout
from orchestrator.plan.memory import batch_of, memory_plan
from orchestrator.spec.experiment import Experiment


@dataclass(frozen=True)
class Choices:
    """What each `auto` became; `why`, in words, the checkpointing."""

    activation_checkpointing: Literal["none", "selective", "full"]
    gradient_reduction: Literal["once_per_step", "each_micro_batch"]
    weight_gathering: Literal["once_per_step", "each_use"]
    compile: bool
    dtype: Literal["float32", "bfloat16", "float8"]
    why: str

    def as_dict(self) -> dict[str, Any]:
        """As run.json has it."""
        return asdict(self)


def step_memory(
    experiment: Experiment, config: LlamaConfig, workers: int, device_type: str | None, device_gb: float | None
) -> dict[str, Any]:
    """`memory_plan` of the spec on `workers` devices of `device_gb` GB (None: not known). Other than on a GPU nothing
    has to fit, because the memory of a CPU is shared with what nobody here knows."""
    training, cluster, cuda = experiment.training, experiment.cluster, device_type == "cuda"
    data_ranks = max(1, workers // cluster.tensor_parallel)
    batch = batch_of(experiment.batch_sequences, data_ranks, training.micro_batch_sequences, config.sequence_length)
    return memory_plan(
        config,
        Layout.of(workers, replicas=cluster.replicas, tensor=cluster.tensor_parallel),
        batch,
        Compute(_dtype(experiment, cuda), cpu=not cuda, compiled=_compiled(experiment, cuda)),
        device_gb,
        _said(training.activation_checkpointing),
        _said(training.gradient_reduction),
        _gathering(experiment, cuda),
    )


def fewest_workers(
    experiment: Experiment, config: LlamaConfig, device_type: str | None, device_gb: float
) -> int | None:
    """The fewest workers on which a step of the spec fits, all but their number as it says; None where it fits on none.

    Asked are those that share the batch evenly, up to one sequence for each.
    """
    cluster, sequences = experiment.cluster, experiment.batch_sequences
    for ranks in range(cluster.replicas, sequences + 1, cluster.replicas):
        workers = ranks * cluster.tensor_parallel
        if sequences % ranks == 0 and step_memory(experiment, config, workers, device_type, device_gb)["fits"]:
            return workers
    return None


def how_it_fits(memory: dict[str, Any]) -> str:
    """The number of workers on which what does not fit would; without one, what else would take less."""
    fewest, said = memory["fewest_workers"], memory["checkpointing"]
    if fewest:
        return f"fits from {fewest:,} workers on"
    # Other than full is chosen for what does not fit only where the spec says so.
    recompute = "" if said == "full" else f"activation_checkpointing full (the spec says {said}), "
    # Not smaller micro-batches: the most workers have one sequence each.
    return f"fits on no number of workers: try {recompute}fewer replicas, more tensor_parallel or shorter sequences"


def choose(
    experiment: Experiment, config: LlamaConfig, workers: int, device_type: str, device_gb: float | None
) -> Choices:
    """The choices for `workers` devices of `device_gb` GB; None where their memory is not known, as on the CPU.

    On the CPU, and where the memory is not known, nothing is recomputed and gradients are reduced once a step.
    """
    training, cuda = experiment.training, device_type == "cuda"
    memory = step_memory(experiment, config, workers, device_type, device_gb)
    if _said(training.activation_checkpointing):
        why = "as the spec says"
    elif memory["fits"] is None:
        why = "the memory of the device is not known" if cuda else "on the CPU nothing is computed twice"
    else:
        needs = f"{memory['memory_gb_per_gpu']:.1f} GB of {memory['usable_gb']:.1f} GB usable"
        why = needs if memory["fits"] else f"nothing fits, this is the least: {needs}"
    return Choices(
        memory["checkpointing"],
        memory["gradient_reduction"],
        _gathering(experiment, cuda),
        _compiled(experiment, cuda),
        _dtype(experiment, cuda),
        why,
    )


def _said(value: str) -> str | None:
    return None if value == "auto" else value


def _dtype(experiment: Experiment, cuda: bool) -> Literal["float32", "bfloat16", "float8"]:
    given = experiment.training.dtype
    return given if given != "auto" else "bfloat16" if cuda else "float32"


def _gathering(experiment: Experiment, cuda: bool) -> Literal["once_per_step", "each_use"]:
    given = experiment.training.weight_gathering
    return given if given != "auto" else "each_use" if cuda else "once_per_step"


def _compiled(experiment: Experiment, cuda: bool) -> bool:
    given = experiment.training.compile
    return cuda if given == "auto" else given
