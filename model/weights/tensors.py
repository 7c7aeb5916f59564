"""What readers and writers of weights have in common: a source of tensors, and what a model must consist of."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from model.config import LlamaConfig
from model.transformer import Llama

DTYPES = {"keep": None, "bf16": torch.bfloat16, "fp32": torch.float32}
Shape = tuple[int, ...]
Progress = Callable[[int, int, str], None]  # bytes done, bytes in all, name of the tensor at hand


@dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype of a tensor that has not been read."""

    shape: Shape
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class WeightSource(Protocol):
    """The weights of one model, under the names of `Llama.named_parameters` and in its layout."""

    @property
    def config(self) -> LlamaConfig: ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    def read(self, name: str) -> torch.Tensor:
        """A contiguous tensor on the CPU that belongs to the caller; nothing of it is kept here."""
        ...


class Cast:
    """A source whose tensors are turned into one dtype as they are read."""

    def __init__(self, source: WeightSource, dtype: torch.dtype) -> None:
        self._source, self._dtype = source, dtype
        self.config = source.config
        self.tensors = {name: TensorInfo(info.shape, dtype) for name, info in source.tensors.items()}

    def read(self, name: str) -> torch.Tensor:
        return self._source.read(name).to(self._dtype)


def as_dtype(source: WeightSource, choice: str) -> WeightSource:
    """The source in the dtype of `choice`, a key of DTYPES."""
    dtype = DTYPES[choice]
    return source if dtype is None else Cast(source, dtype)


def rounds(source: WeightSource, choice: str) -> bool:
    """Whether `as_dtype` would change values: not when every value of the old dtype is one of the new."""
    dtype = DTYPES[choice]
    return dtype is not None and any(
        torch.promote_types(info.dtype, dtype) != dtype for info in source.tensors.values()
    )


def total_bytes(tensors: Mapping[str, TensorInfo]) -> int:
    return sum(info.nbytes for info in tensors.values())


def main_dtype(tensors: Mapping[str, TensorInfo]) -> torch.dtype:
    """The dtype that most bytes of the model have."""
    found: Counter[torch.dtype] = Counter()
    for info in tensors.values():
        found[info.dtype] += info.nbytes
    return found.most_common(1)[0][0]


def model_shapes(config: LlamaConfig) -> dict[str, Shape]:
    """The shape of every weight of a `Llama`, in its order."""
    with torch.device("meta"):
        model = Llama(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def require_shapes(
    where: object, expected: Mapping[str, Shape], found: Mapping[str, Shape], extra: Iterable[str]
) -> None:
    """ValueError that names every tensor that is missing, not LLaMA's (`extra`), or of another shape than expected."""
    faults = [f"missing: {name} {_said(shape)}" for name, shape in expected.items() if name not in found]
    faults += [f"not part of this model: {name}" for name in extra]
    faults += [
        f"of another shape: {name} is {_said(found[name])}, expected {_said(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if faults:
        lines = "\n  ".join(faults)
        tensors = "1 tensor is" if len(faults) == 1 else f"{len(faults)} tensors are"
        raise ValueError(f"{where}: {tensors} not what the model's configuration says\n  {lines}")


def counted(
    read: Callable[[str], torch.Tensor], infos: Mapping[str, TensorInfo], progress: Progress
) -> Callable[[str], torch.Tensor]:
    """`read`, which tells `progress` how far it has come."""
    whole, done = total_bytes(infos), 0

    def told(name: str) -> torch.Tensor:
        nonlocal done
        progress(done, whole, name)
        tensor = read(name)
        done += infos[name].nbytes
        return tensor

    return told


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU, to read from or into."""
    assert tensor.is_contiguous() and tensor.device.type == "cpu"
    return tensor.detach().view(-1).view(torch.uint8).numpy().data


def _said(shape: Shape) -> str:
    return "x".join(map(str, shape))
