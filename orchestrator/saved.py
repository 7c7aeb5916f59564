"""Which checkpoints a run has, as its folder shows it; no torch, so that anything may look."""

import shutil
from pathlib import Path


def newest_complete(folder: Path) -> Path | None:
    """The checkpoint with the highest step; a folder without DCP's `.metadata` is not a checkpoint."""
    complete = [path for path in folder.glob("step-*") if (path / ".metadata").exists()]
    return max(complete, key=lambda path: int(path.name.removeprefix("step-")), default=None)


def remove_partial(folder: Path) -> None:
    """Deletes what a kill in the middle of a save left behind."""
    for partial in folder.glob(".step-*.partial"):
        shutil.rmtree(partial, ignore_errors=True)
