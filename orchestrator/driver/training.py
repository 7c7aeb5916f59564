"""The training of one command, from the start of Ray to its end, and all that is looked after meanwhile."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from energy.runs import RunFolder
from orchestrator.data.prepare import PreparedCorpus
from orchestrator.driver import attempts as attempt_files
from orchestrator.driver.attempts import Claim
from orchestrator.driver.head_watch import HeadWatch
from orchestrator.driver.in_use import in_words, keep_choices
from orchestrator.driver.run_lock import RunTaken
from orchestrator.driver.run_status import RunStatus
from orchestrator.driver.run_watch import RunWatch
from orchestrator.driver.skipped import keep_skipped
from orchestrator.driver.stops import Stops
from orchestrator.models.folder import ModelFolder
from orchestrator.preflight.before_run import before_training
from orchestrator.screens.run import RunScreen
from orchestrator.spec.experiment import Experiment

if TYPE_CHECKING:
    from orchestrator.driver.supervise import Supervision


@dataclass(frozen=True, kw_only=True)
class Command:
    """What one `hoofprint run` is to do with a run that it alone works on.

    weights: to start from, where no checkpoint is. spec: the file, for the command to go on with. fresh: the run is
    new. started_unix_s: its corpus is made by then; what that took is no training time.
    """

    experiment: Experiment
    claim: Claim
    prepared: PreparedCorpus
    weights: ModelFolder | None
    spec: Path | None
    fresh: bool
    profile_steps: int
    started_unix_s: float = field(default_factory=time.time)

    @property
    def folder(self) -> RunFolder:
        return self.claim.folder


def train(
    command: Command, ending: RunStatus, screen: RunScreen, stops: Stops, without_ray: Callable[[str], None]
) -> bool:
    """True when all planned tokens were trained, False when it was asked to stop; raises what made it fail, and
    BudgetSpent when a budget stopped it. without_ray(said): ends the process where Ray's head is gone."""
    from orchestrator.cluster.capacity import choose_workers, unlike_the_spec
    from orchestrator.cluster.meters import describe_meters, joined, start_meters
    from orchestrator.cluster.training_metrics import TrainingMetrics
    from orchestrator.driver.launch import head_address, start_ray
    from orchestrator.driver.own_ray import leave_ray
    from orchestrator.driver.supervise import Supervision
    from orchestrator.ranks.job import Job

    experiment, folder = command.experiment, command.folder
    start_ray(experiment)
    meters: list[Any] = []
    supervision: Supervision | None = None
    leave_if_taken = partial(_leave_if_taken, command.claim, screen)
    # From the last of these to the first, each whatever befell another; of what is not there yet, as it is then.
    with ExitStack() as at_the_end:
        at_the_end.callback(leave_ray)
        at_the_end.callback(lambda: _end_metering(folder, meters, screen))
        at_the_end.callback(keep_skipped, folder)
        at_the_end.callback(lambda: keep_choices(folder, ending.attempt))
        at_the_end.callback(command.claim.free_space)  # before the last readings: a full disk still has room for them
        at_the_end.callback(lambda: supervision.abandon() if supervision is not None else None)
        at_the_end.callback(stops.finishing)
        stops.install()  # again: ray.init puts a handler of its own
        at_the_end.callback(HeadWatch(head_address(), without_ray).close)
        at_the_end.callback(leave_if_taken)  # before all that writes into the folder

        workers, device = choose_workers(experiment, attempt_files.first_held(folder.read_run()))
        if unlike := unlike_the_spec(experiment, workers, device):
            screen.note(f"note: {unlike}")
        shared = joined() and not experiment.cluster.exclusive
        meters = start_meters(folder.path, _metering(experiment, ending.attempt), shared)
        described = describe_meters(meters)
        run = folder.update_run(device_type=device, **metered(folder, described), **ending.held(workers))
        run |= {"meters": described}  # of those that are there now
        before_training(experiment, folder, device, screen)
        watch = RunWatch(experiment, folder, run, screen.note, shared)
        screen.opening(experiment, run)
        job = Job(
            str(folder.path),
            str(command.prepared.path),
            experiment.model_dump(mode="json"),
            command.started_unix_s,
            None if command.weights is None else str(command.weights.checkpoint),
            command.profile_steps,
        )
        published = TrainingMetrics(folder.path.name)
        beside = _Beside(command, device, ending, meters, watch, published, screen, stops, leave_if_taken)
        supervision = Supervision(
            experiment, folder, job, beside.again, ending.befell, beside.waited, beside.tick, screen.note
        )
        with screen.live(watch):
            complete = supervision.run(workers, device)
        if command.profile_steps:
            screen.note(_profile(folder))
        if not complete:
            watch.ended()
        return complete


