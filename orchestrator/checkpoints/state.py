"""Sharded checkpoints, loadable by any number of ranks; orchestrator.checkpoints.writer writes them."""

import os
from pathlib import Path
from typing import Any

import torch
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
from model.weights.dcp import CheckpointWeights, PlainPlanner, PlainReader

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


def load(state: TrainState, path: Path) -> None:
    """Fills model, optimiser and progress from `path`, whatever number of ranks wrote it. A collective.

    Nothing in it runs; CheckpointException where something would.
    """
    dcp.load({"app": state}, storage_reader=PlainReader(path), planner=PlainPlanner())


def load_weights(model: torch.nn.Module, config: LlamaConfig, path: Path) -> None:
    """Fills the model alone from a checkpoint, of a run or of imported weights, in its own dtype. A collective.

    ValueError where the checkpoint does not hold the weights of `config`, or more than tensors under their names.
    """
    CheckpointWeights(path, config)  # looks, and reads nothing
    weights = get_model_state_dict(model)
    dcp.load({"app": {"model": weights}}, storage_reader=PlainReader(path), planner=PlainPlanner())
    set_model_state_dict(model, weights)


def why(folder: Path, error: CheckpointException) -> str:
    """The cause of a refusal, in words.

    torch's writer hides the system's answer behind "unexpected pos": ask the disk again.
    """
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
