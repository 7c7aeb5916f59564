"""From which checkpoint a run goes on: the newest whose every byte is what was written, here or in its copy."""

import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from orchestrator.checkpoints.saved import (
    UNREAD,
    complete,
    damage,
    partial_of,
    refusal_of,
    remove,
    set_aside,
    step_of,
    sync_folder,
)

if TYPE_CHECKING:
    from orchestrator.checkpoints.courier import Courier

LOOK_S = 0.05


class Choice:
    """How the ranks choose a checkpoint in `folder` together.

    warn(text): told on every rank of what is damaged, left out or fetched. group: of CPU tensors, with a timeout longer
    than the slowest rank may take; None is the default one. beat(): called while a rank reads, fetches or waits.
    fresh: of a run that has only begun; copies of its name are another run's. run_created_unix_s: when it was made, by
    which later attempts know such copies; rank 0's counts, and without it all are taken as the run's own.
    """

    def __init__(
        self,
        folder: Path,
        warn: Callable[[str], None],
        copies: "Courier | None" = None,
        *,
        group: Any = None,
        beat: Callable[[], None] = lambda: None,
        fresh: bool = False,
        run_created_unix_s: float | None = None,
    ):
        self._fresh, self._run_created_unix_s = fresh, run_created_unix_s
        self._folder, self._warn, self._copies, self._group, self._beat = folder, warn, copies, group, beat
        self._rank, self._world = dist.get_rank(), dist.get_world_size()

    def newest_whole(self) -> Path | None:
        """The newest checkpoint whose files are what was written, None where there is none at all. A collective.

        One that is damaged, or of which there is only a copy, is fetched; a damaged one that was passed over loses its
        name. ValueError when none is whole, when there is none here and the storage of the copies does not say what it
        has, or when they are of another run.
        """
        here, copied = self._there_are()
        passed_over: list[Path] = []
        unread = False  # at least one, which may be whole
        for name in sorted(here | copied, key=lambda name: step_of(Path(name)), reverse=True):
            checkpoint = self._folder / name
            if name in here:
                wrong = self._wrong(checkpoint)
                if wrong is None:
                    return self._chosen(checkpoint, passed_over)
                unread |= UNREAD in wrong
                if UNREAD in wrong:  # a disk that fails for a moment: the next start looks again
                    self._warn(f"the checkpoint {name} is left out: {wrong}")
                else:
                    self._warn(f"the checkpoint {name} is damaged and left out: {wrong}")
                    passed_over.append(checkpoint)
            if self._copies is not None and name in copied:
                wrong = self._fetch(self._copies, checkpoint)
                if wrong is None:
                    self._warn(f"the checkpoint {name} was fetched from its copy in {self._copies.uri}")
                    return self._chosen(checkpoint, passed_over)
                unread |= UNREAD in wrong
                self._warn(f"the copy of the checkpoint {name} in {self._copies.uri} is left out: {wrong}")
        if unread:
            raise ValueError(
                f"no checkpoint of {self._folder} could be read whole: see the warnings, and try again; deleting them "
                "would lose those that a disk or a storage does not give now"
            )
        if here | copied:
            raise ValueError(f"every checkpoint in {self._folder} is damaged; delete them to train from the start")
        return None

    def _there_are(self) -> tuple[set[str], set[str]]:
        """The names of the checkpoints here, and of the copies."""
        found: list[Any] = [None]
        copies = self._copies
        if self._rank == 0:
            seen: list[tuple[list[str], list[str]]] = []
            refused = refusal_of(lambda: seen.append(self._copied(copies))) if copies is not None else None
            copied, others = seen[0] if seen else ([], [])
            found = [({path.name for path in complete(self._folder)}, set(copied), others, refused)]
        dist.broadcast_object_list(found, group=self._group)
        here, copied, others, refused = found[0]
        if refused is not None and copies is not None:
            if not here:
                raise ValueError(
                    f"there is no checkpoint in {self._folder}, and whether there are copies in {copies.uri} is not "
                    f"known ({refused}): try again when it answers; checkpoint.copy_to=null trains from the start"
                )
            self._warn(f"copies of checkpoints in {copies.uri} are not looked at: {refused}")
        if others and copies is not None:
            raise ValueError(
                f"{copies.uri} has checkpoints of another run of this name ({len(others)}): give another --name "
                "or checkpoint.copy_to, or take them away"
            )
        return here, copied

    def _copied(self, copies: "Courier") -> tuple[list[str], list[str]]:
        """The names of the copies, and of those among them that another run made."""
        names = copies.names()
        if self._fresh or not names:
            return names, names
        return names, [] if self._run_created_unix_s is None else copies.of_others(names, self._run_created_unix_s)

    def _chosen(self, checkpoint: Path, passed_over: list[Path]) -> Path:
        """Damaged ones of later steps would count as the newest, for whoever looks and for what is kept."""
        if self._rank == 0:
            for damaged in passed_over:
                if damaged != checkpoint:  # which was fetched into its place
                    refused = refusal_of(partial(set_aside, damaged))
                    what = f"is kept as damaged-{damaged.name}; delete it when nobody wants to look at it"
                    self._warn(f"{damaged.name} {what if refused is None else f'keeps its name: {refused}'}")
        return checkpoint

    def _wrong(self, checkpoint: Path) -> str | None:
        """What is wrong with the files of a checkpoint; each rank looks at some. A collective."""
        return self._first(damage(checkpoint, self._rank, self._world, self._beat))

    def _first(self, mine: str | None) -> str | None:
        """Of what the ranks say, the first that is something; whoever waits for the slowest is alive. A collective."""
        waiting = dist.barrier(self._group, async_op=True)
        while not waiting.is_completed():
            self._beat()
            time.sleep(LOOK_S)
        waiting.wait()  # raises what went wrong with it
        said: list[Any] = [None] * self._world
        dist.all_gather_object(said, mine, self._group)
        return next((each for each in said if each is not None), None)

    def _fetch(self, copies: "Courier", final: Path) -> str | None:
        """Puts a copy into its place, if it is whole; else what is wrong with it. A collective."""
        folder = partial_of(final)
        if self._rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        dist.barrier(self._group)
        refused = refusal_of(lambda: copies.fetch(final.name, folder, self._rank, self._world, self._beat))
        wrong = self._first(refused and f"{UNREAD}: {refused}") or self._wrong(folder)
        if self._rank == 0 and wrong is None:
            if final.exists():
                remove(final)
            folder.rename(final)
            sync_folder(final.parent)
        dist.barrier(self._group)
        return wrong
