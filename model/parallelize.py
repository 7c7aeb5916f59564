"""Everything about distribution, applied from outside the model in a visible order: compile, then shard."""

from __future__ import annotations

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from model.transformer import Block, Llama


def parallelize(
    model: Llama,
    mesh: DeviceMesh | None,
    *,
    param_dtype: torch.dtype = torch.float32,
    compile: bool = False,
    reshard_after_forward: bool = True,
) -> Llama:
    """Compile and shard `model` in place and return it. Call on meta, then `to_empty`, then `init_weights`.

    mesh: the data-parallel mesh, or None to leave the model whole (then in float32 only).
    param_dtype: what the forward and backward compute in; master weights and gradient reduction stay float32.
    compile: torch.compile each block. The blocks are alike, so one is compiled and the rest reuse it.
    reshard_after_forward: free a block's gathered weights after its forward (less memory, one more gather).

    FSDP averages gradients over the ranks; scale the loss by `loss_scale` to undo it.
    """
    if mesh is None and param_dtype != torch.float32:
        raise ValueError(f"param_dtype {param_dtype} needs a mesh (one of a single rank will do)")
    blocks = [block for block in model.blocks if isinstance(block, Block)]
    if compile:
        for block in blocks:
            block.compile()  # in place: parameter names stay as they are
    if mesh is None:
        return model
    # Inputs are not cast: the residual stream has param_dtype from the embedding on, and the rotary tables
    # must stay float32.
    policy = MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard_after_forward)
    # The root's own group (embedding, last norm, output) is the first the backward needs: keep it gathered.
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    return model


def loss_scale(world_size: int, global_tokens: int) -> float:
    """What to multiply a rank's summed loss by before `backward`.

    The gradient wanted is that of the summed loss over `global_tokens`, the valid targets of all ranks and
    micro-batches of the step. FSDP divides by `world_size` on its own, hence the factor.
    """
    return world_size / global_tokens
