"""How a model is spread over ranks, as data: no process group and no GPU is needed to make it, print it or test it.

Ranks form a grid (replicas, shards, tensor), the last counted fastest, so that the ranks of a tensor-parallel group are
neighbours on one node:
- tensor: the products of a block are cut by heads and by feed-forward channels (Shoeybi et al. 2019), embedding, output
  matrix and loss by words; between them the residual stream is cut by positions (sequence parallel: Korthikanti et al.
  2022). Norms are whole on each of these ranks, and work on its own positions.
- shards: FSDP (ZeRO 3) cuts the rows of what tensor parallelism left, and gathers one unit, a block, while it is used.
- replicas: of the grid of the other two; between them only gradients are summed (HSDP).
Each (replica, shard) has data of its own; the ranks of a tensor-parallel group share theirs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import nn  # a plan of memory needs no torch

MASTER_BYTES = 4  # weights, gradients and moments at rest are float32
ROOT = ""  # the unit of what stands outside the blocks
# Which dimension of a weight (outputs, inputs) tensor parallelism cuts.
_TENSOR_CUTS = {"wq": 0, "wk": 0, "wv": 0, "w_gate": 0, "w_up": 0, "wo": 1, "w_down": 1, "embedding": 0, "output": 0}
Style = Literal["columns", "rows", "gathers", "sequence", "embedding", "words"]


@dataclass(frozen=True)
class Layout:
    """The grid of ranks."""

    replicas: int = 1
    shards: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        for name in ("replicas", "shards", "tensor"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")

    @classmethod
    def of(cls, world: int, *, replicas: int = 1, tensor: int = 1) -> Layout:
        """`world` ranks; ValueError where replicas x tensor does not divide them."""
        if world % (replicas * tensor):
            raise ValueError(f"{world} ranks do not divide into {replicas} replicas of tensor parallel {tensor}")
        return cls(replicas, world // (replicas * tensor), tensor)

    @property
    def world(self) -> int:
        return self.replicas * self.shards * self.tensor

    @property
    def data_ranks(self) -> int:
        """How many parts a batch divides into."""
        return self.replicas * self.shards

    def data_rank(self, rank: int) -> int:
        """Which part of the batch is `rank`'s; the ranks of a tensor-parallel group have the same."""
        return rank // self.tensor


