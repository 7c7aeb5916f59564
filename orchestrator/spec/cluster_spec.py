"""Section `cluster` of a spec: how many workers, where, and what befalls them."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from energy.factors import accelerator as known_accelerator
from orchestrator.spec import sense
from orchestrator.spec.budget import Money
from orchestrator.spec.quantities import DURATION, DurationS, Positive, Whole, quantity
from orchestrator.spec.section import Section


def _an_accelerator(name: str) -> str:
    known_accelerator(name)
    return name


def _auto_or_duration(value: Any) -> Any:
    """One fault for a value that is neither."""
    if value == "auto":
        return value
    duration_s = quantity(value, DURATION, "10 min, or auto")
    if duration_s <= 0:
        raise ValueError(f"expected auto, or a time above 0 such as 10 min, got {value!r}")
    return duration_s


def _off_is_a_word(value: Any) -> Any:
    """YAML reads off as false."""
    return "off" if value is False else value


Preflight = Annotated[
    Literal["off", "warn", "stop"],
    BeforeValidator(_off_is_a_word, json_schema_input_type=Literal["off", "warn", "stop", False]),
]
Deadline = Annotated[Literal["auto"] | Annotated[DurationS, Field(gt=0)], BeforeValidator(_auto_or_duration)]


class ClusterSpec(Section):
    """How many workers, and where.

    The workers form a grid: `replicas` of groups that shard the model, and in each of them groups of `tensor_parallel`
    workers that share a batch and compute each block together.
    """

    workers: Positive = Field(default=1, description="One per GPU where there are GPUs")
    min_workers: Positive | None = Field(
        default=None,
        description="The fewest to begin and to go on with; null: as many as `workers`. Where neither device nor "
        "accelerator is named, a run begins on the GPUs that there are, and goes on with no fewer than it began with",
    )
    replicas: Positive = Field(default=1, description="Groups of workers that each shard the model; 1: all shard it")
    tensor_parallel: Positive = Field(default=1, description="Workers that compute each block together")
    gpus_per_node: Positive = Field(default=8, description="So that `--set cluster.nodes` can stand for workers")
    placement: Literal["pack", "spread"] = Field(
        default="pack",
        description="Where the cluster has more room than workers: on as few nodes as there can be, or on as many",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description="auto: GPUs where there are some. A run goes on with the kind that it began with, also when it is "
        "resumed",
    )
    accelerator: Annotated[str, AfterValidator(_an_accelerator)] | None = Field(
        default=None,
        description="GPU that the training is planned for (`hoofprint factors accelerator` lists them)",
    )
    address: str | None = Field(
        default=None, description="HOST:PORT of a Ray cluster to join; null: RAY_ADDRESS, else a Ray of the run's own"
    )
    exclusive: bool = Field(
        default=False,
        description="A cluster that is joined is reserved for this run: its idle nodes and GPUs are the run's too, as "
        "in a Ray of its own",
    )
    gpu_hour_price: Money | None = Field(default=None, description="What a GPU-hour costs, as in 2.50 EUR")
    max_failures: Annotated[Whole, Field(ge=0)] = Field(
        default=3,
        description="Restarts after a lost worker, hang or node, before the run ends; a new checkpoint starts the "
        "count again",
    )
    step_deadline: Deadline = Field(
        default="auto",
        description="How long a step may take before it counts as hung; auto: ten times what steps take, and at least "
        "five minutes; the first step of an attempt has half an hour at least",
    )
    preflight: Preflight = Field(
        default="off",
        description="Measures every node before the first step, which takes half a minute (`hoofprint doctor "
        "--cluster`): warn names the slow ones, stop also ends the run",
    )

    rules = (sense.workers_form_a_grid, sense.fewest_workers)
