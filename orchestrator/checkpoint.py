"""Sharded checkpoints: complete or not there at all, and loadable by any number of ranks."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.stateful import Stateful

from model.config import LlamaConfig
from model.weights.dcp import CheckpointWeights
from orchestrator.saved import newest_complete as newest_complete

PROBE_BYTES = 2**20


class CheckpointNotSaved(RuntimeError):
    """A checkpoint could not be written; nothing of it is left, and the ones before are untouched."""


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


def save(state: TrainState, folder: Path, step: int) -> Path:
    """Writes beside the final name and renames when every rank is done. A collective: all ranks call it.

    CheckpointNotSaved, on every rank and with the same words, when one of them could not write.
    """
    final, partial = folder / f"step-{step:08d}", folder / f".step-{step:08d}.partial"
    rank = dist.get_rank()
    if rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier()
    try:
        dcp.save({"app": state}, checkpoint_id=partial)
    except CheckpointException as error:  # dcp raises it on every rank, whichever failed
        reason = [f"{_why(partial, error)}: the checkpoint of step {step} was not written to {folder}"]
        if rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
        # Nobody leaves before rank 0 has cleaned up: the first rank that fails takes the others down.
        dist.broadcast_object_list(reason)
        raise CheckpointNotSaved(reason[0]) from error
    dist.barrier()
    if rank == 0:
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
    dist.barrier()
    return final


def load(state: TrainState, path: Path) -> None:
    """Fills model, optimiser and progress from `path`, whatever number of ranks wrote it. A collective."""
    dcp.load({"app": state}, checkpoint_id=path)


def load_weights(model: torch.nn.Module, config: LlamaConfig, path: Path) -> None:
    """Fills the model alone from a checkpoint, of a run or of imported weights, in its own dtype. A collective.

    ValueError where the checkpoint does not hold the weights of `config`, or more than tensors under their names.
    """
    CheckpointWeights(path, config)  # looks, and reads nothing
    weights = get_model_state_dict(model)
    dcp.load({"app": {"model": weights}}, checkpoint_id=path)
    set_model_state_dict(model, weights)


def _why(folder: Path, error: CheckpointException) -> str:
    """The cause in words. torch's writer hides the system's answer behind "unexpected pos": ask the disk again."""
    try:
        with (folder / "probe").open("wb", buffering=0) as probe:
            left = PROBE_BYTES
            while left:
                left -= probe.write(bytes(left))
            os.fsync(probe.fileno())
    except OSError as refusal:
        return refusal.strerror or str(refusal)
    first, _ = next(iter(error.failures.values()))
    return str(first) or type(first).__name__
