"""Our reader and writer of safetensors against the library's, and against files that are broken."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from model.weights.safetensors_file import SafetensorsFile, write_safetensors
from model.weights.tensors import TensorInfo

library = pytest.importorskip("safetensors.torch")
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    drawn = {f"w.{d}": torch.randn(3, 5, generator=generator, dtype=torch.float64).to(d) for d in DTYPES}
    return drawn | {"scalar": torch.tensor(0.5), "odd": torch.arange(7, dtype=torch.bfloat16), "naïve ✓": torch.ones(1)}


def infos(given: dict[str, torch.Tensor]) -> dict[str, TensorInfo]:
    return {name: TensorInfo(tuple(tensor.shape), tensor.dtype) for name, tensor in given.items()}


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    given = tensors()
    write_safetensors(tmp_path / "a.safetensors", infos(given), given.__getitem__, {"format": "pt"})
    found = library.load_file(tmp_path / "a.safetensors")
    assert found.keys() == given.keys()
    for name, tensor in given.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def test_we_read_what_the_library_writes(tmp_path: Path) -> None:
    given = tensors()
    library.save_file(given, tmp_path / "a.safetensors", metadata={"format": "pt"})
    file = SafetensorsFile(tmp_path / "a.safetensors")
    assert file.tensors == {name: infos(given)[name] for name in file.tensors} and file.tensors.keys() == given.keys()
    for name, tensor in given.items():
        assert torch.equal(file.read(name), tensor), name


def test_a_transposed_tensor_is_written_as_it_looks(tmp_path: Path) -> None:
    given = {"t": torch.arange(6.0).view(2, 3).t()}
    write_safetensors(tmp_path / "a.safetensors", infos(given), given.__getitem__, {})
    assert torch.equal(SafetensorsFile(tmp_path / "a.safetensors").read("t"), given["t"])


@pytest.mark.parametrize("kept", [0, 5, 8, 60, -1, -50])
def test_a_file_that_is_cut_short_is_named(tmp_path: Path, kept: int) -> None:
    given = tensors()
    path = tmp_path / "cut.safetensors"
    write_safetensors(path, infos(given), given.__getitem__, {})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"cut\.safetensors: (cut short|not a safetensors)"):
        SafetensorsFile(path)


def entry(dtype: str = "F32", shape: list[int] | None = None, offsets: tuple[int, int] = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [2] if shape is None else shape, "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"a": entry(), "b": entry(offsets=(4, 12))}, "header is broken: b"),  # they overlap
        ({"a": entry(), "b": entry(offsets=(12, 20))}, "header is broken: b"),  # a gap
        ({"a": entry(shape=[3])}, "header is broken: a"),
        ({"a": entry(shape=[-2, -1])}, "header is broken: a"),
        ({"a": entry(dtype="I8", shape=[8])}, "a has dtype I8: quantised"),
        ({"a": entry(dtype="F8_E4M3", shape=[8])}, "a has dtype F8_E4M3: quantised"),
        ({"a": {"dtype": "F32"}}, "not a safetensors file"),
        ({"a": 1}, "not a safetensors file"),
        ([], "not a safetensors file"),
        ({"a": entry() | {"data_offsets": [0]}}, "lies.safetensors: not a safetensors file .*broken: a is"),
        ({"a": entry() | {"data_offsets": [0, 8.0]}}, "lies.safetensors: not a safetensors file .*broken: a is"),
        ({"a": entry() | {"shape": ["two"]}}, "lies.safetensors: not a safetensors file .*broken: a is"),
        ({"a": entry() | {"shape": [float("nan")]}}, "lies.safetensors: not a safetensors file .*broken: a is"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, header: Any, said: str) -> None:
    path = tmp_path / "lies.safetensors"
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(20))
    with pytest.raises(ValueError, match=said):
        SafetensorsFile(path)


def test_more_than_the_header_says_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "long.safetensors"
    text = json.dumps({"a": entry()}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(9))
    with pytest.raises(ValueError, match="longer than its header says"):
        SafetensorsFile(path)
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ValueError, match="not a safetensors file|cut short"):
        SafetensorsFile(path)
