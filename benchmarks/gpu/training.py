"""Training steps of one system at several sequence lengths: tokens/s, MFU, J/token, memory."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.gpu.metered import WARM_UP, attempt, metered, utilisation
from benchmarks.training.systems import BY_LAYER, SYSTEMS, Case, join_group

Say = Callable[[str, Any], None]


def training(system: str, case: Case, lengths: list[int], seconds: float, say: Say) -> None:
    join_group(case.device)
    torch._dynamo.config.automatic_dynamic_shapes = False  # each length is compiled for itself
    try:
        for length in lengths:
            say(str(length), attempt(partial(_one, system, case.with_length(length), seconds)))
            gc.collect()  # what an error has left in its frames, too
            if case.device == "cuda":
                torch.cuda.empty_cache()
    finally:
        dist.destroy_process_group()


def _one(system: str, case: Case, seconds: float) -> dict[str, Any]:
    step = (SYSTEMS | BY_LAYER)[system](case)
    first_loss = float(step())
    found = metered(step, case.device, seconds, case.tokens, warm_up=WARM_UP - 1)
    return {
        "sequences": case.sequences,
        "layers": case.config.n_layers,
        "params": case.config.params,
        "dtype": "float8" if case.float8 else case.dtype,
        "checkpointing": case.checkpointing if system.startswith("hoofprint") else "none",
        "first_loss": first_loss,
        "last_loss": float(step()),
        **found,
        **utilisation(found["tokens_per_s"], case.config.flop_per_token, case.device),
    }
