"""What SIGTERM to a rank comes to: a checkpoint and an orderly change of machines, and not the loss of the rank.

Whoever takes a machine away (a cloud's spot market, SLURM, Kubernetes, systemd) sends SIGTERM to its processes, and
kills them some time later. Ray ends a worker at once, and what it trained since the last checkpoint is lost. A rank
takes it as the notice that it is: it puts `resize` into the run's folder, as the driver does when Ray itself announces
that a machine goes. At their next step all ranks make a checkpoint and end, and the next attempt begins with what
is left. A second SIGTERM, and one outside of a training, does what Ray has it do.
"""

import os
import signal
import socket
from pathlib import Path
from types import FrameType
from typing import Any

from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

from energy.runs import RESIZE_FILE


class NoticingConfig(TorchConfig):
    """Ray Train's process group, of ranks that listen for notices. `run_dir`: of the run, on storage of all ranks."""

    def __init__(self, backend: str, run_dir: str):
        super().__init__(backend=backend)
        self.run_dir = run_dir

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _Backend


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        super().on_start(worker_group, backend_config)
        worker_group.execute(listen, backend_config.run_dir)  # on the main thread: the training has one of its own

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute_async(be_deaf)  # not waited for: a rank that hangs or is gone answers nothing
        super().on_shutdown(worker_group, backend_config)


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
