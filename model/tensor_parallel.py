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
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from model.loss import Words
from model.sharding import ShardingPlan, Style
from model.transformer import Head, Llama

_POSITIONS = Shard(1)
_ATTENTION_ARGUMENTS = 5  # x, cos, sin, cache, mask: the first is gathered


def apply_tensor_parallel(model: Llama, mesh: DeviceMesh, plan: ShardingPlan) -> None:
    """Cut `model` over the ranks of `mesh` (one dimension), as the plan's styles say. A call with logits as its result
    gathers them; with targets each rank returns an equal share of the loss."""
    names = {name for name, _ in model.named_modules()}
    styles = {name: _style(name, style, model.config.vocab_size) for name, style in plan.styles if name in names}
    parallelize_module(model, mesh, styles)


def _style(name: str, style: Style, vocabulary: int) -> ParallelStyle:
    if style == "columns":
        return ColwiseParallel()
    if style == "rows":
        return RowwiseParallel(output_layouts=_POSITIONS)
    if style == "sequence":
        return SequenceParallel(use_local_output=True)
    if style == "gathers":
        others = (None,) * (_ATTENTION_ARGUMENTS - 1 if name.endswith("attention") else 0)
        return PrepareModuleInput(input_layouts=(_POSITIONS, *others), desired_input_layouts=(Replicate(), *others))
    if style == "embedding":
        return RowwiseParallel(input_layouts=Replicate(), output_layouts=_POSITIONS)
    return _Words(vocabulary)


class _Words(ParallelStyle):
    """Output matrix and head: each rank has some of the words, for the positions of all."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        if isinstance(module, Head):
            module.words = Words(device_mesh.get_group(), self.vocabulary)
            module.register_forward_pre_hook(_to_all_positions(device_mesh))
            module.register_forward_hook(_to_all_logits(device_mesh, self.vocabulary))
        for name, parameter in module.named_parameters(recurse=False):
            module.register_parameter(name, nn.Parameter(distribute_tensor(parameter, device_mesh, [Shard(0)])))
        return module


def _to_all_positions(mesh: DeviceMesh) -> Callable[..., Any]:
    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x_BLE, weight_VE, *targets = inputs
        x_BLE = DTensor.from_local(x_BLE, mesh, [_POSITIONS], run_check=False).redistribute(mesh, [Replicate()])
        # Of the gradient of `x` each rank has what its words add; that of its rows of the matrix it has whole.
        return x_BLE.to_local(grad_placements=[Partial()]), weight_VE.to_local(), *targets

    return hook


def _to_all_logits(mesh: DeviceMesh, vocabulary: int) -> Callable[..., Any]:
    def hook(module: nn.Module, inputs: tuple[Any, ...], out: torch.Tensor) -> torch.Tensor:
        if out.dim() == 0:
            return out
        shape = torch.Size((*out.shape[:-1], vocabulary))
        stride = torch.empty(shape, device="meta").stride()  # said, because ranks may have different numbers of words
        cut = DTensor.from_local(out, mesh, [Shard(out.dim() - 1)], run_check=False, shape=shape, stride=stride)
        return cut.full_tensor()

    return hook
