"""What fits: known cases, what must grow and shrink, the share of a worker. The formulas: test_model_memory.py."""

import io

import pytest
from plan_fakes import spec
from rich.console import Console

from model.memory import CHECKPOINTING, Batch, Compute, memory_gb
from model.sharding import Layout
from orchestrator.plan import make_plan
from orchestrator.plan.memory import batch_of
from orchestrator.plan.screen import print_plan


def test_state_is_16_bytes_a_parameter_over_the_workers() -> None:
    config = spec("llama_7b").llama_config()
    parts = memory_gb(config, Layout(shards=8), Batch(2048, 2), "full", Compute(), "each_micro_batch")
    state = parts["parameters"] + parts["gradients"] + parts["optimizer"]
    assert state == pytest.approx(16 * config.params / 8 / 1e9)
    assert parts.pop("total") == pytest.approx(sum(parts.values()))


@pytest.mark.parametrize(
    ("name", "workers", "fits"),
    [("llama_7b", 8, True), ("llama_7b", 1, False), ("llama_65b", 8, False), ("llama_65b", 2048, True)],
)
def test_what_is_known_to_fit(name: str, workers: int, fits: bool) -> None:
    plan = make_plan(spec(name, f"cluster.workers={workers}"))
    assert plan["fits"] is fits
    assert plan["memory"]["choices"][plan["memory"]["checkpointing"]]["total"] == plan["memory_gb_per_gpu"]
    assert sum(plan["memory"]["made_of_gb"].values()) == pytest.approx(plan["memory_gb_per_gpu"])


def test_the_fastest_choice_that_fits_is_planned() -> None:
    memory = make_plan(spec("llama_7b", "cluster.workers=8"))["memory"]
    chosen = CHECKPOINTING.index(memory["checkpointing"])
    assert memory["choices"][CHECKPOINTING[chosen]]["fits"]
    assert not any(memory["choices"][name]["fits"] for name in CHECKPOINTING[:chosen])


NONE, WIDE = "training.activation_checkpointing=none", "training.micro_batch_sequences=16"


@pytest.mark.parametrize(
    ("name", "overrides", "workers", "unit"),
    [
        ("llama_65b", (), 8, 1),
        ("llama_7b", (NONE, WIDE), 8, 1),
        ("llama_7b", ("cluster.replicas=256",), 256, 256),
        ("llama_65b", ("cluster.replicas=64",), 512, 64),
        ("llama_65b", ("cluster.replicas=4", "cluster.tensor_parallel=8"), 32, 32),
        ("llama_65b", ("training.dtype=float8",), 8, 1),
    ],
)
def test_what_does_not_fit_says_from_where_on_it_does(
    name: str, overrides: tuple[str, ...], workers: int, unit: int
) -> None:
    def memory(workers: int) -> dict:
        return make_plan(spec(name, *overrides, f"cluster.workers={workers}"))["memory"]

    fewest = memory(workers)["fewest_workers"]
    assert fewest > workers and fewest % unit == 0 and memory(fewest)["fits"]
    assert all(memory(fewest // factor)["fits"] is False for factor in (2, 4) if fewest // factor % unit == 0)


@pytest.mark.parametrize(
    ("overrides", "todo"),
    [((NONE,), "activation_checkpointing full (the spec says none), fewer replicas"), ((), "fewer replicas")],
)
def test_what_fits_on_no_number_of_workers_says_what_would_help(overrides: tuple[str, ...], todo: str) -> None:
    plan = make_plan(spec("llama_65b", "cluster.replicas=2048", *overrides))
    assert plan["memory"]["fewest_workers"] is None
    screen = Console(file=io.StringIO(), width=200)
    print_plan(plan, "", screen)
    assert f"fits on no number of workers: try {todo}" in screen.file.getvalue()


def test_monotone() -> None:
    config = spec("llama_7b").llama_config()

    def total(
        workers: int = 64, tokens: int = 4096, choice: str = "none", micro_batches: int = 1, dtype: str = "bfloat16"
    ) -> float:
        layout, batch = Layout(shards=workers), Batch(tokens, micro_batches)
        return memory_gb(config, layout, batch, choice, Compute(dtype))["total"]

    assert total(workers=128) < total(workers=64) < total(workers=8)
    assert total(tokens=2048) < total(tokens=4096)
    assert total(choice="full") < total(choice="selective") < total(choice="none")
    assert total(micro_batches=1) < total(micro_batches=2) == total(micro_batches=9)
    assert total(dtype="float8") < total() < total(dtype="float32")


@pytest.mark.parametrize(("workers", "tokens", "times"), [(2048, 2048, 1), (256, 16384, 1), (8, 16384, 32)])
def test_the_share_of_a_worker(workers: int, tokens: int, times: int) -> None:
    assert batch_of(2048, workers, 8, 2048) == Batch(tokens, times)
