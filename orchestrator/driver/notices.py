"""What SIGTERM to a rank comes to: a checkpoint and an orderly change of machines, and not the loss of the rank.

Whoever takes a machine away (a cloud's spot market, SLURM, Kubernetes, systemd) sends SIGTERM to its processes, and
kills them some time later. Ray ends a worker at once, and what it trained since the last checkpoint is lost. A rank
takes it as the notice that it is: it puts `resize` into the run's folder, as the driver does when Ray itself announces
that a machine goes. At their next step all ranks make a checkpoint and end, and the next attempt begins with what
is left. A second SIGTERM does what Ray has it do, and so does one outside of a training; before the first training of
a process in a Ray of the run's own, nothing (driver.own_ray).
"""

import contextlib
import gc
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig

from energy.runs import RESIZE_FILE

LEAVE_S = 10.0  # how long ranks may take to leave their process group before they are ended


class NoticingConfig(BackendConfig):
    """Ray Train's process group, of ranks that listen for notices. `run_dir`: of the run, on storage of all ranks.

    For a TorchConfig the driver and Ray Train's controller would import PyTorch, which takes longer than all else that
    they do before a rank is started.
    """

    def __init__(self, backend: str, run_dir: str):
        self.backend, self.run_dir = backend, run_dir

    @property
    def backend_cls(self) -> type[Backend]:
        return _Backend

    @property
    def train_func_context(self) -> Any:
        return _on_its_device


@contextlib.contextmanager
def _on_its_device() -> Iterator[None]:
    """The training of a rank, in its own thread, which is to use the rank's GPU where there is one."""
    from ray.train.torch.config import TorchConfigContextManager

    with TorchConfigContextManager():
        yield


class _Backend(Backend):
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(_import_training)  # all at once, and before a port is chosen, which may be taken meanwhile
        address, port = worker_group.execute_single(0, get_address_and_port)
        world = len(worker_group)
        arguments = (world, backend_config.backend, address, port, backend_config.run_dir)
        ray.get([worker_group.execute_single_async(rank, _join, rank, *arguments) for rank in range(world)])

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        left = worker_group.execute_async(_leave_group)
        ray.wait(left, num_returns=len(left), timeout=LEAVE_S)  # a rank that hangs or is gone answers nothing


def _join(rank: int, world: int, backend: str, address: str, port: int, run_dir: str) -> None:
    """On the main thread of a rank: the training has one of its own."""
    from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group

    os.environ |= {"MASTER_ADDR": address, "MASTER_PORT": str(port)}
    _set_torch_distributed_env_vars()
    _setup_torch_process_group(backend, rank, world, "env://")
    listen(run_dir)


def _import_training() -> None:
    """PyTorch, and what else the training will import. A fifth of the time would go into looking for garbage among what
    the imports make, of which there is none (measured)."""
    gc.disable()
    try:
        import orchestrator.ranks.worker  # noqa: F401
    finally:
        gc.enable()


def _leave_group() -> None:
    import torch.distributed as dist
    from ray.train.torch.config import _shutdown_torch

    be_deaf()
    _shutdown_torch(destroy_process_group=dist.is_initialized() and dist.get_world_size() > 1)


_before: Any = None  # what answered to SIGTERM before `listen`


def listen(run_dir: str) -> None:
    """From now on, takes the first SIGTERM to this process as the notice that its machine will be taken away."""
    global _before
    be_deaf()

    def take_notice(number: int, frame: FrameType | None) -> None:
        be_deaf()
        who = f"rank {os.environ.get('RANK', '?')} ({socket.gethostname()}, process {os.getpid()})"
        try:
            leave(Path(run_dir), f"{who} was asked to end (SIGTERM), as before its machine is taken away")
        except OSError:  # a full disk, or one that is gone: nobody can be asked, and it ends as Ray has it end
            signal.raise_signal(number)

    _before = signal.signal(signal.SIGTERM, take_notice)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # see own_ray.deaf_to_launchers


def be_deaf() -> None:
    """Undoes `listen`."""
    global _before
    if _before is not None:
        signal.signal(signal.SIGTERM, _before)
        _before = None


def leave(run_dir: Path, why: str) -> None:
    """Asks the trainer for a checkpoint and its driver for another attempt; who asked first is the one who is named."""
    try:
        file = os.open(run_dir / RESIZE_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return
    try:
        os.write(file, f"{why}\n".encode())
    finally:
        os.close(file)
