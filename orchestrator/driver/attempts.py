"""A run's folder over its attempts: one driver at a time, resumed only as what it was, never left as running."""

import math
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from energy.run_version import require_known
from energy.runs import LOCK, SERIES, RunFolder, flat, replace_file, require_run_name
from orchestrator.checkpoints.saved import remove_partial
from orchestrator.driver.run_lock import RunLock
from orchestrator.driver.skipped import keep_skipped
from orchestrator.live.running import last_event
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.file import BadInput, load_experiment

RESERVE = ".reserve"
RESERVE_BYTES = 2**20
TAIL_BYTES = 2**16
RESUMABLE = {
    "data.cache",
    "training.evaluate_every_steps",
    "training.checkpoint_every_steps",
    "training.micro_batch_sequences",
    "training.nonfinite_loss",
    # How a step is computed, not what.
    "training.activation_checkpointing",
    "training.attention",
    "training.compile",
    "training.gradient_reduction",
    "training.weight_gathering",
}
LOST = "the process that ran it ended without a word (killed, or the machine went down)"


class Claim:
    """A run folder that this process alone works on (driver.run_lock); BadInput names another that does."""

    def __init__(self, folder: RunFolder, say: Callable[[str], None] = lambda text: None):
        self.folder = folder
        self._lock = RunLock(folder.path, say)

    def require_held(self) -> None:
        """RunTaken where another process has the folder by now: this one stood still for too long."""
        self._lock.require_held()

    def hold_space(self) -> None:
        """Keeps room for the end: a full disk must not keep a run from saying how it ended. OSError when full."""
        path = self.folder.path / RESERVE
        try:
            path.write_bytes(os.urandom(RESERVE_BYTES))  # random: not to be compressed away
        except OSError as error:  # of writing, which does not say where
            raise OSError(error.errno, error.strerror, str(path)) from error

    def free_space(self) -> None:
        with suppress(OSError):  # RunTaken, or a storage that does not answer: the end of a run does not hang on it
            self.require_held()
            (self.folder.path / RESERVE).unlink(missing_ok=True)

    def release(self) -> None:
        self.free_space()
        self._lock.release()


def run_path(runs_dir: Path, name: str) -> Path:
    """Where a new run will lie; BadInput when its name is taken or is no name."""
    try:
        require_run_name(name)
    except ValueError as error:
        raise BadInput(str(error)) from None
    path = (runs_dir / name).resolve()
    if path.exists() and not _killed_start(path):
        if not (path / "run.json").exists():
            raise BadInput(f"{path} exists; give another --name")
        raise BadInput(f"the run {path} exists; give another --name, or go on with it: --resume {path}")
    return path


def _killed_start(path: Path) -> bool:
    """Whether `path` is a folder in which a run was about to begin, and did not come to its run.json."""
    begun = {LOCK, RESERVE, "tokenizer.model", "experiment.yaml"}
    return (path / LOCK).is_file() and all(
        entry.is_file() and (entry.name in begun or entry.name.endswith(".partial")) for entry in path.iterdir()
    )


def claim_new(path: Path) -> Claim:
    """Of a new run, or of one whose start was killed before it had a run.json; its lock tells whether it is at work."""
    made = False
    try:
        path.mkdir(parents=True)
        made = True
    except FileExistsError:
        if not _killed_start(path):
            raise BadInput(f"the run {path} was made by another process in the meantime; give another --name") from None
    try:
        return Claim(RunFolder(path))
    except OSError as error:
        if made:
            discard(path)
        raise OSError(error.errno, error.strerror, str(path)) from error


def discard(path: Path) -> None:
    """Removes a folder in which nothing happened, so that its name is free again."""
    shutil.rmtree(path, ignore_errors=True)


