"""A folder in the layout of Meta's releases: params.json and consolidated.NN.pth, one for each model-parallel rank.

Column-parallel weights are split by rows over the files, row-parallel ones by columns; norm weights stand in
each. Of the embedding, files have columns in LLaMA 1 and 2 and rows in Llama 3; the code of each reads no other.
Meta's rotary embedding pairs channel 2i with 2i + 1, ours i with i + D/2: the rows of wq and wk of each head are in
another order. D: channels of one head.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from model.config import LlamaConfig
from model.weights.meta_config import PARAMS, read_params, write_params
from model.weights.names import IGNORED, theirs
from model.weights.pth import PthWriter, load_pth
from model.weights.tensors import (
    Progress,
    Shape,
    TensorInfo,
    WeightSource,
    counted,
    model_shapes,
    require_shapes,
)

PATTERN = "consolidated.*.pth"
OUTPUT, EMBEDDING = "output.weight", "tok_embeddings.weight"
# A mapped file's pages count as ours once they are touched: after so many bytes it is mapped anew.
REMAP_BYTES = 2**30

_BY_ROWS = ("attention.wq", "attention.wk", "attention.wv", "ffn.w_gate", "ffn.w_up", "output")
_BY_COLUMNS = ("attention.wo", "ffn.w_down")
_LLAMA3_THETA = 5e5
_ROTATED = ("attention.wq.weight", "attention.wk.weight")


def half_split(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rows of wq or wk from Meta's order within each head (0, 1, 2, ...) to ours (0, 2, 4, ..., 1, 3, 5, ...)."""
    return weight.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).reshape(weight.shape)


def interleaved(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """The inverse of `half_split`."""
    return weight.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).reshape(weight.shape)


def is_llama3(config: LlamaConfig) -> bool:
    """Whether the code that Meta released with Llama 3 is to read a model, and not that of LLaMA 1, 2 and Code Llama.

    The rotary embedding tells: of all releases those of Llama 3 alone have a theta of 500,000, some of them scaled.
    Other theta means the older code, whatever the tokenizer.
    """
    return config.rope_theta == _LLAMA3_THETA or config.rope_scaling is not None


def _axis(name: str, embedding: int) -> int | None:
    """The axis along which a weight of ours is split over the files; None where each file has it whole.

    embedding: the axis of that one.
    """
    part = name.removesuffix(".weight")
    if part == "embedding":
        return embedding
    return 0 if part.endswith(_BY_ROWS) else 1 if part.endswith(_BY_COLUMNS) else None


class MetaFolder:
    """The weights of a release by Meta. ValueError where files are broken or the model is not LLaMA."""

    def __init__(
        self, path: Path, sequence_length: int | None = None, rope_scaling_factor: float | None = None
    ) -> None:
        self.path = path
        self.special_tokens: dict[str, Any] = {}
        self._paths = _numbered(path)
        self._shards = [load_pth(file) for file in self._paths]
        self._touched = 0
        first = self._shards[0]
        for file, shard in zip(self._paths, self._shards, strict=True):
            if EMBEDDING not in shard or any(name in shard and shard[name].dim() != 2 for name in (EMBEDDING, OUTPUT)):
                raise ValueError(f"{file}: no matrices {EMBEDDING} and {OUTPUT}: not the weights of a LLaMA by Meta")
        tied = all(
            OUTPUT not in shard or shard[OUTPUT].data_ptr() == shard[EMBEDDING].data_ptr() for shard in self._shards
        )
        vocab_by_output = sum(shard[OUTPUT].shape[0] for shard in self._shards if OUTPUT in shard)
        self.config, self.warnings = read_params(
            path / PARAMS, vocab_by_output or first[EMBEDDING].shape[0], tied, sequence_length, rope_scaling_factor
        )
        embedding = 0 if first[EMBEDDING].shape[1] == self.config.dim else 1
        self._axes = {name: _axis(name, embedding) for name in model_shapes(self.config)}
        self._require()
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(shape, first[theirs(name, "meta")].dtype)
            for name, shape in model_shapes(self.config).items()
        }

    def read(self, name: str) -> torch.Tensor:
        if self._touched > REMAP_BYTES:
            self._shards = []  # the old ones first: two mappings are twice the pages
            self._shards = [load_pth(file) for file in self._paths]
            self._touched = 0
        self._touched += self.tensors[name].nbytes
        parts = [shard[theirs(name, "meta")] for shard in self._shards]
        axis = self._axes[name]
        whole = parts[0] if axis is None or len(parts) == 1 else torch.cat(parts, dim=axis)
        if name.endswith(_ROTATED):
            whole = half_split(whole, self.config.head_dim)
        # A copy in any case: what is mapped must not outlive the mapping.
        return whole.clone(memory_format=torch.contiguous_format) if whole is parts[0] else whole.contiguous()

    def _require(self) -> None:
        names = {theirs(name, "meta"): name for name in self._axes}
        found: dict[str, Shape] = {}
        uneven = []
        for meta_name, name in names.items():
            shapes = [tuple(shard[meta_name].shape) for shard in self._shards if meta_name in shard]
            if len(shapes) != len(self._shards):
                continue
            axis = self._axes[name]
            same = {shape if axis is None else shape[:axis] + shape[axis + 1 :] for shape in shapes}
            dtypes = {shard[meta_name].dtype for shard in self._shards}
            if len(same) > 1 or len(dtypes) > 1 or any(len(shape) != len(shapes[0]) for shape in shapes):
                uneven.append(meta_name)
                continue
            whole = list(shapes[0])
            if axis is not None and axis < len(whole):
                whole[axis] = sum(shape[axis] for shape in shapes)
            found[meta_name] = tuple(whole)
        if uneven:
            raise ValueError(f"{self.path}: the files do not fit together in {', '.join(uneven)}")
        everywhere = set().union(*self._shards)
        tied_twice = {OUTPUT} if self.config.tie_embeddings else set()
        shapes_wanted = model_shapes(self.config)
        require_shapes(
            self.path,
            {meta_name: shapes_wanted[name] for meta_name, name in names.items()},
            found,
            sorted(name for name in everywhere - names.keys() - tied_twice if not IGNORED.fullmatch(name)),
        )