@dataclass
class _Beside:
    """What the driver does while the ranks train: looks twice a second, and tells all of another attempt."""

    command: Command
    device: str
    ending: RunStatus
    meters: list[Any]
    watch: RunWatch
    metrics: Any  # TrainingMetrics, which loads Ray
    screen: RunScreen
    stops: Stops
    leave_if_taken: Callable[[], None]
    told: int = 0  # the attempt whose choices were said

    def again(self, error: str | None, workers: int) -> float:
        from orchestrator.cluster.meters import mark_attempt

        self.leave_if_taken()
        begun = self.ending.again(error, workers)
        mark_attempt(self.meters, self.ending.attempt)
        self.watch.restarted(self.ending.attempt, workers)
        return begun

    def waited(self, seconds: float) -> None:
        self.ending.waited(seconds)
        self.watch.budget.waited(seconds)

    def tick(self) -> None:
        self.leave_if_taken()
        self.watch.look()
        self.screen.update(self.watch)
        self.metrics.publish(self.watch.progress)
        if self.watch.trained:
            self.stops.gently()
        self._say_choices()
        for text in self.stops.notes():
            self.screen.note(text)

    def _say_choices(self) -> None:
        from orchestrator.cluster.capacity import ranks_apart

        attempt = self.ending.attempt
        if self.told >= attempt:
            return
        try:
            choices = keep_choices(self.command.folder, attempt)
        except OSError as error:  # a storage that is away for a moment, or full
            self.watch.unread(self.command.folder.run_file, error)
            return
        if choices is None:
            return
        self.told = attempt
        self.screen.note(f"  {in_words(choices)}")
        if apart := ranks_apart(self.command.experiment, self.device):
            self.screen.note(f"  {apart}")


def _leave_if_taken(claim: Claim, screen: RunScreen) -> None:
    """Ends the ranks and this process where another driver has the run: nothing more is written into its folder."""
    try:
        claim.require_held()
    except RunTaken as taken:
        try:
            for process in psutil.Process().children(recursive=True):  # a Ray of our own; one that was joined sees it
                with suppress(psutil.NoSuchProcess):
                    process.kill()  # a rank that is asked to end would leave a notice in the folder
            screen.failed([str(taken)])
            screen.release()
        finally:
            os._exit(1)


def _end_metering(folder: RunFolder, meters: list[Any], screen: RunScreen) -> None:
    from orchestrator.cluster.meters import stop_meters

    described, faults = stop_meters(meters)
    if described or faults:
        folder.update_run(**metered(folder, described, faults))  # with what came up while they ran
    for fault in faults.values():
        screen.note(fault)


def metered(
    folder: RunFolder, described: list[dict[str, Any]], faults: Mapping[str | None, str] | None = None
) -> dict[str, Any]:
    """{meters, hosts} for run.json: of all nodes that any attempt had, those that are lost or joined late included.

    faults: by node, of meters that did not end in order. They go to the warnings of that node's, else of the last:
    there the record reads them.
    """
    from orchestrator.cluster.meters import of_all_nodes

    run = folder.read_run()
    meters = of_all_nodes(run.get("meters") or [], described)
    for node, fault in (faults or {}).items() if meters else ():
        place = next((place for place, meter in enumerate(meters) if meter["node"] == node), -1)
        meters[place] = meters[place] | {"warnings": [*(meters[place].get("warnings") or []), fault]}
    earlier = run["hosts"] if run.get("meters") else []
    return {"meters": meters, "hosts": list(dict.fromkeys([*earlier, *(meter["node"] for meter in meters)]))}


def _metering(experiment: Experiment, attempt: int) -> dict[str, Any]:
    """How each node is metered (orchestrator.cluster.meters)."""
    energy = experiment.energy
    declared = {
        "baseline_w": energy.node_baseline,
        "baselines_w": energy.node_baselines,
        "baseline_source": energy.node_baseline_source or energy.node_baselines_source,
        "power_command": energy.node_power_command,
        "power_file": str(energy.node_power_file) if energy.node_power_file else None,
    }
    return {"interval_s": energy.sample_interval, "attempt": attempt, "declared": declared}


def _profile(folder: RunFolder) -> str:
    """The table of the profiler, and where the trace lies; or why there is none."""
    table = folder.path / "profile" / "profile.txt"
    if not table.exists():
        return "no profile was recorded: the training had no step after the first ones, or the disk refused it"
    return f"{table.read_text(encoding='utf-8')}  trace for ui.perfetto.dev: {table.with_name('trace.json.gz')}"
