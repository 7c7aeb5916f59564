"""Writes checkpoints while the training goes on, and gives one its name only when every file of it is whole.

Between two steps the state is copied into main memory, all that the training waits for; a thread does the rest. Its
collectives have a group of their own (gloo), because they run beside the training's. A rank that cannot write tells the
others with its next step (`failed`), so that all of them end at the same one.

The next checkpoint waits for the copy of the one before, however slow its storage is: a rank says meanwhile that it is
alive (`beat`). A storage that falls silent is given up by checkpoints.courier.
"""

import contextlib
import itertools
import os
import shutil
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import BlockingAsyncStager

from orchestrator.checkpoints.saved import (
    MANIFEST,
    digests,
    partial_of,
    prune,
    refusal_of,
    remove,
    step_of,
    sync_folder,
    unseen,
    write_manifest,
)
from orchestrator.checkpoints.state import CheckpointNotSaved, TrainState, why

if TYPE_CHECKING:
    from orchestrator.checkpoints.courier import Courier

LAST_WORDS_S = 60.0  # how long a failing training waits for a checkpoint that is being written
BEAT_EVERY_S = 0.5
# How much later than another a rank may end its share: a slow storage decides. One that hangs is given up by its
# courier, a rank that hangs is seen by its watchdog, and one that dies closes its connections.
RANKS_APART = timedelta(days=1)
_writers = itertools.count()


