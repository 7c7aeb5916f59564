"""How many workers a cluster has room for, and what is said where that is not enough."""

from pathlib import Path

import pytest
import ray
from tiny import write_spec

from orchestrator.cluster import capacity
from orchestrator.cluster.capacity import choose_workers, ranks_apart, unlike_the_spec
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.file import BadInput, load_experiment

Chosen = tuple[int, str]


def require_choice(
    experiment: Experiment, chosen: Chosen | str, before: Chosen | None = None, free: bool = False
) -> None:
    """chosen: (workers, device), or what is said of too few."""
    if isinstance(chosen, tuple):
        assert choose_workers(experiment, before, free) == chosen
        return
    with pytest.raises(BadInput, match=chosen):
        choose_workers(experiment, before, free)


def on_nodes(monkeypatch: pytest.MonkeyPatch, cpus: float, *gpus: float) -> None:
    """A cluster of these nodes, with the CPUs on the first of them."""
    nodes = [
        {
            "NodeID": f"id-{place}",
            "Alive": True,
            "NodeManagerHostname": f"n{place}",
            "Resources": {"GPU": count} if count else {},
        }
        for place, count in enumerate(gpus)
    ]
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": cpus, "GPU": sum(gpus)})
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(capacity, "draining", set)


@pytest.mark.parametrize(
    ("there", "overrides", "chosen"),
    [
        ({"CPU": 9.0}, [], (8, "cpu")),
        ({"CPU": 9.0, "GPU": 3.0}, ["cluster.device=auto"], (2, "cuda")),  # 3 do not share a batch of 8 sequences
        ({"CPU": 2.0}, ["cluster.min_workers=2"], (2, "cpu")),
        ({"CPU": 3.0}, ["cluster.min_workers=1"], (2, "cpu")),
        ({"CPU": 9.0, "GPU": 8.0}, ["cluster.device=auto"], (8, "cuda")),
        ({"CPU": 9.0, "GPU": 2.0}, ["cluster.device=auto"], (2, "cuda")),
        ({"CPU": 9.0, "GPU": 3.0}, ["cluster.device=cuda", "cluster.min_workers=2"], (2, "cuda")),
        ({"CPU": 1.0}, ["cluster.min_workers=2"], "wants 2 to 8 CPUs and the cluster has 1"),
        ({"CPU": 9.0}, ["cluster.device=cuda"], "wants 8 GPUs and the cluster has 0"),
        (
            {"CPU": 9.0},
            ["cluster.device=auto", "training.dtype=float8"],
            "float8 needs a GPU, and the cluster has none",
        ),
        ({"CPU": 9.0}, ["cluster.device=auto", "training.attention=efficient"], "set training.attention to auto"),
        ({"CPU": 7.0}, [], "the spec wants 8 CPUs and the cluster has 7"),
        ({"CPU": 9.0}, ["cluster.device=cuda", "cluster.min_workers=4"], "wants 4 to 8 GPUs and the cluster has 0"),
        (
            {"CPU": 7.0},
            ["cluster.min_workers=5"],
            "the cluster has 7 CPUs, and a batch of 8 sequences cannot be shared evenly by 5 to 7 workers",
        ),
        ({"CPU": 3.0}, ["cluster.min_workers=3"], "has 3 CPUs, and .* evenly by 3 workers, in groups of 1 x 1"),
    ],
)
def test_as_many_as_there_is_room_for(
    there: dict[str, float],
    overrides: list[str],
    chosen: Chosen | str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: there)
    monkeypatch.setattr(ray, "nodes", list)
    monkeypatch.setattr(capacity, "draining", set)
    experiment = load_experiment(write_spec(tmp_path, workers=8), overrides)
    require_choice(experiment, chosen)


AUTO, CUDA, FEWER = "cluster.device=auto", "cluster.device=cuda", "cluster.min_workers=2"


