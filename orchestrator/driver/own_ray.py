"""A Ray of the run's own, on one machine: what it is started with, what is left out of it, and how it ends."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import psutil

# Its processes share the cores with the ranks: with these, and without the dashboard and the actors below, they take
# less of it (`helpers_cores` in benchmarks/results/overhead.json says how much is left).
OWN_RAY_ENVIRONMENT = {
    "RAY_task_events_report_interval_ms": "0",
    "RAY_event_stats": "0",
    "RAY_metrics_report_interval_ms": "30000",
    "RAY_memory_monitor_refresh_ms": "1000",
    "RAY_raylet_report_resources_period_milliseconds": "1000",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # the ranks of one machine are few
    # A worker for each CPU, which `ray.init` would wait for and nobody uses: those that are wanted are started then.
    "RAY_prestart_worker_first_driver": "0",
}
# Ray starts as many worker processes at a time as there are CPUs, and Ray Train's helper comes first: on two cores the
# last rank would wait until that one, or another rank, has started.
HELPERS_AT_ONCE = 2
# Ray Train starts an actor for each: one looks every second whether the controller lives, to free its placement group,
# which ends with a Ray of our own in any case; one hands out data sets, of which there are none.
UNNEEDED_CALLBACKS = ("PlacementGroupCleanerCallback", "DatasetsCallback")
# Processes of a local Ray that keep their priority, by title or name: the ranks, the meters, what answers Ray's health
# checks, and who prepares the start of the next rank. The others (agents, log monitors, Ray Train's helper actors) only
# make a rank wait.
UNHURRIED_NICENESS = 19
KEEP_TITLES = ("ray::RayTrainWorker", "ray::MeterActor", "ray::RuntimeEnvAgent")
KEEP_NAMES = ("raylet", "gcs_server")
# What launchers send to all processes of a job at once: SLURM, systemd and `kill` to a group send SIGTERM, a terminal
# that is closed SIGHUP. Ray itself does so with SIGINT.
FOR_THE_DRIVER = {signal.SIGTERM, signal.SIGHUP}
END_S = 10.0


def environment(ranks: int) -> dict[str, str]:
    """Of a Ray for so many ranks, before `ray.init`."""
    at_once = max(os.cpu_count() or 1, ranks + HELPERS_AT_ONCE)
    return OWN_RAY_ENVIRONMENT | {"RAY_worker_maximum_startup_concurrency": str(at_once)}


@contextlib.contextmanager
def deaf_to_launchers() -> Iterator[None]:
    """Processes that are started meanwhile, and all that they start, never hear what is meant for the driver: with Ray
    under it, it can make a checkpoint and a report. A rank listens to SIGTERM again (driver.notices)."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, FOR_THE_DRIVER)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_ray() -> None:
    """`ray.shutdown`; a Ray of our own ends at once, for its processes are deaf to the SIGTERM with which Ray would ask
    one after the other, and wait a second for each. Nothing in them is needed any more."""
    import ray
    import ray._private.worker as ray_worker

    node = ray_worker._global_node
    own = node is not None and node.head
    if own:
        ray_worker._global_node = None  # so that it is left, and not ended
    ray.shutdown()
    ours = [process for _, process in node.live_processes()] if own else []
    theirs: list[psutil.Process] = []
    for process in ours:
        with contextlib.suppress(psutil.NoSuchProcess):
            theirs += psutil.Process(process.pid).children(recursive=True)
    for process in [*theirs, *ours]:  # the raylet after its workers, which it has the system clear away
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    for process in ours:
        with contextlib.suppress(subprocess.TimeoutExpired):  # it waits for a disk that does not answer
            process.wait(END_S)


def trainer_class() -> Any:
    """Ray Train's trainer without what is only needed in others' Ray (one that calls these otherwise starts them as
    before)."""
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    from orchestrator.driver.fixed_size import FixedSize

    class OwnTrainer(DataParallelTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            return [
                each for each in super()._create_default_callbacks() if type(each).__name__ not in UNNEEDED_CALLBACKS
            ]

        def _initialize_and_run_controller(self, **setup: Any) -> Any:
            return super()._initialize_and_run_controller(**setup | {"scaling_policy": FixedSize(self.scaling_config)})

    return OwnTrainer


def quieten_helpers() -> None:
    """Lets Ray's helper processes run in the gaps of the training only; all of them exist when a rank starts.

    Only in a Ray of our own: the priorities of a shared cluster are not ours to set.
    """
    raylet = psutil.Process().parent()
    driver = raylet.parent() if raylet is not None else None
    for process in driver.children(recursive=True) if driver is not None else ():
        # A process that ends meanwhile, or a title that cannot be read, costs nothing but its own share.
        with contextlib.suppress(psutil.Error, IndexError):
            title = process.cmdline()[0]
            if not title.startswith(KEEP_TITLES) and process.name() not in KEEP_NAMES:
                process.nice(UNHURRIED_NICENESS)
