"""Everything about distribution, applied from outside the model, in the order in which it can be read here:
tensor parallel, then activation checkpointing, then torch.compile, then FSDP.

What goes where is decided in `model.sharding`, as data; this file carries it out.
Shapes: B batch, L positions, E dim, V vocabulary.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from model.activation import Checkpointing, checkpoint_block
from model.sharding import ROOT, Layout, ShardingPlan, sharding_plan
from model.tensor_parallel import apply_tensor_parallel
from model.transformer import Llama

REPLICATE, SHARD, TENSOR = "replicate", "shard", "tensor"


def make_mesh(device_type: str, layout: Layout) -> DeviceMesh:
    """The grid of ranks (`model.sharding`) as a mesh. A dimension of size 1 is left out, but for that of the shards."""
    sizes = {REPLICATE: layout.replicas, SHARD: layout.shards, TENSOR: layout.tensor}
    kept = {name: size for name, size in sizes.items() if size > 1 or name == SHARD}
    return init_device_mesh(device_type, tuple(kept.values()), mesh_dim_names=tuple(kept))


def layout_of(mesh: DeviceMesh) -> Layout:
    """The grid that `make_mesh` made the mesh of; a mesh of one dimension without a name has shards only."""
    names = mesh.mesh_dim_names or (SHARD,)
    sizes = {name: mesh.size(index) for index, name in enumerate(names)}
    return Layout(sizes.get(REPLICATE, 1), sizes.get(SHARD, 1), sizes.get(TENSOR, 1))


def parallelize(
    model: Llama,
    mesh: DeviceMesh | None,
    *,
    plan: ShardingPlan | None = None,
    param_dtype: torch.dtype = torch.float32,
    checkpointing: Checkpointing = "none",
    compile: bool = False,
    gather_once: bool = False,
) -> Llama:
    """Spread `model` over the ranks of `mesh`, in place, and return it. Call on meta, then `to_empty`, then
    `init_weights`.

    mesh: of `make_mesh`; None, or one of a single rank, leaves the model whole.
    plan: of `sharding_plan`, for the mesh's layout; made here where it is not given.
    param_dtype: what the forward and backward compute in; master weights and gradient reduction stay float32.
    checkpointing: what blocks keep for the backward (`model.activation`).
    compile: torch.compile each block. The blocks are alike, so one is compiled and the rest reuse it.
    gather_once: keep a block's gathered weights from its first forward of a step to its last backward (more memory,
    less communication), instead of gathering them anew for each; needs `set_gradient_sync`.

    FSDP averages gradients over the data-parallel ranks; scale the loss by `loss_scale` to undo it.

    A single rank needs no FSDP: each layer casts its weight where it uses it, and gradients arrive in float32. FSDP
    would do the same through copies of all weights and gradients.
    """
    if mesh is not None:
        plan = plan or sharding_plan(model, layout_of(mesh))
        if plan.layout.tensor > 1:
            apply_tensor_parallel(model, mesh[TENSOR], plan)
    for block in model.blocks:
        checkpoint_block(block, checkpointing)
    if compile:
        for block in model.blocks:
            # In place: parameter names stay as they are. Whole: what breaks a block's graph costs speed in silence.
            block.compile(fullgraph=True)
        model.head.compiled = True
    if mesh is not None and plan is not None and plan.layout.world > 1:
        _fully_shard(model, mesh, plan, param_dtype, gather_once)
    elif param_dtype != torch.float32:
        model.compute_dtype = param_dtype
    return model


def _fully_shard(
    model: Llama, mesh: DeviceMesh, plan: ShardingPlan, param_dtype: torch.dtype, gather_once: bool
) -> None:
    # Inputs are not cast: the residual stream has param_dtype from the embedding on, and the rotary tables
    # must stay float32.
    options: dict[str, Any] = {
        "mesh": _data_mesh(mesh, plan.layout),
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=param_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        ),
    }
    modules = {name: model.get_submodule(name) for name in plan.units}
    for name, module in modules.items():
        # The root's own group (embedding, last norm, output) is the first the backward needs: keep it gathered.
        fully_shard(module, reshard_after_forward=not gather_once and name != ROOT, **options)
    # Without being told, FSDP gathers the next unit when the CPU gets there; named here, while the one before computes.
    for name, module in modules.items():
        unit = cast(FSDPModule, module)
        if ahead := plan.ahead(name):
            unit.set_modules_to_forward_prefetch([cast(FSDPModule, modules[other]) for other in ahead])
        if behind := plan.behind(name):
            unit.set_modules_to_backward_prefetch([cast(FSDPModule, modules[other]) for other in behind])


def _data_mesh(mesh: DeviceMesh, layout: Layout) -> DeviceMesh:
    """What FSDP works on: the shards, or replicas of them."""
    if mesh.ndim == 1:
        return mesh
    return mesh[REPLICATE, SHARD] if layout.replicas > 1 else mesh[SHARD]


def loss_scale(data_ranks: int, global_tokens: int) -> float:
    """What to multiply a rank's summed loss by before `backward`.

    The gradient wanted is that of the summed loss over `global_tokens`, the valid targets of all ranks and
    micro-batches of the step. FSDP divides by `data_ranks` on its own, hence the factor.
    """
    return data_ranks / global_tokens


def set_gradient_sync(model: nn.Module, last: bool, each_micro_batch: bool, gather_once: bool = False) -> None:
    """Before a micro-batch: what is summed over ranks in its backward, and what waits for the `last` of the step.

    Waiting sends least, and keeps the gradients of the whole model on each rank: 4 bytes per parameter. With
    `each_micro_batch` they are cut at once (a reduce-scatter each time); replicas still wait for the last. With
    `gather_once`, as given to `parallelize`, the gathered weights stay for the next micro-batch.
    """
    if isinstance(model, FSDPModule):  # a single rank has nobody to reduce with
        model.set_requires_gradient_sync(last or each_micro_batch)
        model.set_requires_all_reduce(last)
        model.set_reshard_after_backward(last or not gather_once)
