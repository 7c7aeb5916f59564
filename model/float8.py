"""Products in float8, by torchao (an optional extra: `pip install hoofprint[float8]`)."""

from __future__ import annotations

import torch
from torch import nn

from model.transformer import Llama

_FROM = (8, 9)  # compute capability of the first GPUs that multiply float8: Ada and Hopper
_MULTIPLE = 16  # of both sizes of a weight: what those products take


def to_float8(model: Llama, *, emulate: bool = False) -> Llama:
    """Have the linear layers of all blocks multiply in float8, scaled by tensor as they go; in place, and before
    `parallelize`. Names and dtypes of the weights stay: inputs, weights and gradients are rounded for the product.

    Embedding and output stay as they are: the loss is computed with the output projection, and the first and last
    layers bear rounding least. emulate: the same rounding on hardware without float8, slowly, for tests.
    ValueError where torchao is missing, the GPU has no float8, or a size does not fit.
    """
    # What cannot be mended first: nobody should install something for hardware that cannot use it.
    if not emulate and (not torch.cuda.is_available() or torch.cuda.get_device_capability() < _FROM):
        raise ValueError("float8 needs a GPU of compute capability 8.9 or above (Ada, Hopper or later)")
    for name, module in model.blocks.named_modules():
        if isinstance(module, nn.Linear) and (module.in_features % _MULTIPLE or module.out_features % _MULTIPLE):
            sizes = f"{module.in_features} x {module.out_features}"
            raise ValueError(f"float8 needs sizes that are multiples of {_MULTIPLE}; blocks.{name} is {sizes}")
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError as error:
        raise ValueError("float8 needs torchao: pip install 'hoofprint[float8]'") from error
    convert_to_float8_training(model.blocks, config=Float8LinearConfig(emulate=emulate))
    return model
