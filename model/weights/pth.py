"""torch's .pth files: read without running what is in them, written one tensor at a time.

A .pth file is a zip archive without compression: a pickle that says how to build the tensors, and a record of
bytes for each storage. `torch.save` wants all tensors in memory at once; here the pickle is made from shapes
alone, and each record is written as its tensor comes.
"""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from model.weights.tensors import TensorInfo, as_bytes

_STORAGES = {
    torch.float64: torch.DoubleStorage,
    torch.float32: torch.FloatStorage,
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
}
# Torch's unpickler trips over a broken pickle in many ways.
_UNREADABLE = (
    pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError, AssertionError,
    struct.error,
)  # fmt: skip
_ROOT = "archive"
_ALIGNMENT = 64  # of a record, as torch has it, so that it can be mapped into memory
_LOCAL_HEADER, _ZIP64_FIELD, _FIELD_HEADER = 30, 20, 4


def load_pth(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file, mapped and not read. ValueError where it is not a plain dict of tensors.

    Only tensors and containers are unpickled: a file that would call anything else is refused, uncalled.
    """
    if not _is_archive(path):
        raise ValueError(
            f"{path}: cut short, or not a .pth file of torch 1.6 or later (a zip archive): older ones cannot be read "
            "piece by piece; load and save it once with torch"
        )
    try:
        found: Any = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except _UNREADABLE as error:
        said = _first(error)
        if not _is_whole(path):
            raise ValueError(f"{path}: cut short or damaged: its list of tensors cannot be read to its end") from error
        if "GLOBAL" in said:
            raise ValueError(f"{path}: refused: it holds more than tensors and could run code ({said})") from error
        raise ValueError(f"{path}: not a .pth file that torch can read: {said}") from error
    if not isinstance(found, Mapping) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise ValueError(f"{path}: expected a dict of names and tensors, and nothing else")
    for name, tensor in found.items():
        if tensor.dtype not in _STORAGES:
            raise ValueError(
                f"{path}: {name} has dtype {str(tensor.dtype).removeprefix('torch.')}: "
                "quantised and integer weights cannot be imported"
            )
        if tensor.layout != torch.strided or tensor.is_meta:
            raise ValueError(
                f"{path}: {name} is {str(tensor.layout).removeprefix('torch.')}, on device {tensor.device}: only dense "
                "tensors whose values are in the file can be imported"
            )
    return {str(name): tensor.detach() for name, tensor in found.items()}


def _is_archive(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # of one whose end has some sense and is wrong
        return False


def _is_whole(path: Path) -> bool:
    """Whether the pickle is as it was written, bytes and all: of one that is not, what it would call means nothing."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            return all(True for _ in pickletools.genops(archive.read(name)))  # looks, and builds nothing
    except (StopIteration, ValueError, EOFError, OSError, NotImplementedError, zipfile.BadZipFile):
        return False


def _first(error: BaseException) -> str:
    """What torch says of the cause, without its advice to trust the file."""
    said = str(error).rpartition("WeightsUnpickler error:")[2]
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    named = next((line for line in lines if "GLOBAL" in line), None)
    return (named or (lines[0] if lines else type(error).__name__)).split(". ")[0]


class PthWriter:
    """Writes a dict of tensors whose shapes are known before their values. Use as a context.

    `aliases` (new name -> name in `tensors`) are further names of the same memory, as tied weights have.
    """

    def __init__(self, path: Path, tensors: Mapping[str, TensorInfo], aliases: Mapping[str, str] | None = None) -> None:
        self._infos = dict(tensors)
        self._keys = {name: str(number) for number, name in enumerate(tensors)}
        self._file = path.open("wb")
        self._zip = zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED, allowZip64=True)
        self._record("data.pkl", memoryview(self._pickle(aliases or {})))
        self._record("byteorder", memoryview(b"little"))

    def __enter__(self) -> PthWriter:
        return self

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """The values of `name`; each name once, in any order."""
        tensor = tensor.contiguous()
        assert TensorInfo(tuple(tensor.shape), tensor.dtype) == self._infos.pop(name), name
        self._record(f"data/{self._keys[name]}", as_bytes(tensor))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                assert not self._infos, f"never written: {', '.join(self._infos)}"
                self._record("version", memoryview(b"3\n"))
                self._zip.close()
                self._file.flush()
                os.fsync(self._file.fileno())
        finally:
            with suppress(OSError):  # of a full disk, which is being told already
                self._zip.close()
            self._file.close()

    def _record(self, name: str, data: memoryview) -> None:
        info = zipfile.ZipInfo(f"{_ROOT}/{name}")
        begin = self._file.tell() + _LOCAL_HEADER + len(info.filename) + _ZIP64_FIELD + _FIELD_HEADER
        padding = -begin % _ALIGNMENT
        info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
        with self._zip.open(info, "w", force_zip64=True) as record:
            record.write(data)

    def _pickle(self, aliases: Mapping[str, str]) -> bytes:
        out = io.BytesIO()
        storages = {name: _Storage(key, self._infos[name]) for name, key in self._keys.items()}
        tensors = {name: _Tensor(storage) for name, storage in storages.items()}
        _Pickler(out, protocol=2).dump(tensors | {new: _Tensor(storages[name]) for new, name in aliases.items()})
        return out.getvalue()


class _Storage:
    def __init__(self, key: str, info: TensorInfo) -> None:
        self.key, self.info = key, info


class _Tensor:
    def __init__(self, storage: _Storage) -> None:
        self.storage = storage


class _Pickler(pickle.Pickler):
    """Writes a `_Tensor` as torch writes a tensor (torch.serialization._save)."""

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, _Storage):
            return None
        return "storage", _STORAGES[value.info.dtype], value.key, "cpu", _numel(value.info)

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, _Tensor):
            return NotImplemented
        shape = value.storage.info.shape
        stride = tuple(_numel(TensorInfo(shape[axis + 1 :], value.storage.info.dtype)) for axis in range(len(shape)))
        return torch._utils._rebuild_tensor_v2, (value.storage, 0, shape, stride, False, OrderedDict())


def _numel(info: TensorInfo) -> int:
    return info.nbytes // info.dtype.itemsize
