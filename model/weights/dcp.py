"""The weights in a checkpoint of torch.distributed.checkpoint, read and written one tensor at a time.

A checkpoint of a run holds `app.model.NAME` beside the optimiser and the position in the data; one that is written
here holds the weights alone. torch's own `dcp.load` and `dcp.save` want a whole state dict; their planners and
readers, which are the documented way to extend them, do not.
"""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem

from model.config import LlamaConfig
from model.weights.tensors import Progress, TensorInfo, WeightSource, counted, model_shapes, require_shapes

PREFIX = "app.model."


class CheckpointWeights:
    """The weights of a checkpoint, whatever number of ranks wrote it. ValueError where they are not `config`'s."""

    def __init__(self, path: Path, config: LlamaConfig) -> None:
        self.path, self.config = path, config
        self._reader = PlainReader(path)
        self._metadata = self._reader.read_metadata()
        self._reader.set_up_storage_reader(self._metadata, is_coordinator=True)
        found = {
            key.removeprefix(PREFIX): TensorInfo(tuple(entry.size), entry.properties.dtype)
            for key, entry in self._metadata.state_dict_metadata.items()
            if key.startswith(PREFIX) and isinstance(entry, TensorStorageMetadata)
        }
        expected = model_shapes(config)
        shapes = {name: info.shape for name, info in found.items()}
        require_shapes(path, expected, shapes, sorted(found.keys() - expected.keys()))
        self.tensors: Mapping[str, TensorInfo] = {name: found[name] for name in expected}

    def read(self, name: str) -> torch.Tensor:
        info = self.tensors[name]
        tensor = torch.empty(info.shape, dtype=info.dtype)
        planner = PlainPlanner()
        planner.set_up_planner({PREFIX + name: tensor}, self._metadata, is_coordinator=True)
        try:
            plan = self._reader.prepare_local_plan(planner.create_local_plan())
            self._reader.read_data(plan, planner).wait()
        except FileNotFoundError as error:
            raise ValueError(f"{self.path}: {name} cannot be read: {error.filename} is missing") from error
        except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError, AssertionError) as error:
            raise ValueError(f"{self.path}: {name} cannot be read, a file is cut short or damaged: {error}") from error
        return tensor


# What the writers of torch 2.11 to 2.13 put into `.metadata`, beside dtypes and what pickle has opcodes for.
_WRITTEN = {
    *(
        ("torch.distributed.checkpoint.metadata", name)
        for name in (
            "Metadata",
            "StorageMeta",
            "MetadataIndex",
            "BytesStorageMetadata",
            "TensorStorageMetadata",
            "ChunkStorageMetadata",
            "TensorProperties",
            "_MEM_FORMAT_ENCODING",
        )
    ),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    ("builtins", "set"),
    *((module, name) for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "WindowsPath")),
}
# What a pickle raises that is refused, cut short or damaged, or that another version of Python wrote.
_BROKEN = (
    pickle.UnpicklingError, EOFError, ArithmeticError, AttributeError, ImportError, LookupError, TypeError, ValueError,
    NotImplementedError,
)  # fmt: skip


class _Plain(pickle.Unpickler):
    """Builds what torch's writers put into `.metadata`, and calls nothing else: a folder may come from anywhere."""

    def find_class(self, module: str, name: str) -> Any:
        # By name, not by what is found: a name with dots leads from any module to what that has imported.
        if (module, name) in _WRITTEN or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"refused: it would call {module}.{name}")


class PlainReader(FileSystemReader):
    """torch's reader of a checkpoint, but nothing in its `.metadata` runs. ValueError where that is broken."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        try:
            with (Path(self.path) / ".metadata").open("rb") as stream:
                found: Any = _Plain(stream).load()
            if not isinstance(found, Metadata):
                raise TypeError(f"it holds {type(found).__name__}, not what torch writes")
        except _BROKEN as error:
            raise ValueError(f"{self.path}: its .metadata is broken: {error}") from error
        return found


class PlainPlanner(DefaultLoadPlanner):
    """torch's planner of what to read, but what is no tensor (a step, a learning rate) is data, and runs nothing."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        torch.load(value, weights_only=True)  # refuses, before torch's own reading, which refuses nothing
        value.seek(0)
        super().load_bytes(read_item, value)


class _ReadWhenWritten(DefaultSavePlanner):
    """A plan made from tensors without memory, each read from the source when its turn comes."""

    def __init__(self, source: WeightSource, progress: Progress) -> None:
        super().__init__()
        self._read = counted(source.read, source.tensors, progress)

    def lookup_object(self, index: MetadataIndex) -> Any:
        return self._read(index.fqn.removeprefix(PREFIX))


def write_checkpoint(folder: Path, source: WeightSource, progress: Progress) -> None:
    """Write a checkpoint with the weights of `source`, a file for each tensor."""
    model = {name: torch.empty(info.shape, dtype=info.dtype, device="meta") for name, info in source.tensors.items()}
    # One file for all would be kept in memory by torch's writer until its end.
    writer = FileSystemWriter(folder, single_file_per_rank=False, thread_count=1)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is")  # one process is what is meant
            dcp.save(
                {"app": {"model": model}},
                storage_writer=writer,
                planner=_ReadWhenWritten(source, progress),
                no_dist=True,
            )
    except CheckpointException as error:  # dcp's own wrapping of what really happened
        cause, _ = next(iter(error.failures.values()))
        raise cause from None
