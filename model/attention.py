"""Causal self-attention with an optional key/value cache, within documents where sequences are packed from several.

All attention goes through `attend`. Which kernel it runs follows from the mask, whose form `model.packing` chooses for
packed documents, and for the rest from the order of back ends that `sdpa_backends` sets by the hardware.
Shapes: B batch, L positions, E dim, H query heads, K key/value heads, D head channels, S cached positions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, Union

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn

from model.config import LlamaConfig
from model.kernels import rotate
from model.linear import Linear

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

Backend = Literal["auto", "flash", "cudnn", "efficient", "math", "flex", "varlen"]
SDPA = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
_VARLEN_IS_GROUPED = "enable_gqa" in inspect.signature(varlen_attn).parameters  # from torch 2.12 on
_HOPPER = (9, 0)  # compute capability from which cuDNN's kernels use what PyTorch's flash-attention 2 cannot


class Varlen(NamedTuple):
    """Documents laid end to end: where each begins, and the end of the last (int32), and the most that one can have."""

    starts: torch.Tensor
    longest: int


Mask: TypeAlias = Union[torch.Tensor, "BlockMask", Varlen, None]


class KVCache:
    """Keys and values of the positions one layer has seen, in buffers allocated once."""

    def __init__(self, batch: int, length: int, config: LlamaConfig, like: torch.Tensor) -> None:
        shape = (batch, config.n_kv_heads, length, config.head_dim)
        self.k_BKSD = like.new_empty(shape)
        self.v_BKSD = like.new_empty(shape)
        self.length = 0

    def append(self, k_BKLD: torch.Tensor, v_BKLD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the new positions and return all positions so far."""
        end = self.length + k_BKLD.shape[2]
        self.k_BKSD[:, :, self.length : end] = k_BKLD
        self.v_BKSD[:, :, self.length : end] = v_BKLD
        self.length = end
        return self.k_BKSD[:, :, :end], self.v_BKSD[:, :, :end]


