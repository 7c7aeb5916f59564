"""One safetensors file, read and written tensor by tensor.

The format: 8 bytes, the length of the header (little-endian); the header, JSON: name -> dtype, shape and
[begin, end) in what follows, plus strings under `__metadata__`; the tensors, without gaps. Written here because
the `safetensors` library saves a file from tensors that all stand in memory.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from model.weights.tensors import Shape, TensorInfo, as_bytes

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_MAX_HEADER = 100_000_000  # the library's own limit
_ALIGNMENT = 8
_Entry = tuple[int, int, str, str, Shape]  # of a tensor: begin and end of its bytes, name, dtype, shape


class SafetensorsFile:
    """The tensors of a file. ValueError, with the file, where it is cut short or is no safetensors file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors: dict[str, TensorInfo] = {}
        self._begins: dict[str, int] = {}
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if length < 2 or length > _MAX_HEADER:
                raise ValueError(f"{path}: not a safetensors file (its header would have {length} bytes)")
            if 8 + length > size:
                raise ValueError(f"{path}: cut short: its header has {length} bytes, the whole file {size}")
            text = file.read(length)
        try:
            entries = _entries(text)
        except (ValueError, AttributeError, LookupError, TypeError, RecursionError) as error:
            raise ValueError(f"{path}: not a safetensors file (its header is broken: {error})") from error
        self._lay_out(entries, data_begin=8 + length, size=size)

    def _lay_out(self, entries: Iterable[_Entry], data_begin: int, size: int) -> None:
        end_of_last = 0
        for begin, end, name, dtype, shape in sorted(entries):
            if dtype not in _DTYPES:
                raise ValueError(
                    f"{self.path}: {name} has dtype {dtype}: quantised and integer weights cannot be imported; "
                    f"expected one of {', '.join(_DTYPES)}"
                )
            info = TensorInfo(shape, _DTYPES[dtype])
            if begin != end_of_last or end - begin != info.nbytes or min(shape, default=1) < 1:
                raise ValueError(
                    f"{self.path}: the header is broken: {name} of {math.prod(shape)} {dtype} lies at bytes "
                    f"{begin} to {end}, expected {end_of_last} to {end_of_last + info.nbytes}"
                )
            end_of_last = end
            self.tensors[name], self._begins[name] = info, data_begin + begin
        if data_begin + end_of_last != size:
            what = "cut short" if size < data_begin + end_of_last else "longer than its header says"
            raise ValueError(f"{self.path}: {what}: {data_begin + end_of_last} bytes expected, {size} found")

    def read(self, name: str) -> torch.Tensor:
        """A new tensor with the bytes of `name`."""
        info = self.tensors[name]
        tensor = torch.empty(info.shape, dtype=info.dtype)
        left = as_bytes(tensor)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self._begins[name])
            while left:
                got = file.readinto(left)  # the kernel gives at most 2 GiB at a time
                if not got:
                    raise ValueError(f"{self.path}: cut short while it was read, in {name}")
                left = left[got:]
        return tensor


def _entries(header: bytes) -> list[_Entry]:
    """What a header says of each tensor, by kind and not by sense; an error of any kind where it is none."""
    found: Any = json.loads(header)
    found.pop("__metadata__", None)
    entries = []
    for name, entry in found.items():
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if type(dtype) is not str or any(type(number) is not int for number in (*shape, *offsets)) or len(offsets) != 2:
            raise TypeError(f"{name} is {json.dumps(entry)}")
        entries.append((offsets[0], offsets[1], name, dtype, tuple(shape)))
    return entries


def write_safetensors(
    path: Path, tensors: Mapping[str, TensorInfo], read: Callable[[str], torch.Tensor], metadata: Mapping[str, str]
) -> None:
    """Write `tensors` in their order, asking `read` for each as its turn comes. Durable when it returns."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, info in tensors.items():
        begin, end = end, end + info.nbytes
        header[name] = {"dtype": _CODES[info.dtype], "shape": list(info.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, info in tensors.items():
            tensor = read(name).contiguous()
            assert TensorInfo(tuple(tensor.shape), tensor.dtype) == info, name
            file.write(as_bytes(tensor))
        file.flush()
        os.fsync(file.fileno())
