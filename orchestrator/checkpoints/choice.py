"""From which checkpoint a run goes on: the newest whose every byte is what was written, here or in its copy."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from orchestrator.checkpoints.saved import complete, damage, partial_of, refusal_of, remove, step_of, sync_folder

if TYPE_CHECKING:
    from orchestrator.checkpoints.courier import Courier


def newest_whole(folder: Path, warn: Callable[[str], None], copies: "Courier | None" = None) -> Path | None:
    """The newest checkpoint whose files are what was written, None where there is none at all. A collective.

    One that is damaged, or of which there is only a copy, is fetched. warn: told, on every rank, of either. ValueError
    when none is whole, or when there is none here and the storage of the copies does not say what it has.
    """
    found: list[Any] = [None]
    if dist.get_rank() == 0:
        copied = list[str]()
        refused = refusal_of(lambda: copied.extend(copies.names())) if copies is not None else None
        found = [({path.name for path in complete(folder)}, set(copied), refused)]
    dist.broadcast_object_list(found)
    here, copied, refused = found[0]
    if refused is not None and copies is not None:
        if not here:
            raise ValueError(
                f"there is no checkpoint in {folder}, and whether there are copies in {copies.uri} is not known "
                f"({refused}): try again when it answers; checkpoint.copy_to=null trains from the start"
            )
        warn(f"copies of checkpoints in {copies.uri} are not looked at: {refused}")
    for name in sorted(here | copied, key=lambda name: step_of(Path(name)), reverse=True):
        if name in here:
            wrong = _wrong(folder / name)
            if wrong is None:
                return folder / name
            warn(f"the checkpoint {name} is damaged and left out: {wrong}")
        if copies is not None and name in copied:
            wrong = _fetch(copies, folder / name)
            if wrong is None:
                warn(f"the checkpoint {name} was fetched from its copy in {copies.uri}")
                return folder / name
            warn(f"the copy of the checkpoint {name} in {copies.uri} is left out: {wrong}")
    if here | copied:
        raise ValueError(f"every checkpoint in {folder} is damaged; delete them to train from the start")
    return None


def _wrong(checkpoint: Path) -> str | None:
    """What is wrong with the files of a checkpoint; each rank looks at some. A collective."""
    said: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(said, damage(checkpoint, dist.get_rank(), dist.get_world_size()))
    return next((each for each in said if each is not None), None)


def _fetch(copies: "Courier", final: Path) -> str | None:
    """Puts a copy into its place, if it is whole; else what is wrong with it. A collective."""
    rank, world, folder = dist.get_rank(), dist.get_world_size(), partial_of(final)
    if rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    dist.barrier()
    said: list[Any] = [None] * world
    dist.all_gather_object(said, refusal_of(lambda: copies.fetch(final.name, folder, rank, world)))
    wrong = next((each for each in said if each is not None), None) or _wrong(folder)
    if rank == 0 and wrong is None:
        if final.exists():
            remove(final)
        folder.rename(final)
        sync_folder(final.parent)
    dist.barrier()
    return wrong
