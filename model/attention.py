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

from model import native
from model.cache import LayerCache
from model.config import LlamaConfig
from model.kernels import rotate
from model.kernels_attention import causal_attention, takes
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
        cache: LayerCache | None = None,
        mask: Mask = None,
    ) -> torch.Tensor:
        # -1: under tensor parallelism a rank has some of the heads.
        heads = (*x_BLE.shape[:2], -1, self.head_dim)
        q_BLHD = rotate(self.wq(x_BLE).view(heads), cos, sin)
        k_BLKD = rotate(self.wk(x_BLE).view(heads), cos, sin)
        v_BLKD = self.wv(x_BLE).view(heads)
        if cache is not None:
            k_BLKD, v_BLKD = cache.store(k_BLKD, v_BLKD)
        q_BHLD, k_BKLD, v_BKLD = q_BLHD.transpose(1, 2), k_BLKD.transpose(1, 2), v_BLKD.transpose(1, 2)
        if cache is None or cache.reads_prompts:
            out_BHLD = attend(q_BHLD, k_BKLD, v_BKLD, mask)
        else:
            assert mask is None or isinstance(mask, torch.Tensor)
            out_BHLD = attend_next(q_BHLD, k_BKLD, v_BKLD, mask)
        return self.wo(out_BHLD.transpose(1, 2).flatten(2))


def attend(q_BHLD: torch.Tensor, k_BKLD: torch.Tensor, v_BKLD: torch.Tensor, mask: Mask = None) -> torch.Tensor:
    """Causal attention, (B, H, L, D); query heads share key/value heads where K < H.

    mask: None for whole sequences. For packed documents what `model.packing` made, which says both what is causal and
    what is of the same document: an additive (B, 1, L, L), a BlockMask of FlexAttention, or a Varlen.
    """
    if mask is None and takes(q_BHLD, k_BKLD):
        return causal_attention(q_BHLD, k_BKLD, v_BKLD)
    groups = q_BHLD.shape[1] // k_BKLD.shape[1]
    if groups > 1 and not isinstance(mask, Varlen) and repeats(q_BHLD.device.type, q_BHLD.dtype):
        k_BKLD, v_BKLD = k_BKLD.repeat_interleave(groups, dim=1), v_BKLD.repeat_interleave(groups, dim=1)
    grouped = k_BKLD.shape[1] < q_BHLD.shape[1]
    if mask is None:
        return F.scaled_dot_product_attention(q_BHLD, k_BKLD, v_BKLD, is_causal=q_BHLD.shape[2] > 1, enable_gqa=grouped)
    if isinstance(mask, torch.Tensor):
        return F.scaled_dot_product_attention(q_BHLD, k_BKLD, v_BKLD, attn_mask=mask, enable_gqa=grouped)
    if isinstance(mask, Varlen):
        return _attend_varlen(q_BHLD, k_BKLD, v_BKLD, mask)
    return _attend_flex(q_BHLD, k_BKLD, v_BKLD, mask)


def repeats(device_type: str, dtype: torch.dtype) -> bool:
    """Whether shared key/value heads are repeated for all query heads: on a GPU the one kernel that computes in float32
    without writing the whole matrix of scores ("efficient") cannot share them."""
    return device_type == "cuda" and dtype == torch.float32


def attend_next(
    q_BH1D: torch.Tensor, k_BKSD: torch.Tensor, v_BKSD: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """Attention of one new position of each row to those that are cached, (B, H, 1, D). mask: additive, (B, 1, 1, S).

    The query heads of a key/value head take the place of positions: they see the same, so that every kernel can
    compute grouped queries, and reads keys and values once for all of them.
    """
    q_BKGD = q_BH1D.view(*k_BKSD.shape[:2], -1, q_BH1D.shape[-1])
    return F.scaled_dot_product_attention(q_BKGD, k_BKSD, v_BKSD, attn_mask=mask).reshape(q_BH1D.shape)


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
    config: LlamaConfig,
    batch: int,
    mask: Mask,
    wanted: Backend,
    like: torch.Tensor,
    tensor_parallel: int = 1,
    compiled: bool = False,
) -> str:
    """What `attend` runs for training on `batch` sequences, in words for the run: PyTorch is asked, not guessed.

    mask: one of the run's own. like: a tensor of the device and dtype that compute. compiled: blocks are, by
    torch.compile, within which `takes` always says no.
    """
    if isinstance(mask, Varlen):
        return "varlen (flash)"
    if mask is not None and not isinstance(mask, torch.Tensor):
        return "flex"
    heads = [n // tensor_parallel for n in (config.n_heads, config.n_kv_heads)]
    if repeats(like.device.type, like.dtype):
        heads[1] = heads[0]
    # Strided as `Attention` makes them; of `requires_grad` depends which back ends can.
    q, k = (
        like.new_empty(batch, config.sequence_length, n, config.head_dim).transpose(1, 2).requires_grad_()
        for n in heads
    )
    with sdpa_backends(wanted, like.device), torch.enable_grad():
        if mask is None and not compiled and takes(q, k):
            return "compiled for this processor"
        choice = torch._fused_sdp_choice(
            q, k, k, attn_mask=mask, is_causal=mask is None, enable_gqa=heads[0] != heads[1]
        )
    names = {backend.value: name for name, backend in SDPA.items()}
    name = names.get(choice, f"SDPBackend {choice}")
    if mask is not None:
        return f"{name} with a mask"
    why = native.missing() if like.device.type == "cpu" and wanted == "auto" and not compiled else ""
    return f"{name} ({why})" if why else name
