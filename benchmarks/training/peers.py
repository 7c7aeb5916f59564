"""torchtitan beside us: installed once into a folder of its own, so that it changes nothing of our environment."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# Without their own dependencies: torchtitan asks for data loaders, loggers and a tokenizer, which a model does not use.
PACKAGES = ("torchtitan==0.3.0", "spmd_types==0.2.3", "tyro", "docstring-parser", "typeguard")


@dataclass(frozen=True)
class Peer:
    """A package that is compared: its version and folder (None: our environment), or why it is missing."""

    version: str = ""
    folder: Path | None = None
    missing: str = ""


def find_transformers() -> Peer:
    try:
        return Peer(importlib.metadata.version("transformers"))
    except importlib.metadata.PackageNotFoundError:
        return Peer(missing="not installed: `make bench` and `make test` install it")


def install_torchtitan(folder: Path, wheels: Path | None = None) -> Peer:
    """From the package registry, or with `wheels` from the files in that folder. What is in `folder` is used again."""
    found = _version(folder)
    if not found:
        source = ["--no-index", "--find-links", str(wheels)] if wheels else []
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *source]
        done = subprocess.run([*command, *PACKAGES], capture_output=True, text=True)
        found = _version(folder)
        if done.returncode or not found:
            said = done.stderr.strip().splitlines() or [f"pip ended with {done.returncode}"]
            return Peer(missing=f"not installed: {said[-1][:200]}")
    return Peer(found, folder)


def _version(folder: Path) -> str:
    for found in importlib.metadata.distributions(name="torchtitan", path=[str(folder)]):
        return found.version
    return ""