def _numbered(path: Path) -> list[Path]:
    found = sorted(path.glob(PATTERN))
    expected = [f"consolidated.{number:02d}.pth" for number in range(len(found))]
    gone = sorted(set(expected) - {file.name for file in found})
    if not found or gone:
        raise ValueError(f"{path}: {gone[0] if gone else 'consolidated.00.pth'} is missing")
    return found


def write_meta(folder: Path, source: WeightSource, shards: int, progress: Progress) -> None:
    """Write params.json and `shards` files into an empty folder. ValueError where they cannot share the model.

    Of several files each has rows of the embedding where the model `is_llama3`, columns of it otherwise.
    """
    config = source.config
    odd = [
        f"{key} ({value})"
        for key, value in (
            ("n_heads", config.n_heads),
            ("n_kv_heads", config.n_kv_heads),
            ("ffn_hidden", config.ffn_hidden),
            ("vocab_size", config.vocab_size),
        )
        if value % shards
    ]
    if odd:
        raise ValueError(f"{shards} files cannot share the model equally: {', '.join(odd)}; choose another --shards")
    write_params(folder, config)
    axes = {name: _axis(name, 0 if is_llama3(config) else 1) for name in source.tensors}
    infos = {theirs(name, "meta"): _part(info, axes[name], shards) for name, info in source.tensors.items()}
    # Meta's code always asks for `output`: where it is the embedding, it is a second name of the same memory, and
    # where the embedding is split the other way, a matrix of its own.
    apart = config.tie_embeddings and shards > 1 and axes["embedding.weight"] != 0
    aliases = {OUTPUT: EMBEDDING} if config.tie_embeddings and not apart else {}
    if apart:
        infos[OUTPUT] = _part(source.tensors["embedding.weight"], 0, shards)
    read = counted(source.read, source.tensors, progress)
    with ExitStack() as stack:
        files = [
            stack.enter_context(PthWriter(folder / f"consolidated.{number:02d}.pth", infos, aliases))
            for number in range(shards)
        ]
        for name in source.tensors:
            tensor = read(name)
            if name.endswith(_ROTATED):
                tensor = interleaved(tensor, config.head_dim)
            for file, part in zip(files, _parts(tensor, axes[name], shards), strict=True):
                file.write(theirs(name, "meta"), part)
            if apart and name == "embedding.weight":
                for file, part in zip(files, _parts(tensor, 0, shards), strict=True):
                    file.write(OUTPUT, part)


def _part(info: TensorInfo, axis: int | None, shards: int) -> TensorInfo:
    shape = tuple(size // shards if at == axis else size for at, size in enumerate(info.shape))
    return TensorInfo(shape, info.dtype)


def _parts(tensor: torch.Tensor, axis: int | None, shards: int) -> list[torch.Tensor]:
    return [tensor] * shards if axis is None else list(tensor.chunk(shards, dim=axis))