class CheckpointWriter:
    """One rank's part in writing the checkpoints in `folder`. Making it, `save` and `finish` are collectives.

    run_created_unix_s: for the manifests; what rank 0 is given counts.
    """

    def __init__(
        self,
        folder: Path,
        *,
        asynchronous: bool,
        on_gpu: bool = False,
        keep_last: int | None = None,
        keep_every_steps: int | None = None,
        copies: "Courier | None" = None,
        run_created_unix_s: float | None = None,
    ):
        self._folder, self._keep, self._copies = folder, (keep_last, keep_every_steps), copies
        self._run_created_unix_s = run_created_unix_s
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        self.group = dist.new_group(backend="gloo", timeout=RANKS_APART)
        self._plans = f"checkpoints {next(_writers)}"
        self._stager = _stager(on_gpu) if asynchronous else None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._written: list[dict[str, Any]] = []
        self._copying = False
        self._checked = 0
        self.beat: Callable[[], None] = lambda: None  # called by whoever waits, while a copy is being made

    def save(self, state: TrainState, step: int) -> None:
        """Begins the checkpoint of `step` after the one before has ended; if not `asynchronous`, only its copy goes on.

        CheckpointNotSaved, on every rank and with the same words, when one of them could not write the one before.
        """
        called_s = time.monotonic()
        self.finish()
        began_s = time.monotonic()
        final = self._folder / f"step-{step:08d}"
        cost = {"step": step, "began_s": began_s, "waited_s": began_s - called_s}
        self._written.append(cost)
        if self._stager is None:
            whole = self._write({"app": state}, final, cost)
            cost["blocked_s"] = time.monotonic() - began_s
            if self._copies is None:
                cost["bytes"] = whole[1]
            else:
                self._begin(lambda: whole, final, cost)
            return
        copy = self._stager.stage({"app": state.state_dict()})
        cost["blocked_s"] = time.monotonic() - began_s
        self._begin(partial(self._write, copy, final, cost), final, cost)

    def _begin(self, write: Callable[[], tuple[list[str], int]], final: Path, cost: dict[str, Any]) -> None:
        self._thread = threading.Thread(target=self._rest, args=(write, final, cost), name="checkpoint", daemon=True)
        self._thread.start()

    @property
    def failed(self) -> bool:
        """Whether the checkpoint that was begun last could not be written; others may still be at it."""
        return self._error is not None

    def finish(self) -> None:
        """Waits for the checkpoint that is being written. CheckpointNotSaved where it could not be.

        Who waits says that it is alive as long as some rank's files grow: a large checkpoint takes longer than the
        stall for any before it, and a disk that hangs is to be found.
        """
        if self._thread is not None:
            before = None
            while self._thread.is_alive():
                self._thread.join(BEAT_EVERY_S)
                done = self._written_so_far()
                if self._copying or done != before:
                    self.beat()
                before = done
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _written_so_far(self) -> tuple[int, int, int]:
        """Files and bytes of the checkpoint that is being written, of all ranks; files that this one has checked."""
        sizes: list[int] = []
        with contextlib.suppress(OSError):  # it has its name now
            for folder in self._folder.glob(".step-*.partial"):
                sizes += [entry.stat().st_size for entry in os.scandir(folder)]
        return len(sizes), sum(sizes), self._checked

    def give_up(self) -> None:
        """After a failure elsewhere: what is nearly written shall not be lost, and what hangs shall not hold."""
        if self._thread is not None:
            self._thread.join(LAST_WORDS_S)

    def written(self) -> list[dict[str, Any]]:
        """Once for each whole checkpoint: {step, waited_s, seconds, blocked_s, bytes}: how long it waited for the one
        before, then from its beginning until it was whole, and for how much of that the training stood still. With
        copies also `copied_s`, or `not_copied`, which says why; `not_pruned` says why older copies are still there.
        """
        done = []
        while self._written and "bytes" in self._written[0]:
            cost = self._written.pop(0)
            del cost["began_s"]
            done.append(cost)
        return done

    def _rest(self, write: Callable[[], tuple[list[str], int]], final: Path, cost: dict[str, Any]) -> None:
        """What the training does not wait for."""
        try:
            mine, size = write()
            if self._copies is not None:
                self._copying = True
                cost |= self._copy(self._copies, final, mine)
        except BaseException as error:  # the thread's own end is no place for it: see `finish`
            self._error = error
            return
        finally:
            self._copying = False
        cost["bytes"] = size  # at last: see `written`

    def _write(self, state: dict[str, Any], final: Path, cost: dict[str, Any]) -> tuple[list[str], int]:
        """The names of this rank's files, and the bytes of all, once the checkpoint is whole."""
        refused = self._refusal(lambda: self._make_room(final))
        if refused is not None:
            self._refuse(refused, final, cost["step"])
        try:
            dcp.save(state, checkpoint_id=partial_of(final), process_group=self.group, planner=_Planner(self._plans))
        except CheckpointException as error:  # dcp raises it on every rank, whichever failed
            self._refuse(why(partial_of(final), error), final, cost["step"])
        whole = self._commit(final, cost["step"])
        cost["seconds"] = time.monotonic() - cost["began_s"]
        return whole

    def _make_room(self, final: Path) -> None:
        if self._rank == 0:
            shutil.rmtree(partial_of(final), ignore_errors=True)
            partial_of(final).mkdir(parents=True)

    def _copy(self, copies: "Courier", final: Path, mine: list[str]) -> dict[str, Any]:
        """Copies the checkpoint; a storage that refuses costs the copy and not the training."""
        began_s = time.monotonic()
        refused = [self._refusal(lambda: copies.put(final, mine)), None]  # of the copy, and of taking older ones away
        if self._rank == 0 and refused[0] is None:
            refused[0] = refusal_of(lambda: copies.put(final, [".metadata", MANIFEST]))
            if refused[0] is None:
                refused[1] = refusal_of(lambda: copies.prune(step_of(final), *self._keep))
        # All wait for rank 0: in a step without it they could not say that they are alive.
        dist.broadcast_object_list(refused, group=self.group)
        if refused[0] is not None:
            return {"not_copied": refused[0]}
        copied = {"copied_s": time.monotonic() - began_s}
        return copied if refused[1] is None else copied | {"not_pruned": refused[1]}

    def _refusal(self, work: Callable[[], Any]) -> str | None:
        """Why the work of some rank was refused, the same on every rank; None where all did theirs."""
        gathered: list[Any] = [None] * self._world
        dist.all_gather_object(gathered, refusal_of(work), self.group)
        return next((each for each in gathered if each is not None), None)

    def _commit(self, final: Path, step: int) -> tuple[list[str], int]:
        """Writes the manifest and gives the checkpoint its name, when every rank's files are on the disk.

        The names of this rank's files, and the bytes of all.
        """
        folder = partial_of(final)
        names = [path.name for path in folder.glob(f"__{self._rank}_*")]
        mine: dict[str, Any] = {}
        reason = [self._refusal(lambda: self._check(folder, names, mine))]
        gathered: list[Any] = [None] * self._world
        dist.all_gather_object(gathered, mine, self.group)
        files = {name: told for each in gathered for name, told in each.items()}
        if self._rank == 0 and reason[0] is None:
            reason = [refusal_of(lambda: self._name(folder, final, files))]
        dist.broadcast_object_list(reason, group=self.group)
        if reason[0] is not None:
            self._refuse(reason[0], final, step)
        return names, sum(told["bytes"] for told in files.values())

    def _check(self, folder: Path, names: list[str], into: dict[str, Any]) -> None:
        for name in names:
            into |= digests(folder, [name])
            self._checked += 1

    def _name(self, folder: Path, final: Path, files: dict[str, Any]) -> None:
        # On another machine a rank makes the folder itself where it is not shared, and what it writes is whole there.
        away = unseen(folder, {name: told["bytes"] for name, told in files.items()})
        if away:
            more = f" and {len(away) - 1} more files" if len(away) > 1 else ""
            raise OSError(
                f"rank 0 does not see {away[0]}{more} that other ranks wrote: "
                "put the run's folder on storage that all nodes share"
            )
        write_manifest(folder, files | digests(folder, [".metadata"]), self._run_created_unix_s)
        if final.exists():
            remove(final)
        folder.rename(final)
        sync_folder(final.parent)
        prune(self._folder, step_of(final), *self._keep)

    def _refuse(self, reason: str, final: Path, step: int) -> None:
        said = [f"{reason}: the checkpoint of step {step} was not written to {self._folder}"]
        if self._rank == 0:
            shutil.rmtree(partial_of(final), ignore_errors=True)
        # Nobody leaves before rank 0 has cleaned up: the first rank that fails takes the others down.
        dist.broadcast_object_list(said, group=self.group)
        raise CheckpointNotSaved(said[0])


class _Planner(dcp.DefaultSavePlanner):
    """The checkpoints of one writer hold the same tensors: who writes what is agreed on for the first, and again only
    where a rank has other ones. That is half of what a small checkpoint costs."""

    def __init__(self, plans: str):
        super().__init__(enable_plan_caching=True)
        self._cached_plans_key = plans  # torch's own is the name of the class, for all writers of a process


class _KeptCopy(BlockingAsyncStager):
    """Copies on the CPU into the memory of the copy before: new memory costs a page fault every 4 KB, and the first
    copy of a DTensor copies it twice."""

    def __init__(self) -> None:
        super().__init__(cache_staged_state_dict=True)

    def stage(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        if self.state_dict_cache is None:
            self.state_dict_cache = BlockingAsyncStager().stage(state_dict)  # not pinned: there is no GPU to gain by it
            return self.state_dict_cache
        return super().stage(state_dict)


def _stager(on_gpu: bool) -> BlockingAsyncStager:
    # Pinned memory, kept from one checkpoint to the next: a GPU copies into it several times as fast.
    return BlockingAsyncStager(cache_staged_state_dict=True) if on_gpu else _KeptCopy()
