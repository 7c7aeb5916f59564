"""The keys of a spec for checkpoints, hangs, failures and lost workers: what they are when nobody says, and faults."""

from pathlib import Path

import pytest
from tiny import write_spec

from orchestrator.spec.file import BadInput, load_experiment


def test_what_holds_when_nobody_says(tmp_path: Path) -> None:
    experiment = load_experiment(write_spec(tmp_path))
    assert experiment.checkpoint.model_dump() == {
        "asynchronous": True,
        "keep_last": None,
        "keep_every_steps": None,
        "copy_to": None,
    }
    cluster = experiment.cluster
    assert (cluster.max_failures, cluster.step_deadline, cluster.min_workers) == (3, "auto", None)
    assert experiment.training.nonfinite_loss == "stop"


def test_a_deadline_is_a_duration_or_auto(tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    assert load_experiment(spec, ["cluster.step_deadline=2 min"]).cluster.step_deadline == 120.0
    assert load_experiment(spec, ["cluster.step_deadline=auto"]).cluster.step_deadline == "auto"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["cluster.step_deadline=soon"], "expected a number such as 10 min, or auto"),
        (["cluster.step_deadline=0 s"], "cluster.step_deadline"),
        (["cluster.max_failures=-1"], "greater than or equal to 0"),
        (["cluster.min_workers=5"], "min_workers 5 is more than workers 4"),
        (["cluster.min_workers=1", "cluster.replicas=2"], "min_workers 1 is less than replicas x tensor_parallel, 2"),
        (["checkpoint.keep_last=1"], "greater than or equal to 2"),
        (["checkpoint.keep_every_steps=10"], "keep_every_steps is given without keep_last"),
        (["checkpoint.copy_to=/somewhere"], "checkpoint.copy_to"),
        (["checkpoint.copy_to=s3://key:secret@bucket/a"], "copy_to holds a name or a password"),
        (["checkpoint.copy_to=abfs://account:key@container/a"], "copy_to holds a name or a password"),
        (
            ["checkpoint.copy_to=abfs://c@a.dfs.core.windows.net/a?client_secret=b"],
            "copy_to holds a name or a password",
        ),
        (["training.nonfinite_loss=ignore"], "stop"),
        (["checkpoint.keep=2"], "unknown key"),
    ],
)
def test_faults_are_named(tmp_path: Path, overrides: list[str], said: str) -> None:
    with pytest.raises(BadInput) as raised:
        load_experiment(write_spec(tmp_path, workers=4), overrides)
    assert said in str(raised.value)