def has_trained(folder: RunFolder, attempt: int) -> bool:
    """Whether rank 0 has written of a step of the attempt. Only the end of a file is read: signal handlers ask."""
    try:
        with open(folder.metrics_file(0), "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return False
    return any(line.startswith(b'{"attempt": %d, "event": "step"' % attempt) for line in lines)


def first_held(run: dict[str, Any]) -> tuple[int, str] | None:
    """(workers, cpu or cuda) of a run's first attempt, by its run.json; None before it had any."""
    device, attempts = run.get("device_type"), run.get("attempts") or []
    held = [*(attempt.get("world_size") for attempt in attempts), run.get("world_size")]
    workers = next((each for each in held if each), None)
    return None if device is None or workers is None else (workers, device)


class Before:
    """What an attempt writes over before it may still be refused, as it was: each file's bytes, None without one."""

    FILES = ("run.json", "experiment.yaml", "tokenizer.model", SERIES)

    def __init__(self, folder: RunFolder):
        self._folder = folder.path
        self._bytes = {name: _bytes_of(folder.path / name) for name in self.FILES}

    def restore(self) -> None:
        for name, was in self._bytes.items():
            path = self._folder / name
            if was is None:
                path.unlink(missing_ok=True)
            elif _bytes_of(path) != was:
                replace_file(path, was)


def undo(folder: RunFolder, before: Before | None) -> None:
    """Leaves no trace of an attempt that was refused: the run as it was `before`, or of a new one nothing."""
    if before is None:
        discard(folder.path)
    else:
        before.restore()


def _bytes_of(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def resumable(experiment: Experiment, path: Path) -> tuple[RunFolder, list[str]]:
    """The run in `path` and the keys in which the spec differs from its own; BadInput where that is too much."""
    spec = path / "experiment.yaml"
    if not spec.exists() or _killed_start(path):
        what = (
            "its start was killed, or is still at it; start the run again under its name" if _killed_start(path) else ""
        )
        raise BadInput(f"{path} is not a run: {what or 'it has no experiment.yaml'}")
    require_known(path)
    before = flat(load_experiment(spec).model_dump(mode="json"))
    now = flat(experiment.model_dump(mode="json"))
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    refused = [
        key for key in changed if key.split(".")[0] in ("model", "data", "training", "seed") and key not in RESUMABLE
    ]

    def said(key: str) -> str:
        return f"{key} ({before.get(key, 'not there')} then, {now.get(key, 'not there')} now)"

    if refused:
        raise BadInput(
            f"the spec differs from the run's in {', '.join(map(said, refused))}: a resumed run would mean nothing; "
            f"undo the change, or start a new run"
        )
    folder = RunFolder(path.resolve())
    if folder.read_run().get("status") == "completed":
        raise BadInput(f"{folder.path} is complete: there is nothing to go on with")
    return folder, [said(key) for key in changed]


def require_same_data(folder: RunFolder, tokenizer_path: Path, description: dict[str, Any]) -> None:
    """BadInput when the text or the tokenizer of a resumed run are no longer what they were."""
    kept = folder.path / "tokenizer.model"
    previous = folder.read_run().get("data") or {}
    sizes = ("train_tokens", "validation_tokens", "unigram_entropy_nats")
    same = all(previous.get(key) == description[key] for key in sizes)
    if kept.exists() and previous and not (same and kept.read_bytes() == tokenizer_path.read_bytes()):
        raise BadInput(
            f"the text or the tokenizer changed since {folder.path} was started ({previous.get('train_tokens')} "
            f"training tokens then, {description['train_tokens']} now): a resumed run would mean nothing; "
            "bring the old files back, or start a new run (where the tokenizer's bos is its eos, runs of earlier "
            "versions have two of them between documents)"
        )


def settle(folder: RunFolder) -> bool:
    """Writes down that an attempt was lost, if run.json says that it runs; the caller holds the claim. What is left of
    a checkpoint that was being written goes, however the attempt ended.

    Its end is the last thing that it wrote: what came after is nobody's work.
    """
    remove_partial(folder.path / "checkpoints")
    run = folder.read_run()
    attempts = [dict(attempt) for attempt in run.get("attempts") or []]
    open_ones = [attempt for attempt in attempts if attempt.get("status") == "running"]
    if run.get("status") != "running" and not open_ones:
        return False
    ended = min(_last_written(folder), time.time())  # a node's clock may be ahead
    ended = max([ended, *(attempt["started_unix_s"] for attempt in open_ones)])
    for attempt in open_ones:
        attempt |= {"status": "lost", "ended_unix_s": ended}
    folder.update_run(status="lost", attempts=attempts, ended_unix_s=ended, error=LOST)
    keep_skipped(folder)
    return True


def settle_if_dead(folder: RunFolder) -> bool:
    """`settle` for a run that nobody works on; False for one that lives."""
    try:
        claim = Claim(folder)
    except BadInput:
        return False
    try:
        return settle(folder)
    finally:
        claim.release()


def _last_written(folder: RunFolder) -> float:
    """When the run last wrote, in unix s: rank 0 of what it did, or a meter. Copied files have other
    times of their own: these stand only where nothing in them tells it."""
    from energy.ledger.frames import MINUTE, RAW, TICK, found
    from energy.ledger.seek import read_part

    marked = last_event(folder, lambda event: bool(_moments(event))) or {}
    times = [*_moments(marked), *_moments(folder.live_power() or {})]
    for ledger in folder.ledgers():
        for file, kind in ((ledger, MINUTE), (ledger.with_suffix(".raw"), RAW)):
            end, _ = read_part(file, kind, (math.inf, math.inf))
            times += [TICK.unpack_from(frame.payload)[2] for frame in found(end) if frame.kind == kind]
    if not times:
        places = ("metrics/*.jsonl", "energy/*", "live/*", "checkpoints/step-*/.metadata", "run.json")
        times = [path.stat().st_mtime for pattern in places for path in folder.path.glob(pattern)]
    return max(times, default=time.time())


def _moments(event: Mapping[str, Any]) -> list[float]:
    return [value for key, value in event.items() if key.endswith("_unix_s")]
