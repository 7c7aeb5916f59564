"""Ray around the training: starts or joins a cluster, and runs the ranks as Ray Train workers."""

import os
import threading
from dataclasses import asdict
from typing import Any

from orchestrator.spec import Experiment
from orchestrator.spec_file import BadInput
from orchestrator.worker import Job

# Measured: without these a run of Ray Train prints a dozen lines that mean nothing to the user, starts a watcher
# process for cloud preemptions, and changes the workers' folder so that relative paths are not found.
RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def start_ray(experiment: Experiment) -> None:
    """Joins the cluster of the spec, or starts a local one with a slot for each worker."""
    for key, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    import ray

    address = experiment.cluster.address or os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "WARNING"}
    if address:
        options["address"] = address
    else:
        # A laptop with fewer cores than workers still trains; Ray only counts slots.
        options.update(
            address="local",
            num_cpus=max(os.cpu_count() or 1, experiment.cluster.workers),
            include_dashboard=True,
            object_store_memory=128 * 2**20,
        )
    try:
        ray.init(**options)
    except Exception as error:  # Ray raises many unrelated types here; all mean that there is no cluster
        raise BadInput(f"Ray could not be started or joined ({address or 'local'}): {error}") from error


def choose_workers(experiment: Experiment) -> tuple[int, str]:
    """(workers, cpu or cuda): the GPUs where the cluster has them, else the CPU; BadInput where it cannot be."""
    import ray

    gpus = int(ray.cluster_resources().get("GPU", 0))
    cluster = experiment.cluster
    if cluster.device == "cpu" or (cluster.device == "auto" and gpus == 0 and cluster.accelerator is None):
        return cluster.workers, "cpu"
    if gpus >= cluster.workers:
        return cluster.workers, "cuda"
    if gpus and cluster.accelerator is None and experiment.batch_sequences % gpus == 0:
        return gpus, "cuda"  # a spec written for the CPU, on a machine with fewer GPUs than it has workers
    raise BadInput(f"the spec wants {cluster.workers} GPUs and the cluster has {gpus}; set cluster.workers or device")


class Training(threading.Thread):
    """Ray Train's blocking `fit` on its own thread, so that the main thread can show progress and take Ctrl-C."""

    def __init__(self, job: Job, workers: int, device: str, storage: str):
        super().__init__(name="ray-train", daemon=True)
        self._job, self._workers, self._device, self._storage = job, workers, device, storage
        self.complete: bool | None = None
        self.error: Exception | None = None

    def run(self) -> None:
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        environment = {"PYTHONWARNINGS": "ignore"}
        trainer = TorchTrainer(
            _train_function,
            train_loop_config=asdict(self._job),
            torch_config=TorchConfig(backend="nccl" if self._device == "cuda" else "gloo"),
            scaling_config=ScalingConfig(num_workers=self._workers, use_gpu=self._device == "cuda"),
            run_config=RunConfig(
                name="ray-train", storage_path=self._storage, worker_runtime_env={"env_vars": environment}
            ),
        )
        try:
            self.complete = trainer.fit().return_value
        except Exception as error:
            self.error = error


def _train_function(config: dict[str, Any]) -> bool:
    import torch

    from orchestrator.worker import run_rank

    if not torch.cuda.is_available():
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // config["experiment"]["cluster"]["workers"]))
    return run_rank(Job(**config))
