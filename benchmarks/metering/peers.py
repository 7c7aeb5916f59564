"""The tools that are compared, each in a venv of its own (where it is, or why it is not there), and their table."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Cell = dict[str, Any]
MET = {True: "yes", False: "**no**", None: "-"}
PACKAGES = {"codecarbon": "codecarbon", "zeus": "zeus", "carbontracker": "carbontracker"}
TITLES = {"hoofprint": "hoofprint", "codecarbon": "CodeCarbon", "zeus": "Zeus", "carbontracker": "carbontracker"}


@dataclass(frozen=True)
class Peer:
    """A tool's interpreter and version; `missing` says why it could not be installed."""

    name: str
    python: Path
    version: str = ""
    missing: str = ""


def install(
    cache: Path, packages: Mapping[str, str] = PACKAGES, folders: Mapping[str, str] | None = None
) -> dict[str, Peer]:
    """Ours, and every peer that can be installed. Venvs of an earlier run are used again.

    packages: what pip is asked for, by the distribution's name; folders: of a venv, where it is not called so.
    """
    peers = {"hoofprint": Peer("hoofprint", Path(sys.executable), _version(Path(sys.executable), "hoofprint"))}
    for name, package in packages.items():
        folder = cache / (folders or {}).get(name, name)
        python = folder / "bin" / "python"
        try:
            if not python.exists():
                _call(sys.executable, "-m", "venv", str(folder))
            if not _version(python, name):
                _call(str(python), "-m", "pip", "install", "--quiet", package)
            peers[name] = Peer(name, python, _version(python, name))
        except (subprocess.CalledProcessError, OSError) as error:
            said = getattr(error, "stderr", None) or str(error)
            peers[name] = Peer(name, python, missing=f"not installed: {said.strip().splitlines()[-1][:200]}")
    return peers


def row(name: str, target: str, cells: Mapping[str, Cell], met: bool | None) -> dict[str, Any]:
    """A row of the table, as the result's JSON has it. Each cell has a text and the figures behind it."""
    peers = {tool: cell for tool, cell in cells.items() if tool != "hoofprint"}
    return {"row": name, "target": target, "met": met, "ours": cells["hoofprint"], "peers": peers}


def side_by_side(rows: Sequence[Mapping[str, Any]], heads: Mapping[str, str]) -> list[str]:
    """The rows in Markdown, a column for each tool of `heads`; what was not measured is `-`."""
    lines = ["| | target | met | " + " | ".join(heads.values()) + " |", "|---" * (3 + len(heads)) + "|"]
    for one in rows:
        cells = {"hoofprint": one["ours"], **one["peers"]}
        texts = [cells[tool]["text"].replace("|", "/") if tool in cells else "-" for tool in heads]
        lines.append(f"| {one['row']} | {one['target']} | {MET[one['met']]} | " + " | ".join(texts) + " |")
    return lines


def _call(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _version(python: Path, package: str) -> str:
    """The installed version, or nothing."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    try:
        return _call(str(python), "-c", code).strip()
    except (subprocess.CalledProcessError, OSError):
        return ""