@pytest.mark.parametrize(
    ("gpus", "before", "overrides", "chosen"),
    [
        ([2.0], None, [CUDA], r"wants 8 GPUs and the cluster has 2 \(n0: 2\), 6 too few; set cluster.workers, min_wo"),
        ([4.0, 0.0], None, ["cluster.accelerator=H100-PCIe", AUTO], r"has 4 \(n1: none, n0: 4\), 4 too few"),
        (
            [0.0],
            (8, "cuda"),
            [AUTO],
            r"has 0 \(n0: none\), 8 too few; the attempts before trained on 8 GPUs; bring such",
        ),
        (
            [2.0],
            (8, "cuda"),
            [AUTO],
            r"6 too few; the attempts before trained on 8 GPUs; set cluster.workers or min_workers$",
        ),
        ([0.0], (8, "cuda"), ["training.dtype=float8", AUTO], "wants 8 GPUs and the cluster has 0"),
        ([4.0], (8, "cuda"), [AUTO], "wants 8 GPUs and the cluster has 4"),
        ([1.0], (2, "cuda"), [AUTO], "wants 2 to 8 GPUs and the cluster has 1 .* before trained on 2 GPUs"),
        ([2.0], (2, "cuda"), [AUTO], (2, "cuda")),
        ([4.0], (2, "cuda"), [AUTO], (4, "cuda")),
        ([4.0], (8, "cuda"), [AUTO, FEWER], (4, "cuda")),
        ([4.0], (8, "cuda"), [AUTO, "cluster.workers=4"], (4, "cuda")),
        ([0.0], (8, "cuda"), [], "began on GPUs and keeps them, .*: set cluster.device to cuda or auto"),  # it says cpu
        ([8.0], (8, "cpu"), [AUTO], (8, "cpu")),
        ([8.0], (8, "cpu"), [CUDA], "began on CPUs and keeps them, .*: set cluster.device to cpu or auto"),
        (
            [8.0],
            (8, "cpu"),
            [AUTO, "training.attention=efficient"],
            "efficient trains on a GPU only, and the attempts before had none: set training.attention to auto",
        ),
    ],
)
def test_a_run_goes_on_with_what_it_began_with(
    gpus: list[float],
    before: Chosen | None,
    overrides: list[str],
    chosen: Chosen | str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_nodes(monkeypatch, 16.0, *gpus)
    require_choice(load_experiment(write_spec(tmp_path, workers=8), overrides), chosen, before)


@pytest.mark.parametrize(
    ("gpus", "overrides", "chosen", "said"),
    [
        ([2.0], [AUTO], (2, "cuda"), "8 workers and there are 2 GPUs (n0: 2): 2 train; cluster.min_workers=8 refuses"),
        ([1.0], [AUTO, FEWER], (1, "cuda"), None),
        ([8.0], [AUTO], (8, "cuda"), None),
        ([1.0], [AUTO], (8, "cpu"), "there is 1 GPU, and the attempts before trained on the CPU: this one does too; "),
        ([1.0], [], (8, "cpu"), None),
        ([], [AUTO], (8, "cpu"), None),
        (
            [1.0] * (capacity.NODES_TOLD + 2),
            [AUTO],
            (4, "cuda"),
            ", n7: 1, 2 more): 4 train; ",
        ),
    ],
)
def test_what_is_unlike_the_spec_is_told(
    gpus: list[float],
    overrides: list[str],
    chosen: Chosen,
    said: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_nodes(monkeypatch, 16.0, *gpus)
    told = unlike_the_spec(load_experiment(write_spec(tmp_path, workers=8), overrides), *chosen)
    assert told is None if said is None else said in (told or "")


@pytest.mark.parametrize(
    ("there", "free", "ranks", "overrides", "chosen"),
    [
        ({"CPU": 16.0}, {"a": {"CPU": 2.0}, "b": {}}, {}, ["cluster.min_workers=2"], (2, "cpu")),
        ({"CPU": 16.0}, {"a": {"CPU": 1.0}, "b": {"CPU": 3.0}}, {}, ["cluster.min_workers=2"], (4, "cpu")),
        ({"CPU": 16.0}, {"a": {"CPU": 1.5}, "b": {"CPU": 1.5}}, {}, ["cluster.min_workers=2"], (2, "cpu")),
        ({"CPU": 16.0}, {"a": {"CPU": 2.0}}, {"b": 2}, ["cluster.min_workers=2"], (4, "cpu")),  # its own stay its own
        ({"CPU": 16.0}, {"a": {"CPU": 1.0}}, {}, ["cluster.min_workers=2"], "wants 2 to 8 CPUs and the cluster has 1"),
        ({"CPU": 8.0}, {"a": {"CPU": 2.0}, "leaves": {"CPU": 4.0}}, {}, ["cluster.min_workers=2"], (2, "cpu")),
        # All GPUs are in use: it waits for them, and does not go on with the CPU.
        (
            {"CPU": 16.0, "GPU": 8.0},
            {"a": {"CPU": 16.0}},
            {},
            ["cluster.min_workers=2", "cluster.device=auto"],
            "8 GPUs and .* has 0",
        ),
        ({"CPU": 2.0}, {"a": {"CPU": 2.0}}, {"b": 4}, ["cluster.min_workers=2"], (2, "cpu")),  # b is gone, ranks dying
    ],
)
def test_of_what_others_use_it_takes_nothing(
    there: dict[str, float],
    free: dict[str, dict[str, float]],
    ranks: dict[str, int],
    overrides: list[str],
    chosen: Chosen | str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: there)
    monkeypatch.setattr(ray, "nodes", list)
    monkeypatch.setattr(capacity, "free_by_node", lambda: free)
    monkeypatch.setattr(capacity, "_ranks_by_node", lambda: ranks)
    monkeypatch.setattr(capacity, "draining", lambda: {"leaves"})
    experiment = load_experiment(write_spec(tmp_path, workers=8), overrides)
    require_choice(experiment, chosen, free=True)


@pytest.mark.parametrize(
    ("ranks", "overrides", "said"),
    [
        ({"a": 8}, [], None),
        ({"a": 6, "b": 2}, [], "the workers lie on 2 nodes, where 1 would hold them"),
        ({"a": 6, "b": 2}, ["cluster.placement=spread"], None),
        ({"a": 8, "b": 8, "c": 4}, [], None),
        ({}, [], None),
    ],
)
def test_ranks_that_lie_apart_are_told(
    ranks: dict[str, int], overrides: list[str], said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [{"NodeID": name, "Alive": name != "d", "Resources": {"CPU": 8.0}} for name in "abcd"]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(capacity, "_ranks_by_node", lambda: ranks)
    found = ranks_apart(load_experiment(write_spec(tmp_path, workers=8), overrides), "cpu")
    assert found is None if said is None else (found or "").startswith(said)
