"""Ray around the training: starts or joins a cluster, and runs the ranks as Ray Train workers."""

import contextlib
import os
import textwrap
import threading
import time
import traceback
from dataclasses import asdict
from typing import Any

from orchestrator.driver import own_ray
from orchestrator.driver.endings import last_line
from orchestrator.driver.own_ray import deaf_to_launchers
from orchestrator.driver.places import Places
from orchestrator.ranks.job import Job
from orchestrator.spec.experiment import Experiment

# Measured: without these a run of Ray Train prints a dozen lines that mean nothing to the user, starts a watcher
# process for cloud preemptions, and changes the workers' folder so that relative paths are not found. Ray also starts
# its workers at niceness 15, behind its own dashboard and every other program of the machine: here they are the work.
RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",
    # How long Ray Train may take to see that a worker is gone, in s.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "2",
    # How long it waits for room for the workers before it says so; its own default is 60. Without a lost machine, which
    # Ray counts until its heartbeats are missed, an elastic run goes on sooner.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
}
# glibc hands large arrays back to the system when they are freed, and the next step faults every page in again: a sixth
# of a step's CPU time, measured. One arena, because the others, which threads get, are given back whole regardless.
CPU_RANK_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(2**40),
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_ARENA_MAX": "1",
}
CONTROLLER_CLASS = "TrainController"
ABANDON_S = 20.0
LONGEST_REASON = 160  # characters; Ray's own may be twenty lines of a log, which logs/ray.log has whole


def start_ray(experiment: Experiment) -> None:
    """Joins the cluster of the spec, or starts a local one with a slot for each worker, which is to be ended with
    `own_ray.leave_ray`; RuntimeError if it cannot."""
    with deaf_to_launchers():
        open_ray(experiment.cluster.address, experiment.cluster.workers)


def open_ray(address: str | None, slots: int = 1) -> None:
    """Joins the cluster at the address, or starts a local one of at least so many slots; RuntimeError if it cannot."""
    address = _cluster_address(address)
    for key, value in (RAY_ENVIRONMENT | ({} if address else own_ray.environment(slots))).items():
        os.environ.setdefault(key, value)
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "WARNING"}
    if address:
        options["address"] = address
    else:
        # A laptop with fewer cores than workers still trains; Ray only counts slots.
        options.update(
            address="local",
            num_cpus=max(os.cpu_count() or 1, slots),
            include_dashboard=False,
            object_store_memory=128 * 2**20,
        )
    try:
        ray.init(**options)
    except Exception as error:  # Ray raises many unrelated types here; all mean that there is no cluster
        what = f"Ray at {address} could not be joined" if address else "Ray did not start on this machine"
        need = "" if address else " (it needs some twenty free ports and 2 GB of free memory)"
        said = textwrap.shorten(last_line(str(error)) or repr(error), LONGEST_REASON, placeholder=" ...")
        raise RuntimeError(f"{what}{need}: {said}") from error


def head_address() -> str:
    """host:port at which the head of the cluster that this process has joined, or started, answers."""
    import ray

    return str(ray.get_runtime_context().gcs_address)


def _cluster_address(wanted: str | None) -> str | None:
    """The cluster to join, or None for a local one of our own."""
    return wanted or os.environ.get("RAY_ADDRESS")


class Training(threading.Thread):
    """Ray Train's blocking `fit` on its own thread, so that the main thread can show progress and take Ctrl-C."""

    def __init__(self, job: Job, workers: int, device: str, storage: str):
        super().__init__(name="ray-train", daemon=True)
        self._job, self._workers, self._device, self._storage = job, workers, device, storage
        self.complete: bool | None = None
        self.error: Exception | None = None
        self._places: Places | None = None
        self._own_cluster = _cluster_address(job.experiment["cluster"].get("address")) is None
        self._environment = {"PYTHONWARNINGS": "ignore"} | (CPU_RANK_ENVIRONMENT if device == "cpu" else {})

    def run(self) -> None:
        try:
            trainer = self._trainer()
            self._places = Places()
            self.complete = trainer.fit().return_value
        except Exception as error:
            self.error = error

    def has_room(self) -> bool | None:
        """Whether Ray holds machines for the ranks; None before it was asked. Raises what Ray raises."""
        return None if self._places is None else self._places.held()

    def give_back(self) -> None:
        """Leaves the machines of a training that has ended to others."""
        with contextlib.suppress(Exception):  # of Ray's many types; whoever cannot be asked does not hold them long
            if self._places is not None:
                self._places.give_back()

    def _trainer(self) -> Any:
        from ray.train import FailureConfig, RunConfig, ScalingConfig

        from orchestrator.driver.notices import NoticingConfig

        return _trainer_class(self._own_cluster)(
            _train_function,
            train_loop_config={
                "job": asdict(self._job),
                "own_cluster": self._own_cluster,
            },
            backend_config=NoticingConfig("nccl" if self._device == "cuda" else "gloo", self._job.run_dir),
            scaling_config=ScalingConfig(
                num_workers=self._workers,
                use_gpu=self._device == "cuda",
                placement_strategy=self._job.experiment["cluster"]["placement"].upper(),
            ),
            run_config=RunConfig(
                name="ray-train",
                storage_path=self._storage,
                worker_runtime_env={"env_vars": self._environment},
                # Whoever starts an attempt decides about the next (orchestrator.driver.supervise).
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
            ),
        )

    def abandon(self) -> None:
        """Ends a training that still runs, by its controller, with which its workers end.

        Before `ray.shutdown`: a thread that asks Ray for anything after that ends the whole process (exit code 1), and
        no record would be written.
        """
        import ray
        from ray._private.state import actors as actor_table
        from ray._private.worker import global_worker

        job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
        until = time.monotonic() + ABANDON_S
        while self.is_alive() and time.monotonic() < until:
            for actor_id, actor in actor_table(job_id=job).items():
                if actor["ActorClassName"].rpartition(".")[2] == CONTROLLER_CLASS and actor["State"] != "DEAD":
                    global_worker.core_worker.kill_actor(ray.ActorID.from_hex(actor_id), True)
            self.join(timeout=0.5)


def _trainer_class(own_cluster: bool) -> Any:
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer  # TorchTrainer's, which imports PyTorch

    return own_ray.trainer_class() if own_cluster else DataParallelTrainer


def _train_function(config: dict[str, Any]) -> bool:
    import ray
    import torch

    from orchestrator.ranks.worker import run_rank

    job = Job(**config["job"])
    if not torch.cuda.is_available():
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // torch.distributed.get_world_size()))
    if config["own_cluster"] and torch.distributed.get_rank() == 0:
        own_ray.quieten_helpers()
    try:
        return run_rank(job)
    except Exception as error:
        # Ray sends it to the driver. Of one that cannot travel (it holds a process group, or a compiler's state) the
        # driver would only hear that it cannot.
        try:
            ray.cloudpickle.dumps(error)
        except Exception:
            traceback.print_exc()
            raise RuntimeError(f"{type(error).__name__}: {error}") from None
        raise
