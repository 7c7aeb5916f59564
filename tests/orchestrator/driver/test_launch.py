"""A Ray that does not start, and a rank whose error cannot travel, are told in one line."""

import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util import placement_group, placement_group_table
from tiny import write_spec

from orchestrator.driver import launch
from orchestrator.driver.launch import LONGEST_REASON, start_ray
from orchestrator.driver.places import Places
from orchestrator.ranks import worker
from orchestrator.ranks.worker import Job
from orchestrator.spec.file import load_experiment


def test_a_ray_that_does_not_start_is_one_short_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = "\n".join(f"[2026-01-01] gcs_server.cc:{line}: still waiting" for line in range(20))

    def refuse(**_: Any) -> None:
        raise RuntimeError(f"The current node timed out during startup.\n{log}\nOSError: no free port was found")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(RuntimeError) as raised:
        start_ray(load_experiment(write_spec(tmp_path)))
    said = str(raised.value)
    assert said.startswith("Ray did not start on this machine") and "no free port was found" in said
    assert "\n" not in said and "gcs_server" not in said
    assert len(said.rpartition(": ")[2]) <= LONGEST_REASON


def test_an_error_that_cannot_travel_keeps_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    class Holding(Exception):
        def __init__(self) -> None:
            super().__init__("no kernel for this device", threading.Lock())

    def fail(job: Job) -> bool:
        raise [Holding(), ValueError("plain")][job.profile_steps]

    monkeypatch.setattr(worker, "run_rank", fail)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)  # so that it asks no process group
    for kind, words, number in ((RuntimeError, "Holding.*no kernel for this device", 0), (ValueError, "plain", 1)):
        job = Job("run", "corpus", {}, 0.0, profile_steps=number)
        with pytest.raises(kind, match=words) as raised:
            launch._train_function({"job": asdict(job), "own_cluster": False})
        ray.cloudpickle.dumps(raised.value)


def test_a_training_that_cannot_be_set_up_failed_and_was_not_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(own_cluster: bool) -> Any:
        raise ModuleNotFoundError("No module named 'ray.train.torch'")

    monkeypatch.setattr(launch, "_trainer_class", refuse)
    training = launch.Training(Job("run", "corpus", {"cluster": {}}, 0.0), 1, "cpu", "logs")
    training.start()
    training.join()
    assert isinstance(training.error, ModuleNotFoundError) and training.complete is None


def test_an_attempt_holds_no_machine_after_its_end_and_the_next_knows_when_it_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ranks that die while they are started leave their placement group to the driver, who would wait for it."""
    for name, value in launch.RAY_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        places = Places()
        assert places.held() is None
        assert ray.get(placement_group([{"CPU": 1}] * 2).ready(), timeout=60)
        assert places.held() is True
        places.give_back()
        places = Places()
        assert places.held() is None  # what is left of the attempt before is none of this one's
        busy = ray.remote(num_cpus=2)(lambda: time.sleep(600)).remote()
        while ray.available_resources().get("CPU"):
            time.sleep(0.05)
        wanted = placement_group([{"CPU": 1}] * 2)
        while places.held() is None:
            time.sleep(0.05)
        assert places.held() is False
        ray.cancel(busy, force=True)
        assert ray.get(wanted.ready(), timeout=60) and places.held() is True
        states = sorted(place["state"] for place in placement_group_table().values())
        assert states == ["CREATED", "REMOVED"]
    finally:
        ray.shutdown()


@pytest.mark.parametrize(("wanted", "ray_says"), [([], "PACK"), (["cluster.placement=spread"], "SPREAD")])
def test_workers_lie_close_together_or_apart(wanted: list[str], ray_says: str, tmp_path: Path) -> None:
    experiment = load_experiment(write_spec(tmp_path, workers=4), wanted).model_dump(mode="json")
    for address in ("head:6379", None):  # of a Ray of our own it says nothing, and is taken all the same
        experiment["cluster"]["address"] = address
        training = launch.Training(Job(str(tmp_path), "corpus", experiment, 0.0), 4, "cpu", str(tmp_path))
        assert training._trainer().scaling_config.placement_strategy == ray_says


def test_the_driver_and_ray_trains_controller_do_not_import_pytorch() -> None:
    script = """
import sys
import orchestrator.driver.run, orchestrator.driver.supervise, orchestrator.driver.failures
import orchestrator.cluster.capacity, orchestrator.cluster.meters
from orchestrator.driver import launch, notices
for own_cluster in True, False:
    launch._trainer_class(own_cluster)
config = notices.NoticingConfig("gloo", "run")  # it is in the controller, too
config.train_func_context, config.backend_cls
print("torch" in sys.modules)
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["False"]
