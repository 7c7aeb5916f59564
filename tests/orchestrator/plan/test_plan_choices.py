"""What `auto` becomes: the fastest that fits, and the same in the plan and in the run."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from plan_fakes import spec

from model.memory import CHECKPOINTING, EACH, EACH_USE, ONCE
from orchestrator.plan import PlanOptions, make_plan
from orchestrator.plan.choices import choose, step_memory
from orchestrator.ranks import worker

A100_GB = 80.0


def test_the_least_recomputation_that_fits_then_the_least_communication() -> None:
    experiment = spec("llama_7b", "cluster.workers=8", "training.micro_batch_sequences=1")
    config = experiment.llama_config()
    needs = {
        (mode, when): step_memory(
            spec(
                "llama_7b",
                "cluster.workers=8",
                "training.micro_batch_sequences=1",
                f"training.activation_checkpointing={mode}",
                f"training.gradient_reduction={when}",
            ),
            config,
            8,
            "cuda",
            A100_GB,
        )["memory_gb_per_gpu"]
        for mode in CHECKPOINTING
        for when in (ONCE, EACH)
    }
    order = list(needs)
    for device_gb in (needs[each] / 0.9 + 0.01 for each in order):
        found = choose(experiment, config, 8, "cuda", device_gb)
        expected = next(each for each in order if needs[each] <= device_gb * 0.9)
        assert (found.activation_checkpointing, found.gradient_reduction) == expected
        assert f"{needs[expected]:.1f} GB" in found.why
    too_small = choose(experiment, config, 8, "cuda", 10.0)
    assert too_small.activation_checkpointing == "full" and too_small.gradient_reduction == EACH
    assert "nothing fits" in too_small.why


def test_the_65b_does_not_keep_261_gb_of_gradients() -> None:
    experiment = spec("llama_65b", "training.micro_batch_sequences=1", "cluster.workers=1024")
    found = choose(experiment, experiment.llama_config(), 1024, "cuda", A100_GB)
    assert found.gradient_reduction == EACH
    once = spec("llama_65b", "training.gradient_reduction=once_per_step", "training.micro_batch_sequences=1",
                "cluster.workers=1024")  # fmt: skip
    parts = step_memory(once, once.llama_config(), 1024, "cuda", A100_GB)["choices"]["full"]
    assert parts["accumulated_gradients"] == pytest.approx(261, rel=0.01) and not parts["fits"]


def test_the_cpu_recomputes_nothing_and_does_not_compile() -> None:
    experiment = spec("laptop")
    found = choose(experiment, experiment.llama_config(), 2, "cpu", None)
    assert (found.activation_checkpointing, found.gradient_reduction, found.compile) == ("none", ONCE, False)
    assert (found.dtype, found.why) == ("float32", "on the CPU nothing is computed twice")
    assert found.weight_gathering == ONCE
    on_gpu = choose(experiment, experiment.llama_config(), 2, "cuda", A100_GB)
    assert on_gpu.weight_gathering == EACH_USE
    assert (on_gpu.dtype, on_gpu.compile, on_gpu.activation_checkpointing) == ("bfloat16", True, "none")


def test_the_spec_is_obeyed() -> None:
    experiment = spec(
        "llama_7b",
        "cluster.workers=8",
        "training.activation_checkpointing=full",
        "training.compile=false",
        "training.weight_gathering=once_per_step",
    )
    found = choose(experiment, experiment.llama_config(), 8, "cuda", 1000.0)
    assert (found.activation_checkpointing, found.compile, found.why) == ("full", False, "as the spec says")
    assert found.weight_gathering == ONCE
    plan = make_plan(experiment)
    assert plan["memory"]["checkpointing"] == "full" and plan["flop"]["recomputed"] > 0
    weights_gb = 2 * experiment.llama_config().params / 1e9
    assert weights_gb < plan["memory"]["made_of_gb"]["gathered"] < 1.15 * weights_gb


@pytest.mark.parametrize(
    ("accelerator", "driver_name", "driver_gb", "shapes"),
    [
        (
            "A100-SXM4-80GB",
            "NVIDIA A100-SXM4-80GB",
            85.0,
            [("7b", 8, 4), ("13b", 16, 4), ("33b", 64, 3), ("65b", 64, 1)],
        ),
        ("H200-SXM", "NVIDIA H200", 150.1, [("7b", 8, 4), ("13b", 16, 8), ("33b", 64, 6), ("65b", 2048, 4)]),
    ],
)
def test_plan_and_run_choose_the_same(
    accelerator: str,
    driver_name: str,
    driver_gb: float,
    shapes: list[tuple[str, int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    properties = SimpleNamespace(name=driver_name, total_memory=int(driver_gb * 1e9))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(dist, "all_reduce", lambda *_: None)
    on_cpu = torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda value, device, **more: on_cpu(value, **more))
    for size, workers, micro in shapes:
        workers_and_micro = f"cluster.workers={workers}", f"training.micro_batch_sequences={micro}"
        experiment = spec(f"llama_{size}", f"cluster.accelerator={accelerator}", *workers_and_micro)
        memory = make_plan(experiment, options=PlanOptions(strict=False))["memory"]
        config = experiment.llama_config()
        found = choose(experiment, config, workers, "cuda", worker._smallest_gb(torch.device("cuda")))
        assert found.activation_checkpointing == memory["checkpointing"], size
        assert found.gradient_reduction == memory["gradient_reduction"], size
    # Of a GPU that is not in the table, and of a part of one, what the driver shows.
    for properties.name, properties.total_memory in ("NVIDIA Any", 12 * 10**9), (driver_name, 20 * 10**9):
        assert worker._smallest_gb(torch.device("cuda")) == properties.total_memory / 1e9


def test_tensor_parallelism_and_replicas_move_memory_the_right_way() -> None:
    def parts(*overrides: str) -> dict[str, float]:
        experiment = spec("llama_65b", "cluster.workers=64", "training.micro_batch_sequences=1", *overrides)
        memory = step_memory(experiment, experiment.llama_config(), 64, "cuda", A100_GB)
        return memory["choices"]["selective"]

    plain, tensor, replicas = parts(), parts("cluster.tensor_parallel=8"), parts("cluster.replicas=2")
    assert tensor["activations"] < plain["activations"] / 4 and tensor["gathered"] < plain["gathered"] / 2
    assert tensor["parameters"] == pytest.approx(plain["parameters"])  # cut by either
    assert replicas["parameters"] == pytest.approx(2 * plain["parameters"])
