"""Compiling the routines: once for a machine, and without a compiler everything trains by PyTorch's own kernels."""

import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model import native
from model.kernels_attention import causal_attention

SCRIPT = """
import torch
from model import native
from model.attention import backend_in_use
from model.config import LlamaConfig
from model.init import init_weights
from model.transformer import Llama
config = LlamaConfig(dim=32, n_layers=2, n_heads=2, vocab_size=97, sequence_length=128)
model = Llama(config)
init_weights(model, seed=1)
tokens = torch.arange(129).unsqueeze(0) % 97
loss = model(tokens[:, :-1], tokens[:, 1:])
loss.backward()
norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
print(f"{loss.item():.4f} {norm.item():.3f}")
print(*(backend_in_use(config, 1, None, "auto", torch.empty(0), compiled=each) for each in (False, True)), sep="; ")
print(native.missing())
"""
compiled_here = pytest.mark.skipif(native.library() is None, reason=native.missing())


def start(cache: Path, **environment: str) -> "subprocess.Popen[str]":
    settings = {**os.environ, "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-c", SCRIPT]
    return subprocess.Popen(command, env=settings | environment, stdout=subprocess.PIPE, text=True)


def said(process: "subprocess.Popen[str]") -> list[str]:
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return out.splitlines()


def fake_compiler(folder: Path, script: str) -> Path:
    path = folder / "cc"
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="ascii")
    path.chmod(0o755)
    return path


@compiled_here
def test_ranks_that_come_at_once_share_what_is_compiled_and_without_a_compiler_the_loss_is_the_same(
    tmp_path: Path,
) -> None:
    together = [start(tmp_path / "cache") for _ in range(2)]
    first, second = (said(each) for each in together)
    numbers = first[0]
    assert first == second == [numbers, "compiled for this processor; flash", ""]
    assert len(list((tmp_path / "cache" / "hoofprint").iterdir())) == 1
    none = "no C compiler (cc) is installed"
    assert said(start(tmp_path, PATH=str(tmp_path / "empty"), CC="")) == [numbers, f"flash ({none}); flash", none]


def test_another_processor_or_compiler_gets_a_library_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / "made"
    made.mkdir()
    compiler = fake_compiler(tmp_path, f'echo again >> {tmp_path}/log; while [ "$1" != -o ]; do shift; done; : > "$2"')
    first = native._compiled(str(compiler), made)
    assert native._compiled(str(compiler), made) == first
    assert native._compiled(f"{compiler} -m64", made) != first
    monkeypatch.setattr(native, "_processor", lambda: "another one")
    assert native._compiled(str(compiler), made) != first
    assert len(list(made.iterdir())) == 3 == len((tmp_path / "log").read_text().splitlines())


def test_what_a_compiler_said_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = fake_compiler(tmp_path, "echo 'x.c:1: error: no such processor' >&2; exit 1")
    monkeypatch.setenv("CC", str(broken))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native._load.cache_clear()
    try:
        assert native.library() is None and native.missing() == f"{broken} failed: x.c:1: error: no such processor"
        assert [path.name for path in (tmp_path / "hoofprint").iterdir()] == []
    finally:
        native._load.cache_clear()


def test_without_a_folder_of_the_users_own_it_is_kept_for_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(in_the_way))
    folder = native._cache_folder()
    assert folder.is_dir() and folder == native._cache_folder() and folder.stat().st_mode & 0o077 == 0


@compiled_here
@pytest.mark.parametrize("without", ["-mno-avx512f", "-mno-avx"] if platform.machine() == "x86_64" else [""])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_processors_with_narrower_vectors_compute_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without: str, dtype: torch.dtype
) -> None:
    narrower = ctypes.CDLL(str(native._compiled(f"{os.environ.get('CC', 'cc')} {without}", tmp_path)))
    monkeypatch.setattr(native, "_load", lambda: narrower)
    torch.manual_seed(0)
    inputs = [torch.randn(2, heads, 150, 40, dtype=dtype) for heads in (4, 2, 2)]
    ours, exact = ([x.detach().to(kind).requires_grad_() for x in inputs] for kind in (dtype, torch.float64))
    out = causal_attention(*ours)
    truth = torch.nn.functional.scaled_dot_product_attention(*exact, is_causal=True, enable_gqa=True)
    grad = torch.randn_like(out)
    out.backward(grad)
    truth.backward(grad.double())
    relative = 1e-5 if dtype == torch.float32 else 2e-2
    for found, wanted in [
        (out.detach(), truth.detach()),
        *((x.grad, y.grad) for x, y in zip(ours, exact, strict=True)),
    ]:
        assert found is not None and wanted is not None
        assert float((found.double() - wanted).norm() / wanted.norm()) < relative
