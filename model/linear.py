"""A linear layer without bias, as all of LLaMA's are."""

from __future__ import annotations

import torch
from torch import nn

from model.kernels import linear


class Linear(nn.Linear):
    """nn.Linear by `kernels.linear`: to all that looks at types (initialisation, tensor parallelism) it is one."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight.to(x.dtype))  # FSDP has cast it already; a single rank's weights are masters
