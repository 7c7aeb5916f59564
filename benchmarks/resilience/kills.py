"""Random kills of workers, drivers, meters and nodes at random moments; every run goes on to its end, and is judged.

Which process, and when, is drawn from the seed and the number of the run alone, so that a run that fails can be
repeated. The moments of the machine cannot: what is drawn is how long after the training went on again the kill comes,
or that it comes while a checkpoint is being written, or while the attempt still starts.
"""

from __future__ import annotations

import math
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from tiny import losses, train, write_spec

from benchmarks.resilience.judge import (
    INTERVAL_STEPS,
    Kill,
    Reference,
    inside_checkpoint,
    inside_wanted,
    judge,
    seen_of_checkpoints,
)
from benchmarks.resilience.places import METER, RANK, OwnRay, Place, Run, TwoNodes, wait_until

KINDS = {"worker": 3, "meter": 4, "driver": 2}  # drawn so often; a meter's death stops nobody
NODE = {"node": 2}  # where there are two
MOMENTS = {"training": 6, "checkpoint": 4, "starting": 2}
TARGET_KILLS = 100
KILLS_A_RUN = 5
IN_VAIN = 3  # runs without a kill, after which something is wrong with them all
OVERRIDES = [
    f"training.checkpoint_every_steps={INTERVAL_STEPS}",
    "training.evaluate_every_steps=500",
    "cluster.max_failures=10",  # kills while an attempt starts leave no new checkpoint between them
]
LONGEST_S = 3.0  # of training before a kill
LONGEST_START_S = 6.0
GOES_ON_S = 240.0
BACK_S = 3.0  # until a node that was killed is there again


@dataclass(frozen=True)
class Planned:
    """A kill as it was drawn. victim: which of several processes, as a share of their number."""

    kind: str
    moment: str
    after_s: float
    victim: float


def plan(seed: int, number: int, kinds: dict[str, int], kills: int = KILLS_A_RUN) -> list[Planned]:
    draw = random.Random(f"{seed} {number}")
    planned = []
    for _ in range(kills):
        [kind] = draw.choices(list(kinds), list(kinds.values()))
        [moment] = draw.choices(list(MOMENTS), list(MOMENTS.values()))
        after_s = draw.uniform(0.0, LONGEST_START_S if moment == "starting" else LONGEST_S)
        planned.append(Planned(kind, moment, after_s, draw.random()))
    return planned


