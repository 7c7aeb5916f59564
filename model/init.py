"""Weights that depend on the seed and the parameter's name, never on the number of ranks.

DTensor's own random operations depend on the world size (pytorch issue 168058), and on a CPU mesh they draw
identical shards on every rank. So each rank draws the full parameter from a generator keyed by its name, and
keeps its shard: bit-identical for any world size, at the cost of one full parameter of transient memory.
`normal_` and `clamp_` because `trunc_normal_` changed its values between torch 2.11 and 2.13.
"""

from __future__ import annotations

from zlib import crc32

import torch
from torch.distributed.tensor import DTensor

from model.transformer import Llama

_CLAMP_STD = 3.0
_WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.")
_RESIDUAL = ("attention.wo.weight", "ffn.w_down.weight")


def plain_name(name: str) -> str:
    """The parameter's name without what torch.compile and activation checkpointing put in it."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


@torch.no_grad()
def init_weights(model: Llama, seed: int) -> None:
    """Fill every parameter (plain or sharded) and buffer of a model that has storage (after `to_empty`).

    Matrices are normal with `init_std`, clamped at 3 standard deviations; the two that write to the residual
    stream are scaled by 1 / sqrt(2 n_layers) (GPT-2), so that its variance does not grow with depth. The
    LLaMA paper does not say what it used. Norm weights are one.
    """
    config = model.config
    for raw_name, parameter in model.named_parameters():
        name = plain_name(raw_name)
        if parameter.dim() < 2:
            parameter.fill_(1.0)
            continue
        std = config.init_std
        if name.endswith(_RESIDUAL):
            std /= (2 * config.n_layers) ** 0.5
        _copy_full(parameter, _draw(parameter.shape, std, crc32(name.encode()) ^ seed))
    model.reset_buffers()


def _draw(shape: torch.Size, std: float, key: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(key)
    full = torch.empty(shape, dtype=torch.float32, device="cpu").normal_(0.0, std, generator=generator)
    return full.clamp_(-_CLAMP_STD * std, _CLAMP_STD * std)


def _copy_full(parameter: torch.Tensor, full: torch.Tensor) -> None:
    if isinstance(parameter, DTensor):
        parameter.to_local().copy_(_piece(parameter, full))
    else:
        parameter.copy_(full)


def _piece(parameter: DTensor, full: torch.Tensor) -> torch.Tensor:
    """This rank's part of `full`; every rank has the same, so nothing is sent."""
    mesh = parameter.device_mesh
    # From the last dimension of the mesh to the first: FSDP cuts what tensor parallelism left, also of rows.
    for axis, placement in reversed(list(enumerate(parameter.placements))):
        dim = getattr(placement, "dim", None)
        if dim is not None:
            pieces, place = full.chunk(mesh.size(axis), dim), mesh.get_local_rank(axis)
            full = pieces[place] if place < len(pieces) else full.narrow(dim, 0, 0)
    return full
