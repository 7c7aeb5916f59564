"""The attempts of a training within one command: what is lost by no fault of its own is started again.

Ray Train could do so by itself (`FailureConfig`), but it does not tell a killed worker from a loss that is not finite,
counts failures over the whole run and not those without a step forward between them, and does not say which attempt
it is at. So each attempt is a `fit` of its own, which takes some seconds more. The meters go on meanwhile.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from energy.accounting.account import LOST
from energy.runs import RESIZE_FILE, STOP_FILE, RunFolder
from orchestrator.checkpoints.saved import complete, remove_partial
from orchestrator.cluster.capacity import choose_workers, ranks_to_lose
from orchestrator.driver.attempts import first_held
from orchestrator.driver.endings import last_line
from orchestrator.driver.failures import Failure, TrainingLost
from orchestrator.driver.launch import Training
from orchestrator.driver.places import Waiting
from orchestrator.live.progress import Tail
from orchestrator.ranks.job import Job
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.file import BadInput

Answer = TypeVar("Answer")
Other = TypeVar("Other")

POLL_S = 0.5
LOOK_S = 5.0  # how often Ray is asked for machines that come and go; a cloud announces it half a minute ahead
RETURN_S = 600.0  # how long a run waits for lost machines that it cannot do without


class Supervision:
    """Starts a training, and again when it was lost.

    again(error, workers): opens the next attempt in run.json and for the meters; its start in unix s. Without an error
    the one before was ended in order.
    befell(error): notes what happened to the attempt that is open, however the run ends then; None where it is tried
    once more. waited(seconds): so long nobody held its workers.
    tick(): called about twice a second. say(text): for people.
    """

    def __init__(
        self,
        experiment: Experiment,
        folder: RunFolder,
        job: Job,
        again: Callable[[str | None, int], float],
        befell: Callable[[str | None], None],
        waited: Callable[[float], None],
        tick: Callable[[], None],
        say: Callable[[str], None],
    ):
        self._experiment, self._folder, self._job = experiment, folder, job
        self._again, self._befell, self._waited, self._tick, self._say = again, befell, waited, tick, say
        run = folder.read_run()
        self._attempt, self._held = len(run["attempts"]), first_held(run)
        self._training: Training | None = None
        self._checkpoints_dir = folder.path / "checkpoints"
        self._failures, self._saved = 0, self._checkpoints()
        self._resize = folder.path / RESIZE_FILE
        self._resize.unlink(missing_ok=True)
        self._waits = False  # for room; said once
        self._unanswered: set[tuple[str, type]] = set()  # what Ray or the storage did not say, and why
        self._room_for: int | None = None  # workers, where it was ended to go on with more
        self._tail = Tail(folder.metrics_file(0))

    def run(self, workers: int, device: str) -> bool:
        """True when all was trained, False when it was asked to stop, also where a worker was lost meanwhile; raises
        what made the last attempt fail."""
        self._held = self._held or (workers, device)
        while True:
            training = self._train(workers, device)
            failure = None
            if training.error is not None:
                failure = Failure.of(training.error, self._folder, self._attempt)
                self._befell(failure.said)
                self._require_another_start(failure, training.error)
            elif training.complete or not self._makes_room():
                return bool(training.complete)
            chosen = self._next_workers(failure)
            if chosen is None:
                return False
            before, (workers, device) = workers, chosen
            if failure is None or not failure.never_began or workers != before:
                self._begin(failure, before, workers)
                continue
            self._befell(None)
            if not self._waits:
                self._say(f"{failure.said}, {workers} on {device}: waiting until others leave it")
            self._waits = True

    def _train(self, workers: int, device: str) -> Training:
        """One attempt, to its end, or to that of Ray Train's patience with a cluster that has no room for it."""
        self._training = training = Training(self._job, workers, device, str(self._folder.path / "logs"))
        has_room = partial(self._asked, "whether it holds machines for the ranks", training.has_room)
        waiting = Waiting(has_room, self._waited, before=self._waits)
        look = time.monotonic() + LOOK_S
        training.start()
        training.join(timeout=POLL_S)
        while training.is_alive():
            self._tell()
            self._tick()
            waiting.look()
            if time.monotonic() >= look:
                look += LOOK_S
                self._look_around(workers)
            training.join(timeout=POLL_S)
        self._tell()
        waiting.look()
        training.give_back()
        return training

    def _begin(self, failure: Failure | None, before: int, workers: int) -> None:
        """Opens the next attempt."""
        started = self._again(failure.said if failure else None, workers)
        if failure:
            close_attempt(self._folder, self._attempt, started)
        self._reached(self._checkpoints_dir, partial(remove_partial, self._checkpoints_dir), None)
        self._reached(self._resize, self._take_resize, None)  # of ranks that were killed before they answered it
        self._attempt, self._waits = self._attempt + 1, False
        self._job = replace(self._job, started_unix_s=started)
        others = f" with {workers} workers instead of {before}" if workers != before else ""
        self._say(f"attempt {self._attempt} begins{others}{f': {failure.said}' if failure else ''}")

    def _look_around(self, workers: int) -> None:
        """Asks the trainer to end in order where ranks will lose their machine, or where an elastic run can have more
        workers than it has."""
        cluster = self._experiment.cluster
        if self._asked_to_stop or self._reached(self._resize, self._resize.exists, True):
            return
        lost = self._asked("which machines are to be taken away", ranks_to_lose)
        wants = not lost and cluster.min_workers is not None and workers < cluster.workers
        free = partial(choose_workers, self._experiment, self._held, free=True)
        chosen = self._asked("what room there is", free) if wants else None
        grows = chosen is not None and chosen[0] > workers
        if not (lost or grows) or not self._reached(self._resize, self._leave_resize, False):
            return
        if lost:
            self._say(f"the machine of {lost} of {workers} ranks is to be taken away: a checkpoint, and on elsewhere")
        elif chosen is not None:
            self._say(f"there is room for {chosen[0]} workers again: a checkpoint, and on with them")
            self._room_for = chosen[0]

    def _asked(self, what: str, ask: Callable[[], Answer]) -> Answer | None:
        """Ray's answer, without which a training goes on; None where it has none, and why is said once."""
        try:
            return ask()
        except BadInput:  # too little room is an answer
            return None
        except Exception as error:  # Ray raises many unrelated types here
            if (what, type(error)) not in self._unanswered:
                self._unanswered.add((what, type(error)))
                self._say(f"Ray does not say {what} ({type(error).__name__}: {last_line(str(error))})")
            return None

    def _makes_room(self) -> bool:
        """Whether a training that ended in order did so for other machines, and not because the run is to stop."""
        # It ended for one of two files: where this one is not to be seen, the other decides.
        why = self._reached(self._resize, self._take_resize, "")
        if why and not self._asked_to_stop:
            self._say(why)
        return why is not None and not self._asked_to_stop

    def _leave_resize(self) -> bool:
        self._resize.touch()
        return True

    def _take_resize(self) -> str | None:
        """Takes `resize` away; what a rank wrote into it (driver.notices), None where there was none."""
        why = self._resize.read_text(encoding="utf-8").strip() if self._resize.exists() else None
        self._resize.unlink(missing_ok=True)
        return why

    def _reached(self, path: Path, work: Callable[[], Answer], otherwise: Other) -> Answer | Other:
        """What comes of the work; `otherwise` where the storage refuses it for now, which is said once."""
        try:
            return work()
        except OSError as error:
            if (str(path), type(error)) not in self._unanswered:
                self._unanswered.add((str(path), type(error)))
                why = error.strerror or error
                self._say(f"{path} cannot be seen or changed ({why}): tried again, and the training goes on")
            return otherwise

    def abandon(self) -> None:
        if self._training is not None:
            self._training.abandon()

    def _tell(self) -> None:
        """Says what rank 0 wants people to hear of."""
        for event in self._tail.read():
            if event.get("event") == "resumed" and event["attempt"] > 1:
                since = f"step {event['step']}" if event["step"] else "the start, for want of a checkpoint"
                self._say(f"attempt {event['attempt']} goes on from {since}")
            elif event.get("event") == "warning":
                self._say(event["said"])
            elif event.get("event") == "skipped":
                of = f"sequences {event['first_sequence']:,} to {event['last_sequence']:,}"
                self._say(f"step {event['step']:,} was skipped: {event['reason']} ({of})")

    def _require_another_start(self, failure: Failure, error: Exception) -> None:
        """Raises where another attempt would end like this one, or where one too many has."""
        saved = self._reached(self._checkpoints_dir, self._checkpoints, self._saved)
        if not failure.never_began:
            self._failures = 1 if saved - self._saved else self._failures + 1
        self._saved = saved
        if not failure.transient:
            raise error
        most = self._experiment.cluster.max_failures
        if self._failures > most and not self._asked_to_stop:
            times = f", {self._failures} times without a new checkpoint" if most else ""
            raise TrainingLost(f"{failure.said}{times} (cluster.max_failures is {most})") from error

    def _next_workers(self, failure: Failure | None) -> tuple[int, str] | None:
        """(workers, device) of the next attempt; None when the run is to stop. Waits for lost machines where those that
        are left are too few."""
        why = f"{failure.said}; " if failure else ""
        until = time.monotonic() + RETURN_S
        waiting = False
        while True:
            if self._asked_to_stop:
                self._say(f"{'' if waiting else why}the run is to stop: no other attempt begins")
                return None
            try:
                return self._room(failure)
            except BadInput as too_few:
                if not waiting:
                    waits = f"{why}waiting for machines to come back: {too_few}"
                    self._say(waits)
                    self._befell(waits)
                waiting = True
                if time.monotonic() > until:
                    raise TrainingLost(f"{why}none came back: {too_few}") from None
            since = time.monotonic()
            time.sleep(POLL_S)
            self._tick()
            self._waited(time.monotonic() - since)

    def _room(self, failure: Failure | None) -> tuple[int, str]:
        """(workers, device) to ask Ray for. After it had no room, a run with a range takes what is free, if that is
        enough; else it asks for all that the machines have, until others leave them."""
        if failure is not None and failure.never_began and self._experiment.cluster.min_workers is not None:
            with contextlib.suppress(BadInput):
                return choose_workers(self._experiment, self._held, free=True)
        workers, device = choose_workers(self._experiment, self._held)
        if failure is None and self._room_for is not None:  # the rest of the machines is others'
            workers = min(workers, self._room_for)
        self._room_for = None
        return workers, device

    @property
    def _asked_to_stop(self) -> bool:
        stop = self._folder.path / STOP_FILE
        return self._reached(stop, stop.exists, False)

    def _checkpoints(self) -> set[tuple[str, int]]:
        """The complete ones, each with when it was written: one that cannot be read keeps the newest step."""
        return {(path.name, (path / ".metadata").stat().st_mtime_ns) for path in complete(self._checkpoints_dir)}


def close_attempt(folder: RunFolder, attempt: int, ended_unix_s: float) -> None:
    """Marks the time from the last mark of a dead attempt to its end as lost: rank 0 could not say so any more."""
    ends = [
        event.get("end_unix_s", event.get("time_unix_s"))
        for event in folder.events()
        if event.get("attempt") == attempt and event.get("event") in ("phase", "step", "skipped", "evaluation")
    ]
    start = max((end for end in ends if end is not None), default=None)
    if start is None or start >= ended_unix_s:
        return
    mark = {"attempt": attempt, "event": "phase", "phase": LOST, "start_unix_s": start, "end_unix_s": ended_unix_s}
    # One write, after a line that a kill may have torn.
    file = os.open(folder.metrics_file(0), os.O_WRONLY | os.O_APPEND)
    try:
        os.write(file, b"\n" + json.dumps(mark).encode() + b"\n")
    finally:
        os.close(file)