class Attention(nn.Module):
    """Multi-head attention with rotary positions; grouped-query where n_kv_heads < n_heads."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        kv_dim = config.n_kv_heads * config.head_dim
        self.wq = Linear(config.dim, config.dim)
        self.wk = Linear(config.dim, kv_dim)
        self.wv = Linear(config.dim, kv_dim)
        self.wo = Linear(config.dim, config.dim)

    def forward(
        self,
        x_BLE: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        cache: KVCache | None = None,
        mask: Mask = None,
    ) -> torch.Tensor:
        # -1: under tensor parallelism a rank has some of the heads.
        heads = (*x_BLE.shape[:2], -1, self.head_dim)
        q_BHLD = rotate(self.wq(x_BLE).view(heads), cos, sin).transpose(1, 2)
        k_BKLD = rotate(self.wk(x_BLE).view(heads), cos, sin).transpose(1, 2)
        v_BKLD = self.wv(x_BLE).view(heads).transpose(1, 2)
        if cache is not None:
            # `is_causal` aligns its mask with the first key, so it is right only for a prompt into an empty
            # cache; a single new position sees everything before it and needs no mask.
            assert cache.length == 0 or x_BLE.shape[1] == 1, "after the prompt, feed one position at a time"
            k_BKLD, v_BKLD = cache.append(k_BKLD, v_BKLD)
        out_BHLD = attend(q_BHLD, k_BKLD, v_BKLD, mask)
        return self.wo(out_BHLD.transpose(1, 2).flatten(2))


def attend(q_BHLD: torch.Tensor, k_BKLD: torch.Tensor, v_BKLD: torch.Tensor, mask: Mask = None) -> torch.Tensor:
    """Causal attention, (B, H, L, D); query heads share key/value heads where K < H.

    mask: None for whole sequences. For packed documents what `model.packing` made, which says both what is causal and
    what is of the same document: an additive (B, 1, L, L), a BlockMask of FlexAttention, or a Varlen.
    """
    grouped = k_BKLD.shape[1] < q_BHLD.shape[1]
    if mask is None:
        return F.scaled_dot_product_attention(q_BHLD, k_BKLD, v_BKLD, is_causal=q_BHLD.shape[2] > 1, enable_gqa=grouped)
    if isinstance(mask, torch.Tensor):
        return F.scaled_dot_product_attention(q_BHLD, k_BKLD, v_BKLD, attn_mask=mask, enable_gqa=grouped)
    if isinstance(mask, Varlen):
        return _attend_varlen(q_BHLD, k_BKLD, v_BKLD, mask)
    return _attend_flex(q_BHLD, k_BKLD, v_BKLD, mask)


def _attend_varlen(q_BHLD: torch.Tensor, k_BKLD: torch.Tensor, v_BKLD: torch.Tensor, mask: Varlen) -> torch.Tensor:
    """Flash attention over the batch as one line of documents: no work is done for what is masked."""
    batch, heads = q_BHLD.shape[:2]
    groups = heads // k_BKLD.shape[1]
    options: dict[str, Any] = {}
    if groups > 1 and _VARLEN_IS_GROUPED:
        options["enable_gqa"] = True
    elif groups > 1:
        k_BKLD, v_BKLD = k_BKLD.repeat_interleave(groups, dim=1), v_BKLD.repeat_interleave(groups, dim=1)
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q_BHLD, k_BKLD, v_BKLD))
    ends = (mask.starts, mask.starts, mask.longest, mask.longest)
    out = varlen_attn(q, k, v, *ends, window_size=(-1, 0), **options)  # everything before, nothing after
    assert isinstance(out, torch.Tensor)
    return out.unflatten(0, (batch, -1)).transpose(1, 2)


def _attend_flex(q_BHLD: torch.Tensor, k_BKLD: torch.Tensor, v_BKLD: torch.Tensor, mask: Any) -> torch.Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    # Not compiled, it writes the whole matrix of scores. A block that is compiled itself has it as a part.
    run: Any = flex_attention if torch.compiler.is_compiling() else _compiled(flex_attention)
    return run(q_BHLD, k_BKLD, v_BKLD, block_mask=mask, enable_gqa=k_BKLD.shape[1] < q_BHLD.shape[1])


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=False)


def sdpa_backends(wanted: Backend, device: torch.device) -> AbstractContextManager[Any]:
    """While it is entered, scaled_dot_product_attention takes `wanted` or, on `auto`, the first back end that can.

    A back end that was asked for and cannot is an error of PyTorch's ("No available kernel"), never another one.
    """
    if device.type != "cuda" and wanted in ("cudnn", "efficient"):
        raise ValueError(f"attention {wanted} runs on a GPU only; on the CPU leave it on auto")
    if wanted in SDPA:
        return sdpa_kernel(SDPA[wanted])
    if device.type != "cuda":
        return nullcontext()  # PyTorch's own order there is flash, then math
    hopper = torch.cuda.get_device_capability(device) >= _HOPPER
    order = ("cudnn", "flash", "efficient", "math") if hopper else ("flash", "cudnn", "efficient", "math")
    return sdpa_kernel([SDPA[name] for name in order], set_priority=True)


@torch.no_grad()
def backend_in_use(
    config: LlamaConfig, batch: int, mask: Mask, wanted: Backend, like: torch.Tensor, tensor_parallel: int = 1
) -> str:
    """What `attend` runs for training on `batch` sequences, in words for the run: PyTorch is asked, not guessed.

    mask: one of the run's own. like: a tensor of the device and dtype that compute.
    """
    if isinstance(mask, Varlen):
        return "varlen (flash)"
    if mask is not None and not isinstance(mask, torch.Tensor):
        return "flex"
    heads = [n // tensor_parallel for n in (config.n_heads, config.n_kv_heads)]
    # Strided as `Attention` makes them; of `requires_grad` depends which back ends can.
    q, k = (
        like.new_empty(batch, config.sequence_length, n, config.head_dim).transpose(1, 2).requires_grad_()
        for n in heads
    )
    with sdpa_backends(wanted, like.device), torch.enable_grad():
        choice = torch._fused_sdp_choice(
            q, k, k, attn_mask=mask, is_causal=mask is None, enable_gqa=heads[0] != heads[1]
        )
    names = {backend.value: name for name, backend in SDPA.items()}
    return names.get(choice, f"SDPBackend {choice}") + ("" if mask is None else " with a mask")
