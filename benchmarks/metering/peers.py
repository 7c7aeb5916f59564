"""The tools that are compared, each in a venv of its own: where they are, or why they are not there."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

PACKAGES = {"codecarbon": "codecarbon", "zeus": "zeus", "carbontracker": "carbontracker"}
TITLES = {"hoofprint": "hoofprint", "codecarbon": "CodeCarbon", "zeus": "Zeus", "carbontracker": "carbontracker"}


@dataclass(frozen=True)
class Peer:
    """A tool's interpreter and version; `missing` says why it could not be installed."""

    name: str
    python: Path
    version: str = ""
    missing: str = ""


def install(cache: Path) -> dict[str, Peer]:
    """Ours, and every peer that can be installed. Venvs of an earlier run are used again."""
    peers = {"hoofprint": Peer("hoofprint", Path(sys.executable), _version(Path(sys.executable), "hoofprint"))}
    for name, package in PACKAGES.items():
        python = cache / name / "bin" / "python"
        try:
            if not python.exists():
                _call(sys.executable, "-m", "venv", str(cache / name))
            if not _version(python, package):
                _call(str(python), "-m", "pip", "install", "--quiet", package)
            peers[name] = Peer(name, python, _version(python, package))
        except (subprocess.CalledProcessError, OSError) as error:
            said = getattr(error, "stderr", None) or str(error)
            peers[name] = Peer(name, python, missing=f"not installed: {said.strip().splitlines()[-1][:200]}")
    return peers


def _call(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _version(python: Path, package: str) -> str:
    """The installed version, or nothing."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    try:
        return _call(str(python), "-c", code).strip()
    except (subprocess.CalledProcessError, OSError):
        return ""
