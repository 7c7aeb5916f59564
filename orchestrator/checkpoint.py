"""Sharded checkpoints: complete or not there at all, and loadable by any number of ranks."""

import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.stateful import Stateful


class TrainState(Stateful):
    """Model, optimiser and position of the data, as torch.distributed.checkpoint wants them."""

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, progress: dict[str, Any]):
        self.model, self.optimizer, self.progress = model, optimizer, progress

    def state_dict(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer, "progress": self.progress}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        self.progress.update(state["progress"])


def newest_complete(folder: Path) -> Path | None:
    """The checkpoint with the highest step; a folder without DCP's `.metadata` is not a checkpoint."""
    complete = [path for path in folder.glob("step-*") if (path / ".metadata").exists()]
    return max(complete, key=lambda path: int(path.name.removeprefix("step-")), default=None)


def save(state: TrainState, folder: Path, step: int) -> Path:
    """Writes beside the final name and renames when every rank is done. A collective: all ranks call it."""
    final, partial = folder / f"step-{step:08d}", folder / f".step-{step:08d}.partial"
    rank = dist.get_rank()
    if rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier()
    dcp.save({"app": state}, checkpoint_id=partial)
    dist.barrier()
    if rank == 0:
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
    dist.barrier()
    return final


def load(state: TrainState, path: Path) -> None:
    """Fills model, optimiser and progress from `path`, whatever number of ranks wrote it. A collective."""
    dcp.load({"app": state}, checkpoint_id=path)
