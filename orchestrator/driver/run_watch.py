"""What the driver knows of its run while it goes on: progress, power, budget. It looks twice a second, tells the
trainer to stop when a budget says so, and keeps the run's live state for whoever else wants to see it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from energy.accounting.compute import peak_of
from energy.runs import STOP_FILE, RunFolder
from orchestrator.budget.before import spent_before
from orchestrator.budget.watch import (
    CLOSING_S,
    LOOK_EVERY_S,
    WARN_AT,
    BudgetSpent,
    Pace,
    Spending,
    State,
    Watch,
    forecast_words,
)
from orchestrator.cluster.nodes_now import NodesNow
from orchestrator.live import state as live_state
from orchestrator.live.progress import RunProgress, Tail
from orchestrator.live.stragglers import Stragglers
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.file import BadInput

STARTUP, ENDED = "startup", "ended"


class RunWatch:
    """One command's watch over its run; `run` is the contents of run.json once its meters run.

    shared: others use the cluster too, so that only the GPUs that the ranks hold count.
    """

    def __init__(
        self, experiment: Experiment, folder: RunFolder, run: dict[str, Any], say: Callable[[str], None], shared: bool
    ):
        self._experiment, self.folder, self._say, self._shared = experiment, folder, say, shared
        self._world_size, cuda = run["world_size"], run["device_type"] == "cuda"
        _require_gpu_hours(experiment, cuda)
        attempts = run["attempts"]
        self.attempt, self._first_attempt = len(attempts), len(attempts)
        before = Spending()
        if self.attempt > 1:
            before = spent_before(folder, experiment, self._world_size, self.attempt)
        # A killed attempt's counters went on alone: what they grew by is known when they are read again.
        self._recount = self.attempt > 1 and attempts[-2].get("status") == "lost"
        self._peak_flops = _peak_flops(run) if cuda else None
        self.progress = RunProgress(
            experiment.total_steps,
            experiment.training.batch_tokens,
            attempts[-1]["started_unix_s"],
            flop_per_token=run["model"]["flop_per_token"],
            peak_flops=self._peak_flops * self._world_size if self._peak_flops else None,
            energy_before_j=before.energy_j,
        )
        self._step_before = 0  # the last one of the commands before
        for event in folder.events() if self.attempt > 1 else ():
            if event.get("event") in ("step", "skipped"):
                self._step_before = event["step"]
            elif event.get("event") == "phase" and event.get("phase") == "evaluation":
                self.progress.last_s["evaluation"] = event["end_unix_s"] - event["start_unix_s"]
            elif event.get("event") == "checkpoint":
                self.progress.last_s["checkpoint"] = event["seconds"]
        self._tail = Tail(folder.metrics_file(0), self.unread)
        self._used: set[str] = set()
        self.nodes = NodesNow(folder, used=set() if shared else None, unread=self.unread)  # no rank holds a GPU yet
        self.budget = Watch(experiment, before, self._world_size, attempts[-1]["started_unix_s"])
        self.states: list[State] = []
        self.stopped_by: State | None = None
        self._stragglers = Stragglers(folder, self.unread)
        self._starting = True  # until this command's first step
        self.run_id = folder.path.name
        self._told: set[tuple[str, str]] = set()
        self._unread: set[int | None] = set()  # what the storage has answered instead, by errno
        self._file = live_state.LiveFile(folder)
        self.document: live_state.Document = {}  # as of the last look

    @property
    def trained(self) -> bool:
        """Whether there is something to lose."""
        return self.progress.step > 0

    @property
    def stragglers(self) -> list[dict[str, Any]] | None:
        """The ranks that the others wait for; None where no rank says anything."""
        return self._stragglers.found

    def restarted(self, attempt: int, world_size: int) -> None:
        """The same command goes on with another attempt; the meters count on."""
        self.attempt, self._world_size = attempt, world_size
        self.budget.resize(world_size)
        if self._peak_flops:
            self.progress.peak_flops = self._peak_flops * world_size
        self.progress.phase = STARTUP

    def look(self, now: float | None = None, last: bool = False) -> None:
        """Reads what is new; BudgetSpent when a limit is reached and no step is under way that could be the last.

        Durations go by a clock that nobody sets (now_s); both are `now` where that is given.
        """
        now, now_s = (time.time(), time.monotonic()) if now is None else (now, now)
        progress = self.progress
        for event in self._tail.read():
            if event.get("event") == "devices":
                self._used |= set(event.get("uuids") or ())
                self.nodes.used = self._used if self._shared else None
            if event.get("event") != "enter" or event.get("attempt", self.attempt) >= self.attempt:
                progress.feed(event)  # else of a rank that had not heard yet that its attempt was over
        if last:
            progress.phase = ENDED
        self.nodes.look(now_s)
        self._stragglers.look(now)
        power_w, read_s = self.nodes.power_w(now_s), self.nodes.read_s
        if power_w is None:
            progress.power_w = None
        elif read_s is not None and self.nodes.energy_j is not None:
            progress.feed_power({"power_w": power_w, "energy_j": self.nodes.energy_j, "read_s": read_s})
        if self._recount and self.trained:
            self._count_again()
        self.budget.feed(self.nodes.energy_until(now_s), now, now_s)
        if self._starting and progress.phase != STARTUP:
            self._starting = False
            self.budget.first_step()
        self.states = self.budget.states(self._pace(now_s), now)
        self.document = live_state.document(self, now, now_s)
        self._file.write(self.document, now, force=last)
        if not last:
            self._act(now)

    def unread(self, path: Path, error: OSError) -> None:
        """The storage did not show a file of the run, and is asked again at the next look: nothing is lost, and each
        reason said once."""
        if error.errno not in self._unread:
            self._unread.add(error.errno)
            self._say(f"{path} cannot be looked at ({error.strerror}): tried again, and the training goes on")

    def ended(self) -> None:
        """The training is over; BudgetSpent when it was the budget that ended it."""
        if self.stopped_by is not None:
            raise BudgetSpent(self.stopped_by, self.progress.step)

    def _count_again(self) -> None:
        """What the attempts before have taken, by what their devices' counters say now."""
        try:
            before = spent_before(self.folder, self._experiment, self._world_size, self._first_attempt)
        except OSError as error:
            self.unread(self.folder.energy_dir, error)
            return
        self._recount = False
        self.progress.energy_before_j = before.energy_j
        self.budget.correct(before)

    def _pace(self, now_s: float) -> Pace:
        progress, training = self.progress, self._experiment.training
        step_s = progress.step_s
        if step_s is None or progress.phase == STARTUP:
            ahead_s = LOOK_EVERY_S + CLOSING_S
        else:
            # A request that comes just after rank 0 has looked waits for what lies between two steps, and one more.
            until = progress.step + 1 + math.ceil(LOOK_EVERY_S / step_s)
            due = {"evaluation": training.evaluate_every_steps, "checkpoint": training.checkpoint_every_steps}
            between_s = sum(
                progress.last_s.get(phase, 0.0)
                for phase, every in due.items()
                if progress.phase == phase or until // every > progress.step // every
            )
            last_checkpoint_s = progress.last_s.get("checkpoint", 0.0)
            ahead_s = LOOK_EVERY_S + between_s + 2 * step_s + last_checkpoint_s + CLOSING_S
        return Pace(progress.step, progress.total_steps, self.nodes.held_w(now_s), step_s, ahead_s)

    def _act(self, now: float) -> None:
        for state in self.states:
            says, words = state.says, state.document()["words"]
            if says == "unknown" and self.trained:
                text = f"no meter has read any energy yet: the budget of {words['limit']} ({words['of']}) stops nothing"
                self._tell_once(state, "unknown", now, text)
            if state.share is not None and state.share >= WARN_AT and says != "due":
                text = f"{100 * state.share:.0f} % of the budget of {words['limit']} ({words['of']}) used"
                self._tell_once(state, "warned", now, text)
            over = forecast_words(state.document(), self.progress.total_steps)
            if says == "over" and over is not None:
                self._tell_once(state, "over", now, over)
            if says == "due" and self.stopped_by is None:
                self._stop(state, now)

    def _stop(self, state: State, now: float) -> None:
        if self.progress.phase == STARTUP:
            self.stopped_by = state
            raise BudgetSpent(state, self.progress.step or self._step_before, starting=self.attempt)
        reached = f"the budget of {state.limit.words(state.limit.limit)} is reached"
        try:
            (self.folder.path / STOP_FILE).touch(exist_ok=False)
        except FileExistsError:
            return  # it stops already, for another reason
        except OSError as error:  # a full disk: the next look asks again
            text = f"{reached}, and the trainer cannot be asked to stop yet ({error.strerror}): tried again"
            self._tell_once(state, "unasked", now, text)
            return
        self.stopped_by = state
        self._tell_once(state, "due", now, f"{reached}: checkpoint and report")

    def _tell_once(self, state: State, what: str, now: float, text: str) -> None:
        if (state.limit.key, what) in self._told:
            return
        self._told.add((state.limit.key, what))
        self.progress.events.append((now, text))
        self._say(text)


def _require_gpu_hours(experiment: Experiment, cuda: bool) -> None:
    for key in ("gpu_hours", "cost"):
        if not cuda and getattr(experiment.energy.budget, key) is not None:
            raise BadInput(
                f"energy.budget.{key}: no GPU was found, and a CPU has no GPU-hours: give a budget of energy "
                "or carbon, or cluster.device=cuda"
            )


def _peak_flops(run: dict[str, Any]) -> float | None:
    """Peak FLOP/s of one device, as the record will have it."""
    names = [s["name"] for meter in run["meters"] for s in meter["sensors"] if s["kind"] == "gpu"]
    peak, _ = peak_of((run.get("accounting") or {}).get("peak_flops"), names, run["device_type"] == "cuda")
    return float(peak["value"]) if peak else None
