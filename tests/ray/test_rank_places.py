"""Where Ray puts the ranks of a run: together on as few nodes as hold them, or one on each, as the spec asks."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from clusters import ray_cluster
from tiny import write_spec

from energy.ledger.readings import read_sessions
from energy.runs import RunFolder

pytestmark = pytest.mark.stress
NODES = ("127.0.0.2", "127.0.0.3")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a cluster of a head without CPUs and two nodes of two."""
    with ray_cluster(0) as cluster:
        for node in NODES:
            cluster.add_node(num_cpus=2, node_ip_address=node)
        yield str(cluster.address)


@ray.remote(num_cpus=1)
class Other:
    """Work that is not ours."""

    def ready(self) -> None:
        pass


@pytest.fixture
def busy(request: pytest.FixtureRequest, address: str) -> Iterator[bool]:
    """Whether one of the two CPUs of each node is somebody else's."""
    if not request.param:
        yield False
        return
    ray.init(address=address, log_to_driver=False)
    others = [Other.options(scheduling_strategy="SPREAD").remote() for _ in NODES]
    ray.get([other.ready.remote() for other in others])
    yield True
    ray.shutdown()


@pytest.mark.parametrize(
    ("busy", "placement", "ranks"),
    [(False, "pack", [0, 2]), (False, "spread", [1, 1]), (True, "pack", [1, 1])],
    indirect=["busy"],
)
def test_a_node_is_filled_first_or_each_gets_one(
    tmp_path: Path, address: str, busy: bool, placement: str, ranks: list[int]
) -> None:
    run = RunFolder(tmp_path / "runs" / "one")
    options = ["--runs", str(run.path.parent), "--name", "one", "--set", f"cluster.address={address}"]
    command = [sys.executable, "-m", "orchestrator", "run", str(write_spec(tmp_path, workers=2)), *options]
    own = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run(
        [*command, "--set", f"cluster.placement={placement}"], capture_output=True, text=True, env=own, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = {}
    for path in run.ledgers():
        [session] = read_sessions(path)[0]
        *_, event = (event for event in session.events if event["event"] == "ranks")
        found[path.stem.rpartition("-")[2]] = event["ranks"]
    assert sorted(found[node] for node in NODES) == ranks, found
    assert ("the workers lie on 2 nodes, where 1 would hold them" in done.stderr) == busy
