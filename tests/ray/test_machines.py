"""Machines that are announced to go, come, and are gone: the run goes on with what is there, along the same curve."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from driver import LONG_S, Driver, reached
from driver import left_over as left_over
from ray.cluster_utils import Cluster
from tiny import losses, train, write_spec

from orchestrator.driver.launch import RAY_ENVIRONMENT

RAY = [sys.executable, "-m", "ray.scripts.scripts"]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head with room for one worker."""
    # A cluster of a test must not become the one that another process joins by default.
    monkeypatch.setattr("ray._private.utils.write_ray_address", lambda *arguments: None)
    for key, value in RAY_ENVIRONMENT.items():
        monkeypatch.setenv(key, value)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": True})
    yield cluster
    cluster.shutdown()


@pytest.mark.stress
def test_a_run_that_shrinks_grows_and_shrinks(tmp_path: Path, cluster: Cluster, left_over: list[Driver]) -> None:
    leaving = cluster.add_node(num_cpus=1, node_ip_address="127.0.0.2")
    slow = ["model.n_layers=6", "training.checkpoint_every_steps=50", "training.evaluate_every_steps=500"]
    spec = write_spec(tmp_path, workers=2, steps=1500)
    run = tmp_path / "runs" / "one"
    options = [f"cluster.address={cluster.address}", "cluster.min_workers=1", *slow]
    arguments = [argument for option in options for argument in ("--set", option)]
    driver = Driver(run, str(spec), "--runs", str(run.parent), "--name", run.name, *arguments)
    left_over.append(driver)
    driver.wait_for(reached(1, 20))
    drain = ["drain-node", "--address", cluster.address, "--node-id", leaving.node_id]
    drain += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a test", "--deadline-remaining-seconds"]
    subprocess.run([*RAY, *drain, str(int(LONG_S))], check=True, capture_output=True)
    driver.wait_for(reached(2, 1))
    cluster.remove_node(leaving)
    coming = cluster.add_node(num_cpus=1, node_ip_address="127.0.0.3")
    driver.wait_for(reached(3, 1))
    first = min(step["step"] for step in driver.folder.steps() if step["attempt"] == 3)
    driver.wait_for(reached(3, first + 60))  # one checkpoint at least
    cluster.remove_node(coming, allow_graceful=False)
    assert driver.end() == 0, driver.said.read_text()

    said = driver.said.read_text()
    assert "the machine of 1 of 2 ranks is to be taken away" in said
    assert "with 1 workers instead of 2" in said and "with 2 workers instead of 1" in said
    statuses = [attempt["status"] for attempt in driver.folder.read_run()["attempts"]]
    # Ray counts a machine that is gone until its heartbeats are missed: one attempt more may wait for room on it.
    assert statuses in (["stopped"] * 2 + ["failed"] * lost + ["completed"] for lost in (1, 2))
    one, two, three, last = (
        [step["step"] for step in driver.folder.steps() if step["attempt"] == number]
        for number in (1, 2, 3, len(statuses))
    )
    assert two[0] == one[-1] + 1 and three[0] == two[-1] + 1  # ended in order: nothing was done twice
    assert 0 < three[-1] - last[0] < 100 and last[0] % 50 == 1
    reference = train(spec, tmp_path / "uninterrupted", world=2, overrides=slow)
    assert losses(driver.folder) == pytest.approx(losses(reference), abs=1e-4)
