"""Builds the NVML stand-in: `python build.py FOLDER`, then put FOLDER first in LD_LIBRARY_PATH."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
LIBRARY = "libnvidia-ml.so.1"


class NoCompiler(RuntimeError):
    """There is no C compiler on this machine."""


def build(folder: Path) -> Path:
    """Compile the library into `folder`, unless it is there and newer than its sources; the folder."""
    sources = sorted(HERE.glob("*.c"))
    library = folder / LIBRARY
    newest = max(source.stat().st_mtime for source in [*sources, HERE / "sim.h"])
    if library.exists() and library.stat().st_mtime > newest:
        return folder
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise NoCompiler("no C compiler for the NVML stand-in: apt-get install gcc")
    folder.mkdir(parents=True, exist_ok=True)
    # Renamed into place, so that a process that has the old one mapped keeps it whole.
    fresh = folder / f"{LIBRARY}.{os.getpid()}"
    flags = ["-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-ffp-contract=off"]
    subprocess.run([compiler, *flags, "-o", str(fresh), *map(str, sources), "-lm"], check=True)
    os.replace(fresh, library)
    return folder


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))
