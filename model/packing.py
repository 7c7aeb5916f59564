"""Sequences packed from several documents: no token attends across them, and each begins at position 0.

Made once for a micro-batch and used by every layer. The tokens are looked at on the CPU, where the data come from:
asking a GPU where documents begin would make it wait.
Shapes: B batch, L positions, N documents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from model.attention import Backend, Mask, Varlen

Form = Literal["mask", "flex", "varlen"]
_HALF = (torch.bfloat16, torch.float16)
_AMPERE = (8, 0)  # compute capability of the first GPUs that PyTorch's flash attention runs on


@dataclass(frozen=True)
class Packing:
    """Where each token stands in its document, and the mask of all documents in the form that attention takes."""

    positions_BL: torch.Tensor
    mask: Mask


def form_of(wanted: Backend, device: torch.device, dtype: torch.dtype) -> Form:
    """How `Packing` says what may attend to what: which kernels can train there.

    varlen is flash attention, which does no work for what is masked, and needs no compiler; it knows half precision
    only, from Ampere on. FlexAttention skips what is masked by blocks. Neither trains on the CPU: there a mask is added
    to the scores.
    """
    if wanted in ("flex", "varlen"):
        if device.type != "cuda":
            raise ValueError(f"attention {wanted} trains on a GPU only; on the CPU leave it on auto")
        if wanted == "varlen" and dtype not in _HALF:
            raise ValueError(f"attention varlen computes in bfloat16, not {dtype}")
        return "flex" if wanted == "flex" else "varlen"
    if wanted in ("flash", "cudnn") and device.type == "cuda":
        raise ValueError(f"attention {wanted} takes no document mask; use auto, varlen, flex, efficient or math")
    if device.type != "cuda" or wanted != "auto":
        return "mask"
    return "varlen" if dtype in _HALF and torch.cuda.get_device_capability(device) >= _AMPERE else "flex"


def pack(tokens_BL: torch.Tensor, first_id: int, form: Form, device: torch.device, dtype: torch.dtype) -> Packing:
    """The packing of `tokens_BL` (on the CPU), whose documents each begin with `first_id` (bos).

    Where bos is eos too, one lies between two documents: the target of the last token of one, and first of the other.
    A sequence may begin and end within a document; what it has of that counts as one. dtype: what attention computes
    in, for the additive mask of `form` "mask", (B, 1, L, L).
    """
    batch, length = tokens_BL.shape
    begins_BL = tokens_BL == first_id
    begins_BL[:, 0] = True
    place_L = torch.arange(length)
    positions_BL = place_L - torch.where(begins_BL, place_L, 0).cummax(dim=1).values
    number_BL = begins_BL.cumsum(1)
    mask: Mask
    if form == "varlen":
        starts = torch.cat([begins_BL.flatten().nonzero().squeeze(1), torch.tensor([batch * length])])
        # The longest that there can be: the true one would be another number in each batch, to compile for anew.
        mask = Varlen(starts.to(torch.int32).to(device, non_blocking=True), length)
    elif form == "flex":
        mask = _block_mask(number_BL.to(device, non_blocking=True))
    else:
        number_BL = number_BL.to(device)
        seen_BLL = (number_BL[:, :, None] == number_BL[:, None, :]).tril_()
        # Numbers and not booleans, which every layer would turn into numbers of its own.
        mask = torch.zeros((batch, 1, length, length), dtype=dtype, device=device)
        mask.masked_fill_(~seen_BLL[:, None], float("-inf"))
    return Packing(positions_BL.to(device, non_blocking=True), mask)


def _block_mask(number_BL: torch.Tensor) -> Mask:
    from torch.nn.attention.flex_attention import create_block_mask

    def seen(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (q >= k) & (number_BL[b, q] == number_BL[b, k])

    batch, length = number_BL.shape
    return create_block_mask(seen, batch, None, length, length, device=number_BL.device)
