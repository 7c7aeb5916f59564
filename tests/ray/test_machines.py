"""Machines that are announced to go, come, and are gone: the run goes on with what is there, along the same curve."""

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from clusters import ray_cluster
from driver import LONG_S, Driver, reached
from driver import left_over as left_over
from ray.cluster_utils import Cluster
from tiny import losses, plain_rank, train, write_spec

from energy.runs import STOP_FILE
from orchestrator.ranks import worker
from orchestrator.ranks.loop import StepResult
from orchestrator.ranks.worker import Job

RAY = [sys.executable, "-m", "ray.scripts.scripts"]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head with room for one worker."""
    with ray_cluster(1, dashboard=True) as cluster:
        yield cluster


EVERY = 20  # steps from one checkpoint to the next
# Steps of a tenth of a second and more: some happen in each stretch, and not so many that the sums of two ranks and of
# one, which differ in their last digit, have grown apart (0.00005 after 300 steps).
SLOW = ["model.n_layers=6", "training.batch_tokens=2048", f"training.checkpoint_every_steps={EVERY}"]


def rank_until(last: int, rank: int, world: int, port: int, job: Job) -> None:
    """A rank that is asked to stop at this step."""
    step = worker.Rank.step

    def and_ask(self: worker.Rank, number: int) -> StepResult:
        if number == last:
            (Path(job.run_dir) / STOP_FILE).touch()
        return step(self, number)

    worker.Rank.step = and_ask  # type: ignore[method-assign]
    plain_rank(rank, world, port, job)


def trained(events: list[dict[str, Any]], attempt: int) -> list[int]:
    """The steps of this attempt and of those after it."""
    return [event["step"] for event in events if event.get("event") == "step" and event["attempt"] >= attempt]


@pytest.mark.stress
def test_a_run_that_shrinks_grows_and_shrinks(tmp_path: Path, cluster: Cluster, left_over: list[Driver]) -> None:
    leaving = cluster.add_node(num_cpus=1, node_ip_address="127.0.0.2")
    spec = write_spec(tmp_path, workers=2)
    slow = [
        *SLOW,
        f"training.tokens={10_000 * 2048}",
        "training.evaluate_every_steps=10000",
    ]  # it is stopped long before
    run = tmp_path / "runs" / "one"
    options = [f"cluster.address={cluster.address}", "cluster.min_workers=1", *slow]
    arguments = [argument for option in options for argument in ("--set", option)]
    driver = Driver(run, str(spec), "--runs", str(run.parent), "--name", run.name, *arguments)
    left_over.append(driver)
    driver.wait_for(reached(1, 5))
    drain = ["drain-node", "--address", cluster.address, "--node-id", leaving.node_id]
    drain += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a test", "--deadline-remaining-seconds"]
    subprocess.run([*RAY, *drain, str(int(LONG_S))], check=True, capture_output=True)
    driver.wait_for(reached(2, 1))
    cluster.remove_node(leaving)
    coming = cluster.add_node(num_cpus=1, node_ip_address="127.0.0.3")
    driver.wait_for(lambda events: len(trained(events, 3)) > EVERY)  # one checkpoint at least
    cluster.remove_node(coming, allow_graceful=False)
    driver.wait_for(lambda events: len(trained(events, 4)) > EVERY)
    (run / STOP_FILE).touch()
    assert driver.end() == 130, driver.said.read_text()

    said = driver.said.read_text()
    assert "the machine of 1 of 2 ranks is to be taken away" in said
    assert "with 1 workers instead of 2" in said and "with 2 workers instead of 1" in said
    attempts = driver.folder.read_run()["attempts"]
    statuses = [attempt["status"] for attempt in attempts]
    assert [attempt["world_size"] for attempt in attempts[:3]] == [2, 1, 2] and attempts[-1]["world_size"] == 1
    # Ray counts a machine that is gone until its heartbeats are missed: one attempt more may wait for room on it.
    assert statuses in (["stopped"] * 2 + ["failed"] * lost + ["stopped"] for lost in (1, 2))
    one, two, three, last = (
        [step["step"] for step in driver.folder.steps() if step["attempt"] == number]
        for number in (1, 2, 3, len(statuses))
    )
    assert two[0] == one[-1] + 1 and three[0] == two[-1] + 1  # ended in order: nothing was done twice
    assert 0 < three[-1] - last[0] < 2 * EVERY and last[0] % EVERY == 1
    whole = partial(rank_until, last[-1])
    reference = train(spec, tmp_path / "uninterrupted", world=2, overrides=slow, rank=whole)
    assert losses(driver.folder).keys() == losses(reference).keys() == set(range(1, last[-1] + 1))
    assert losses(driver.folder) == pytest.approx(losses(reference), abs=5e-4)