class Victim:
    """Kills what is planned for one run."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._since = (0, 0)  # the attempt and step after which the training goes on

    def kill(self, planned: Planned) -> Kill | None:
        """Waits for the moment, kills, and sees to it that the run can go on; None where the run ended before."""
        seen = self._strike(planned) if self._await(planned) else None
        if seen is None:
            return None
        kill = Kill(planned.kind, planned.moment, time.time(), **seen)
        if planned.kind == "driver":
            self._run.start()
        elif planned.kind == "node":
            assert isinstance(self._run.place, TwoNodes)
            time.sleep(BACK_S)
            self._run.place.add_second()
        return kill

    def _await(self, planned: Planned) -> bool:
        run = self._run
        if planned.moment == "starting":
            # A driver that is killed before there is a run has nothing to go on with.
            ready = wait_until(lambda: run.exit_code is not None or self._there(planned), GOES_ON_S, 0.2)
        else:
            ready = wait_until(lambda: run.exit_code is not None or run.newest_step() > self._since, GOES_ON_S)
        time.sleep(planned.after_s)
        return ready and run.exit_code is None

    def _there(self, planned: Planned) -> bool:
        if planned.kind == "driver":
            return bool(self._run.attempts())
        return bool(self._run.processes(METER if planned.kind == "meter" else RANK))

    def _look(self) -> dict[str, Any]:
        """What a kill has of the moment just before it."""
        return {**seen_of_checkpoints(self._run.folder), "step": self._run.newest_step()[1]}

    def _strike(self, planned: Planned) -> dict[str, Any] | None:
        """What was seen just before the kill; None where there was nobody to kill."""
        run = self._run
        strike = self._find(planned)  # before the checkpoint begins, which may be whole in less time than this takes
        if planned.moment == "checkpoint":
            folder = run.folder.path / "checkpoints"
            wait_until(lambda: run.exit_code is not None or any(folder.glob(".step-*.partial")), GOES_ON_S, 5e-4)
        attempt, step = run.newest_step()
        # A step may still be written down after the kill that ends its attempt.
        self._since = (attempt, step) if planned.kind == "meter" else (attempt + 1, 0)
        if strike is None or run.exit_code is not None:
            return None
        seen = self._look()
        try:
            strike()
        except psutil.NoSuchProcess:
            return None
        return seen

    def _find(self, planned: Planned) -> Callable[[], None] | None:
        """What kills the one that was drawn; None where there is nobody."""
        run = self._run
        if planned.kind == "driver":
            return run.kill_driver
        if planned.kind == "node":
            assert isinstance(run.place, TwoNodes)
            return run.place.kill_second
        processes = sorted(run.processes(METER if planned.kind == "meter" else RANK), key=lambda each: each.pid)
        if not processes:
            return None
        return partial(processes[int(planned.victim * len(processes))].send_signal, signal.SIGKILL)


def uninterrupted(work: Path, steps: int) -> Reference:
    """The spec of all runs, trained to its end by two ranks without Ray, and what its losses are."""
    spec = write_spec(work, workers=2, steps=steps)
    return Reference(spec, losses(train(spec, work / "uninterrupted", world=2, overrides=OVERRIDES)))


def one_run(place: Place, planned: Sequence[Planned], reference: Reference, path: Path) -> dict[str, Any]:
    """A run with these kills, to its end, and what is to be said of it."""
    run = Run(place, path, reference.spec, OVERRIDES)
    run.start()
    victim, kills = Victim(run), []
    for each in planned:
        kill = victim.kill(each)
        if kill is None:
            if run.exit_code is not None:
                break  # it has ended: what is left of the plan finds nobody
            continue
        kills.append(kill)
    code = run.end()
    wrong = [] if code == 0 else [f"its exit code is {code}: {_last_words(run.log)}"]
    judged = judge(run.folder, kills, reference, place.nodes)
    return judged | {"place": place.name, "kills": [asdict(kill) for kill in kills], "wrong": wrong + judged["wrong"]}


def many(
    kills: int,
    seed: int,
    reference: Reference,
    work: Path,
    first_run: int = 0,
    most_minutes: float = math.inf,
    before: Mapping[str, Any] | None = None,
    keep: Callable[[dict[str, Any]], None] = lambda so_far: None,
) -> dict[str, Any]:
    """So many kills over as many runs as it takes, in turns in a Ray of their own and on a cluster; fewer, if no run is
    begun any more because `most_minutes` are over. before: what an earlier call returned, whose runs these go on from.
    keep: given after each run what will be returned if none follows.
    """
    runs: list[dict[str, Any]] = list(before["runs"]) if before else []
    minutes, sittings = (before["minutes"], before.get("sittings", 1)) if before else (0.0, 0)
    began_s = time.monotonic()

    def so_far() -> dict[str, Any]:
        about = {"minutes": minutes + _minutes(began_s), "sittings": sittings + 1, "target_kills": TARGET_KILLS}
        return again({**about, "seed": seed, "runs": runs})

    places: list[Place] = [OwnRay(work / "own"), TwoNodes(work / "two")]
    try:
        while (done := sum(len(run["kills"]) for run in runs)) < kills and _minutes(began_s) < most_minutes:
            number = first_run + len(runs)
            place = places[number % len(places)]
            kinds = KINDS | (NODE if isinstance(place, TwoNodes) else {})
            planned = plan(seed, number, kinds, min(KILLS_A_RUN, kills - done))
            run = {"run": number, **one_run(place, planned, reference, work / "runs" / f"run-{number}")}
            runs.append(run)
            if not any(each["kills"] for each in runs[-IN_VAIN:]):
                raise RuntimeError(f"no process was found to kill in {IN_VAIN} runs: {run['wrong']}")
            ends = ", ".join(f"{kill['kind']} ({kill['moment']})" for kill in run["kills"])
            print(f"run {number} on {place.name}: {ends}: {'; '.join(run['wrong']) or 'as it should be'}", flush=True)
            keep(so_far())
    finally:
        for place in places:
            place.close()
    return so_far()


def _minutes(since_s: float) -> float:
    return (time.monotonic() - since_s) / 60


def again(part: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a result with what follows from its runs, as it is counted and judged now."""
    told = summary(part["runs"])
    return {**part, **told, "met": told["met"] and told["kills"] >= part["target_kills"]}


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    kills = [kill for run in runs for kill in run["kills"]]
    percents = [percent for run in runs for percent in run["percent_of_truth"].values()]
    lost = [each for run in runs for each in run["steps_lost"]]
    inside, wanted = sum(map(inside_checkpoint, kills)), inside_wanted(kills)
    return {
        "kills": len(kills),
        "by_kind": dict(Counter(kill["kind"] for kill in kills)),
        "by_moment": dict(Counter(kill["moment"] for kill in kills)),
        "inside_a_checkpoint": inside,
        "inside_wanted": wanted,
        "resumed": sum(run["resumed"] for run in runs),
        "runs_with_equal_losses": sum(run["losses_equal"] for run in runs),
        "runs_verified": sum(run["verified"] for run in runs),
        "runs_ended_well": sum(not run["wrong"] for run in runs),
        "run_count": len(runs),
        "percent_of_truth": [min(percents), max(percents)],
        "checkpoint_interval_steps": INTERVAL_STEPS,
        "most_steps_lost": max((each["steps"] for each in lost), default=0),
        "met": bool(runs) and all(not run["wrong"] for run in runs) and inside >= wanted,
    }


def _last_words(log: Path) -> str:
    return " | ".join(log.read_text(errors="replace").splitlines()[-4:])
