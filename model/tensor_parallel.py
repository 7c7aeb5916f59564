"""Tensor and sequence parallelism of a Llama, by hooks around its modules: the model's own code stays as it is.

Weights become DTensors. Between modules stand plain local tensors: of the residual stream this rank's positions, inside
attention and feed-forward this rank's heads and channels, on which the same kernels run as without.
Shapes: B batch, L positions, E dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from model.sharding import ShardingPlan, Style
from model.transformer import Head, Llama

_POSITIONS = Shard(1)
_ATTENTION_ARGUMENTS = 5  # x, cos, sin, cache, mask: the first is gathered


def apply_tensor_parallel(model: Llama, mesh: DeviceMesh, plan: ShardingPlan) -> None:
    """Cut `model` over the ranks of `mesh` (one dimension), as the plan's styles say. A call with logits as its result
    gathers them; with targets each rank returns the loss of its own positions."""
    names = {name for name, _ in model.named_modules()}
    styles = {name: _style(name, style) for name, style in plan.styles if name in names}
    parallelize_module(model, mesh, styles)


def _style(name: str, style: Style) -> ParallelStyle:
    if style == "columns":
        return ColwiseParallel()
    if style == "rows":
        return RowwiseParallel(output_layouts=_POSITIONS)
    if style == "sequence":
        return SequenceParallel(use_local_output=True)
    if style == "gathers":
        others = (None,) * (_ATTENTION_ARGUMENTS - 1 if name.endswith("attention") else 0)
        return PrepareModuleInput(input_layouts=(_POSITIONS, *others), desired_input_layouts=(Replicate(), *others))
    return _OwnPositions()


class _OwnPositions(ParallelStyle):
    """Embedding, output matrix and head: their weights are whole on each rank, which uses them on its own positions."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        for name, parameter in module.named_parameters(recurse=False):
            whole = DTensor.from_local(parameter, device_mesh, [Replicate()], run_check=False)
            module.register_parameter(name, nn.Parameter(whole))
        if isinstance(module, nn.Embedding):
            module.register_forward_pre_hook(_to_own_tokens(device_mesh))
            module.register_forward_hook(lambda _, inputs, out: out.to_local())
        elif isinstance(module, Head):
            module.register_forward_pre_hook(_to_own_targets(device_mesh))
            module.register_forward_hook(_to_all_logits(device_mesh))
        return module


def _own(x_BL: torch.Tensor, mesh: DeviceMesh) -> torch.Tensor:
    return x_BL.chunk(mesh.size(), dim=1)[mesh.get_local_rank()]


def _to_own_tokens(mesh: DeviceMesh) -> Callable[..., Any]:
    def hook(module: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (DTensor.from_local(_own(inputs[0], mesh), mesh, [_POSITIONS], run_check=False),)

    return hook


def _to_own_targets(mesh: DeviceMesh) -> Callable[..., Any]:
    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x_BLE, weight_VE, targets_BL = inputs
        # Each rank's gradient of the matrix is that of its positions: they add up to the whole.
        weight_VE = weight_VE.to_local(grad_placements=[Partial()])
        return x_BLE, weight_VE, None if targets_BL is None else _own(targets_BL, mesh)

    return hook


def _to_all_logits(mesh: DeviceMesh) -> Callable[..., Any]:
    def hook(module: nn.Module, inputs: tuple[Any, ...], out: torch.Tensor) -> torch.Tensor:
        if out.dim() == 0:
            return out
        return DTensor.from_local(out, mesh, [_POSITIONS], run_check=False).full_tensor()

    return hook
