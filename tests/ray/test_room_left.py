"""A run with a range of workers, on a cluster whose slots another job takes and leaves: it takes what is left."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from clusters import ray_cluster
from driver import Driver, reached
from driver import left_over as left_over
from ray.cluster_utils import Cluster
from tiny import write_spec

from energy.runs import STOP_FILE

# Holds two slots until its standard input is closed.
OTHER = """
import sys, ray
from ray.util.placement_group import placement_group
ray.init(address=sys.argv[1], logging_level="ERROR")
ray.get(placement_group([{"CPU": 1}] * 2).ready())
print("holds", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Three slots."""
    with ray_cluster(3) as cluster:
        yield cluster


@pytest.mark.stress
def test_it_goes_on_with_fewer_and_takes_no_more_than_is_free(
    tmp_path: Path, cluster: Cluster, left_over: list[Driver]
) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", OTHER, cluster.address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None and other.stdout.readline() == "holds\n"
        spec, run = write_spec(tmp_path, workers=2, steps=1_000_000), tmp_path / "runs" / "one"
        settings = [f"cluster.address={cluster.address}", "cluster.min_workers=1"]
        sets = [part for each in settings for part in ("--set", each)]
        driver = Driver(run, str(spec), "--runs", str(run.parent), "--name", run.name, *sets)
        left_over.append(driver)
        driver.wait_for(reached(2, 1))
        first, second = driver.folder.read_run()["attempts"]
        assert (first["world_size"], second["world_size"]) == (2, 1)
        assert first["error"] == "the cluster had no room for the workers" and first["waited_s"] >= 19.0
        driver.wait_for(reached(2, driver.folder.steps()[-1]["step"] + 1000))  # several looks at what is free
        assert len(driver.folder.read_run()["attempts"]) == 2
        other.communicate()  # it leaves
        driver.wait_for(reached(3, 1))
        (run / STOP_FILE).touch()
        assert driver.end() == 130, driver.said.read_text()
    finally:
        other.kill()
        other.wait()
    attempts = driver.folder.read_run()["attempts"]
    assert [(each["status"], each["world_size"]) for each in attempts] == [
        ("failed", 2),
        ("stopped", 1),
        ("stopped", 2),
    ]
    said = driver.said.read_text()
    assert "with 1 workers instead of 2: the cluster had no room for the workers" in said
    assert "there is room for 2 workers again" in said
