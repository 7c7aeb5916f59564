"""Routines in C for the CPU, compiled for the machine that they run on, at their first use, in a few seconds.

PyTorch's wheels must run everywhere, and eager operators cannot keep a tile in registers between one and the next; a
file of C compiled with `-march=native` can. It needs a C compiler that knows OpenMP (gcc, or clang with libomp), as
torch.compile does. Without one `library` is None, `missing` says why, and PyTorch's own kernels compute instead.

What was compiled is kept in the user's cache folder, under the hash of all that it depends on.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.autograd.profiler import record_function
from torch.distributed.tensor import DTensor

_FOLDER = Path(__file__).parent
# No -ffast-math: what is not a number must stay so. OpenMP is the one that PyTorch has loaded (the same soname): they
# share its threads.
_FLAGS = ("-std=gnu11", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared")
_COMPILERS = ("cc", "gcc", "clang")
_PATIENCE_S = 120.0
_NO_MEMORY, _BAD_INDEX = 1, 2  # what a routine returns


def computes(x: torch.Tensor) -> bool:
    """Whether the routines can take `x` here and now."""
    return eager_cpu(x) and library() is not None


def eager_cpu(x: torch.Tensor) -> bool:
    """Whether `x` is an array in the CPU's memory, of a dtype to train in, that no compiler is looking at."""
    # A DTensor (a norm under tensor parallelism) knows how each operator spreads over ranks, not how a routine does.
    plain = x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) and not isinstance(x, DTensor)
    return plain and not torch.compiler.is_compiling()


def call(routine: str, *arguments: Any) -> None:
    """The routine on tensors, structures, whole numbers and, last, a float, as its declaration has them.

    MemoryError, IndexError: as the routine says.
    """
    compiled = library()
    assert compiled is not None, "whoever calls has asked `computes`"
    shown = record_function(f"hoofprint::{routine}") if torch.autograd._profiler_enabled() else nullcontext()
    with shown:
        code = getattr(compiled, routine)(*map(_as_c, arguments))
    if code == _NO_MEMORY:
        raise MemoryError(f"{routine}: no memory for a thread to work in")
    if code == _BAD_INDEX:
        raise IndexError(f"{routine}: a target is neither a word of the vocabulary nor left out")


def _as_c(argument: Any) -> Any:
    if isinstance(argument, torch.Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    if isinstance(argument, ctypes.Structure):
        return ctypes.byref(argument)
    return ctypes.c_float(argument) if isinstance(argument, float) else ctypes.c_int64(argument)


def library() -> ctypes.CDLL | None:
    """The compiled routines, or None where they cannot be had."""
    found = _load()
    return found if isinstance(found, ctypes.CDLL) else None


def missing() -> str:
    """Why `library` is None; empty where it is not."""
    found = _load()
    return found if isinstance(found, str) else ""


@cache
def _load() -> ctypes.CDLL | str:
    compiler = os.environ.get("CC") or next(filter(shutil.which, _COMPILERS), None)
    if compiler is None:
        return "no C compiler (cc) is installed"
    try:
        return ctypes.CDLL(str(_compiled(compiler, _cache_folder())))
    except subprocess.CalledProcessError as error:
        said = [line for line in error.stderr.splitlines() if "error" in line] or error.stderr.splitlines()
        return f"{compiler} failed: {said[0][:200] if said else error.returncode}"
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{compiler} made nothing that can be loaded: {error}"


def _compiled(compiler: str, folder: Path) -> Path:
    sources = sorted(_FOLDER.glob("*.c"))
    depends_on = [source.read_bytes() for source in [*sources, *sorted(_FOLDER.glob("*.h"))]]
    depends_on += [" ".join((compiler, *_FLAGS)).encode(), _processor().encode()]
    path = folder / f"native-{hashlib.sha256(b'|'.join(depends_on)).hexdigest()[:24]}.so"
    if path.exists():
        return path
    with tempfile.TemporaryDirectory(dir=folder) as made_in:
        made = Path(made_in) / path.name
        command = [*compiler.split(), *_FLAGS, *map(str, sources), "-o", str(made), "-lm"]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_PATIENCE_S)
        os.replace(made, path)  # whole or not at all: the ranks of a machine all come here at once
    return path


def _cache_folder() -> Path:
    """A folder of the user's own: a library that anybody could have put there must not be loaded."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hoofprint"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError):  # read-only, or a user without a home
        return Path(_folder_of_this_process().name)


@cache
def _folder_of_this_process() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="hoofprint-")


def _processor() -> str:
    """What `-march=native` depends on: a home folder may be shared by machines that differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()} {platform.node()}"
    told = ("model name", "flags", "Features", "CPU part", "CPU implementer")
    return "|".join(dict.fromkeys(line for line in lines if line.startswith(told)))
