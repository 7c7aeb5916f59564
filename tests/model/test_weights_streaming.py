"""A model never stands whole in a process: a few tensors at a time, counted and weighed."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from weights_fakes import BASE, CONFIGS, Counting, InMemory, assert_same_bits, build, silent

from model.config import LlamaConfig
from model.weights.dcp import CheckpointWeights, write_checkpoint
from model.weights.huggingface import HuggingFaceFolder, write_huggingface
from model.weights.meta import MetaFolder, write_meta
from model.weights.tensors import TensorInfo, WeightSource, model_shapes

DEEP = LlamaConfig(**BASE | {"n_layers": 12, "n_kv_heads": 2})
WRITERS: dict[str, Callable[[Path, WeightSource], None]] = {
    "checkpoint": lambda folder, source: write_checkpoint(folder, source, silent),
    "huggingface": lambda folder, source: write_huggingface(folder, source, {}, 200_000, silent),
    "meta": lambda folder, source: write_meta(folder, source, 2, silent),
}
READERS: dict[str, Callable[[Path], WeightSource]] = {
    "checkpoint": lambda folder: CheckpointWeights(folder, DEEP),
    "huggingface": HuggingFaceFolder,
    "meta": MetaFolder,
}
FEW = 3  # what is read, and what the loop before has not let go of yet


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("read", WRITERS)
def test_only_a_few_tensors_are_alive_at_once(read: str, write: str, tmp_path: Path) -> None:
    model = InMemory(build(DEEP))
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir(), second.mkdir()
    WRITERS[read](first, model)
    counting = Counting(READERS[read](first))
    WRITERS[write](second, counting)
    assert counting.reads == len(counting.tensors) == 111
    assert counting.most_alive <= FEW and counting.alive == 0
    assert counting.most_bytes <= FEW * max(info.nbytes for info in counting.tensors.values())
    assert_same_bits(READERS[write](second), model)


MEASURE = """
import sys
from pathlib import Path
from model.weights import meta
from test_weights_streaming import READERS_OF_LARGE, WRITERS
meta.REMAP_BYTES = 2**24

def memory(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])

read, write, source, target = sys.argv[1:]
warm, out = Path(target, "warm"), Path(target, "out")
warm.mkdir(), out.mkdir()
WRITERS[write](warm, READERS_OF_LARGE["none"](warm))
Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
before = memory("VmRSS")
WRITERS[write](out, READERS_OF_LARGE[read](Path(source)))
print(memory("VmHWM") - before)
"""
LARGE = LlamaConfig(dim=512, n_layers=12, n_heads=8, ffn_hidden=2048, vocab_size=2048, sequence_length=64)
READERS_OF_LARGE: dict[str, Callable[[Path], WeightSource]] = READERS | {
    "checkpoint": lambda folder: CheckpointWeights(folder, LARGE),
    "none": lambda folder: InMemory(build(CONFIGS["plain"])),  # so that what is imported late is there
    "whole": lambda folder: Whole(),
}


class Zeros:
    """Zeros of the sizes of a model, of which no more than one tensor is ever made."""

    config = LARGE
    tensors = {name: TensorInfo(shape, torch.float32) for name, shape in model_shapes(LARGE).items()}

    def read(self, name: str) -> torch.Tensor:
        return torch.zeros(self.tensors[name].shape)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    folders = {name: tmp_path_factory.mktemp(name) for name in WRITERS}
    for name, folder in folders.items():
        WRITERS[name](folder, Zeros())
    yield folders
    for folder in folders.values():
        shutil.rmtree(folder)


class Whole(Zeros):
    """What must not be: all of the model at once."""

    def __init__(self) -> None:
        self.weights = {name: torch.ones(info.shape) for name, info in self.tensors.items()}

    def read(self, name: str) -> torch.Tensor:
        return self.weights[name]


def growth(read: str, write: str, source: Path, folder: Path) -> int:
    """Bytes by which the memory of a process grew at most, while it turned one layout into another."""
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, read, write, str(source), str(folder)],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": f"{here}:{here.parents[1]}"},
    )  # fmt: skip
    shutil.rmtree(folder)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


PAIRS = [("huggingface", "checkpoint"), ("meta", "checkpoint"), ("checkpoint", "huggingface"), ("checkpoint", "meta")]


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is asked of Linux")
@pytest.mark.parametrize(("read", "write"), PAIRS)
def test_the_memory_does_not_grow_with_the_model(read: str, write: str, large: dict[str, Path], tmp_path: Path) -> None:
    assert (model_bytes := 4 * LARGE.params) > 200e6
    assert growth(read, write, large[read], tmp_path) < model_bytes / 4


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is asked of Linux")
def test_a_whole_model_would_be_seen(tmp_path: Path) -> None:
    assert growth("whole", "huggingface", tmp_path, tmp_path) > 4 * LARGE.params * 0.9