@dataclass(frozen=True)
class Placed:
    """One parameter: its place in the grid. `tensor_cut`: the dimension cut by tensor parallelism, None where whole."""

    name: str
    shape: tuple[int, ...]
    unit: str
    tensor_cut: int | None
    layout: Layout

    @property
    def gathered_shape(self) -> tuple[int, ...]:
        """What a rank computes with, while its unit is gathered; the last ranks may have fewer words."""
        return tuple(
            -(-size // self.layout.tensor) if dim == self.tensor_cut else size for dim, size in enumerate(self.shape)
        )

    @property
    def rank_shape(self) -> tuple[int, ...]:
        """The largest piece at rest: FSDP cuts rows, in pieces of equal size but for the last ones."""
        rows, *rest = self.gathered_shape
        return (-(-rows // self.layout.shards), *rest)

    @property
    def bytes_per_rank(self) -> int:
        """Bytes of the float32 weight alone at rest, on the rank that has most; its gradient takes as many."""
        return MASTER_BYTES * prod(self.rank_shape)

    @property
    def copies(self) -> int:
        """How many ranks hold each element."""
        return self.layout.replicas * (self.layout.tensor if self.tensor_cut is None else 1)

    @property
    def placement(self) -> str:
        """In words, from the outermost dimension of the grid."""
        layout = self.layout
        words = [f"{layout.replicas} replicas"] if layout.replicas > 1 else []
        words += [f"rows / {layout.shards}"]
        if layout.tensor > 1:
            outputs = "words" if self.unit == ROOT else "outputs"
            cut = {None: "whole", 0: outputs, 1: "inputs"}[self.tensor_cut]
            words += [f"{cut} on tensor {layout.tensor}" if cut == "whole" else f"{cut} / tensor {layout.tensor}"]
        return ", ".join(words)


@dataclass(frozen=True)
class ShardingPlan:
    """What `model.parallelize` does, in the order in which it does it.

    styles: (module, how tensor parallelism treats it). units: modules that FSDP gathers as one, in the order of the
    forward, the root last. prefetch: how many units are gathered ahead, in forward and backward.
    """

    layout: Layout
    parameters: tuple[Placed, ...]
    styles: tuple[tuple[str, Style], ...]
    units: tuple[str, ...]
    prefetch: int

    @property
    def bytes_per_rank(self) -> int:
        """Bytes of the weights at rest on one rank, at most."""
        return sum(each.bytes_per_rank for each in self.parameters)

    def gathered_bytes(self, unit: str, itemsize: int) -> int:
        """Bytes of a unit's weights while it is gathered, in a dtype of `itemsize` bytes."""
        return itemsize * sum(prod(each.gathered_shape) for each in self.parameters if each.unit == unit)

    def ahead(self, unit: str) -> tuple[str, ...]:
        """The units that are gathered while `unit` computes its forward; the backward goes the other way."""
        blocks = [name for name in self.units if name != ROOT]
        at = -1 if unit == ROOT else blocks.index(unit)
        return tuple(blocks[at + 1 : at + 1 + self.prefetch])

    def behind(self, unit: str) -> tuple[str, ...]:
        """The units that are gathered while `unit` computes its backward."""
        blocks = [name for name in self.units if name != ROOT]
        at = len(blocks) if unit == ROOT else blocks.index(unit)
        return tuple(reversed(blocks[max(0, at - self.prefetch) : at]))

    def table(self) -> str:
        """One line for each parameter, equal blocks together, and the sum: module, shape, placement, bytes per rank."""
        rows = Counter(
            (_without_number(each), " x ".join(map(str, each.shape)), each.placement, each.bytes_per_rank)
            for each in self.parameters
        )
        lines = [("parameter", "times", "shape", "placement", "bytes per rank, each")]
        lines += [
            (name, str(times), shape, placement, f"{size:,}") for (name, shape, placement, size), times in rows.items()
        ]
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        text = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        ]
        layout = self.layout
        grid = f"{layout.world} ranks: {layout.replicas} replicas x {layout.shards} shards x {layout.tensor} tensor"
        ahead = f"{self.prefetch} gathered ahead"
        return "\n".join([grid, *text, f"weights at rest: {self.bytes_per_rank:,} bytes per rank; {ahead}", ""])


def sharding_plan(model: nn.Module, layout: Layout, prefetch: int = 1) -> ShardingPlan:
    """The plan of a `Llama`, on meta or anywhere; ValueError where tensor parallelism would cut a head or a channel."""
    parameters = []
    for name, parameter in model.named_parameters():
        unit = ".".join(name.split(".")[:2]) if name.startswith("blocks.") else ROOT
        cut = _TENSOR_CUTS.get(name.split(".")[-2]) if layout.tensor > 1 else None
        parameters.append(Placed(name, tuple(parameter.shape), unit, cut, layout))
    blocks = tuple(dict.fromkeys(each.unit for each in parameters if each.unit != ROOT))
    if layout.tensor > 1:
        _check_cuts(model, layout)
    styles = tuple(_styles(blocks)) if layout.tensor > 1 else ()
    return ShardingPlan(layout, tuple(parameters), styles, (*blocks, ROOT), prefetch)


def _styles(blocks: tuple[str, ...]) -> list[tuple[str, Style]]:
    styles: list[tuple[str, Style]] = [("embedding", "embedding")]
    for block in blocks:
        styles += [(f"{block}.attention_norm", "sequence"), (f"{block}.attention", "gathers")]
        styles += [(f"{block}.attention.{name}", "columns") for name in ("wq", "wk", "wv")]
        styles += [(f"{block}.attention.wo", "rows"), (f"{block}.ffn_norm", "sequence"), (f"{block}.ffn", "gathers")]
        styles += [(f"{block}.ffn.{name}", "columns") for name in ("w_gate", "w_up")]
        styles += [(f"{block}.ffn.w_down", "rows")]
    return [*styles, ("norm", "sequence"), ("output", "words"), ("head", "words")]


def _check_cuts(model: nn.Module, layout: Layout) -> None:
    config: Any = getattr(model, "config", None)
    for knob in ("n_heads", "n_kv_heads", "ffn_hidden", "sequence_length"):
        size = getattr(config, knob)
        if size % layout.tensor:
            raise ValueError(f"tensor_parallel {layout.tensor} does not divide {knob} {size}")
    if why := uneven_words(config.vocab_size, layout.tensor, layout.shards):
        raise ValueError(why)


def uneven_words(vocab_size: int, tensor: int, shards: int) -> str | None:
    """Why tensor parallelism cannot cut the vocabulary; None where it can.

    Uneven parts go with at most two shards: of more, PyTorch's checkpoints do not know where a shard of an uneven part
    lies (its placements describe equal parts), and refuse to be written.
    """
    most = -(-vocab_size // tensor)
    if most * (tensor - 1) >= vocab_size:
        return f"tensor_parallel {tensor} leaves a rank without words of vocab_size {vocab_size}"
    if shards > 2 and vocab_size % tensor:
        return (
            f"tensor_parallel {tensor} over {shards} shards does not divide vocab_size {vocab_size}; rows without a "
            f"piece do no harm: model.vocab_size {most * tensor}"
        )
    return None


def _without_number(placed: Placed) -> str:
    return placed.name if placed.unit == ROOT else placed.name.replace(placed.unit, "blocks.*", 1)
