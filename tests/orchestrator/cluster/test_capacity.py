"""How many workers a cluster has room for, and what is said where that is not enough."""

from pathlib import Path

import pytest
import ray
from tiny import write_spec

from orchestrator.cluster import capacity
from orchestrator.cluster.capacity import choose_workers
from orchestrator.spec.file import BadInput, load_experiment


@pytest.mark.parametrize(
    ("there", "overrides", "chosen"),
    [
        ({"CPU": 9.0}, [], (8, "cpu")),
        ({"CPU": 9.0, "GPU": 3.0}, ["cluster.device=auto"], (2, "cuda")),  # 3 do not share a batch of 8 sequences
        ({"CPU": 2.0}, ["cluster.min_workers=2"], (2, "cpu")),
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
    chosen: tuple[int, str] | str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: there)
    monkeypatch.setattr(capacity, "draining", set)
    experiment = load_experiment(write_spec(tmp_path, workers=8), overrides)
    if isinstance(chosen, tuple):
        assert choose_workers(experiment) == chosen
        return
    with pytest.raises(BadInput, match=chosen):
        choose_workers(experiment)
