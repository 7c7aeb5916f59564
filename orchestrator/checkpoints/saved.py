"""Which checkpoints a run has, as its folder shows it; no torch, so that anything may look.

A checkpoint is a folder `step-N` with DCP's `.metadata`. It gets that name when it is whole, and loses it before it is
deleted. Its `manifest.json` has the size and the SHA-256 of each file, against which it is checked before it is loaded.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from energy.run_version import CHECKPOINT_SCHEMA

MANIFEST = "manifest.json"
UNREAD = "cannot be read"  # what is wrong with a checkpoint of which nobody knows whether it is damaged
SEEN_WITHIN_S = 20.0  # a network drive may be late to show what another machine has written
LOOK_AGAIN_S = 0.5


def complete(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, the newest first; a folder without DCP's `.metadata` is none."""
    found = [path for path in folder.glob("step-*") if (path / ".metadata").exists()]
    return sorted(found, key=step_of, reverse=True)


def newest_complete(folder: Path) -> Path | None:
    """The checkpoint with the highest step."""
    return next(iter(complete(folder)), None)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def partial_of(final: Path) -> Path:
    """Where a checkpoint lies while it is written."""
    return final.with_name(f".{final.name}.partial")


def remove_partial(folder: Path) -> None:
    """Deletes what a kill in the middle of a save left behind."""
    for partial in folder.glob(".step-*.partial"):
        shutil.rmtree(partial, ignore_errors=True)


def remove(checkpoint: Path) -> None:
    """Deletes a checkpoint; a kill in the middle leaves no half of it under its name."""
    going = checkpoint.with_name(f".{checkpoint.name}.deleted.partial")
    shutil.rmtree(going, ignore_errors=True)
    checkpoint.rename(going)
    shutil.rmtree(going, ignore_errors=True)


def set_aside(checkpoint: Path) -> Path:
    """Gives a damaged checkpoint a name under which it is none; where it lies now."""
    aside = checkpoint.with_name(f"damaged-{checkpoint.name}")
    shutil.rmtree(aside, ignore_errors=True)  # of an earlier time that the training was there
    checkpoint.rename(aside)
    sync_folder(aside.parent)
    return aside


def outdated(names: Sequence[str], newest: int, keep_last: int | None, keep_every_steps: int | None) -> list[str]:
    """Of checkpoints, the newest first, those that are neither among the last nor at a step to keep; None keeps all.

    newest: the step that was written last. Those of later steps cannot be read, else the training had gone on from
    them: they count for nothing, and are overwritten when it comes there again.
    """
    if keep_last is None:
        return []
    every, names = keep_every_steps, [name for name in names if step_of(Path(name)) <= newest]
    return [name for name in names[keep_last:] if every is None or step_of(Path(name)) % every]


def prune(folder: Path, newest: int, keep_last: int | None, keep_every_steps: int | None) -> None:
    """Deletes the checkpoints that are not to be kept, now that there is the one of step `newest`."""
    for name in outdated([path.name for path in complete(folder)], newest, keep_last, keep_every_steps):
        remove(folder / name)


def digests(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """{name: {bytes, sha256}} of files in `folder`."""
    found = {}
    for name in names:
        with (folder / name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            found[name] = {"bytes": os.fstat(file.fileno()).st_size, "sha256": digest}
    return found


def unseen(folder: Path, sizes: Mapping[str, int]) -> list[str]:
    """Of the files {name: bytes} that others wrote, those that are not in `folder` with that size, also after a while.

    NFS answers for a file from its memory, and asks the server for a folder that is listed and a file that is opened.
    """
    until_s = time.monotonic() + SEEN_WITHIN_S
    while True:
        left = [name for name, size in sizes.items() if _size(folder / name) != size]
        if not left or time.monotonic() > until_s:
            return left
        time.sleep(LOOK_AGAIN_S)
        if folder.is_dir():
            os.listdir(folder)


def _size(path: Path) -> int | None:
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        return None


def write_manifest(folder: Path, files: dict[str, dict[str, Any]], run_created_unix_s: float | None = None) -> None:
    """run_created_unix_s: of the run that the checkpoint is of, which tells it from another one of its name."""
    run = {} if run_created_unix_s is None else {"run_created_unix_s": run_created_unix_s}
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump({"schema": CHECKPOINT_SCHEMA, **run, "files": dict(sorted(files.items()))}, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def run_told(manifest: bytes) -> float | None:
    """When the run of a checkpoint was created, in unix s; None of a damaged manifest, or one of an earlier version."""
    try:
        told: float | None = json.loads(manifest).get("run_created_unix_s")
    except (ValueError, AttributeError):
        return None
    return told


def damage(checkpoint: Path, part: int = 0, parts: int = 1, beat: Callable[[], None] = lambda: None) -> str | None:
    """What is wrong with the files of a checkpoint, None if nothing is; of `parts` readers, each takes its own files.

    One from before there were manifests cannot be checked, and passes; one that lacks it beside others that have one
    was moved here in part. beat(): called before each file.
    """
    manifest = checkpoint / MANIFEST
    try:
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        for name in sorted(files)[part::parts]:
            beat()
            path, told = checkpoint / name, files[name]
            size = path.stat().st_size
            if size != told["bytes"]:
                return f"{path} has {size} bytes, and {told['bytes']} were written"
            if digests(checkpoint, [name])[name]["sha256"] != told["sha256"]:
                return f"{path} is not what was written: its SHA-256 differs from the manifest's"
    except FileNotFoundError as error:
        old = Path(error.filename) == manifest and not any(checkpoint.parent.glob(f"step-*/{MANIFEST}"))
        return None if old else f"{error.filename} is missing"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{checkpoint} {UNREAD}: {error}"
    return None


def refusal_of(work: Callable[[], Any]) -> str | None:
    """Does the work; what the system said when it refused, None where it did not."""
    try:
        work()
    except OSError as refusal:
        return refusal.strerror or str(refusal)
    return None


def sync_folder(folder: Path) -> None:
    """Puts the names in a folder on the disk, so that a power cut does not bring the old ones back."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
