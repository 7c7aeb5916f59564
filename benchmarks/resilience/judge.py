"""What a run that was killed now and then must be: the same losses, all of its energy once, and a record that holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.resilience.stand_in import StandIn, percent_of_truth
from energy.ledger.readings import read_sessions
from energy.records.verify import verify_run
from energy.runs import RunFolder
from orchestrator.checkpoints.saved import complete, damage, newest_complete, step_of

INTERVAL_STEPS = 25
ENERGY_PERCENT = 0.5
INSIDE_SHARE = 10  # percent of the kills that are to come inside a checkpoint


@dataclass(frozen=True)
class Kill:
    """A kill as it came. moment: the one that was drawn.

    Seen just before it: `step`, the newest one that was trained; `whole_step`, that of the newest whole checkpoint, 0
    where there is none; `partial`, whether one was being written.
    """

    kind: str
    moment: str
    at_unix_s: float
    step: int
    whole_step: int
    partial: bool


@dataclass(frozen=True)
class Reference:
    """The spec, and the losses of the run that nobody killed."""

    spec: Path
    losses: dict[int, float]


def judge(run: RunFolder, kills: Sequence[Kill], reference: Reference, nodes: Sequence[StandIn]) -> dict[str, Any]:
    """Figures of a finished run, and in `wrong` what is not as it should be."""
    wrong = []
    losses = {step["step"]: step["loss"] for step in run.steps()}
    equal = losses == reference.losses
    if not equal:
        wrong.append(_difference(losses, reference.losses))
    percents = percent_of_truth(run, nodes)
    wrong += [f"{uuid}: {percent:.2f} % of its energy" for uuid, percent in percents.items() if not _near(percent)]
    verified, faults = _verified(run)
    wrong += faults
    wrong += [said for path in complete(run.path / "checkpoints") if (said := damage(path)) is not None]
    resumed = [kill for kill in kills if _went_on(run, kill)]
    wrong += [f"after the kill of a {kill.kind} nothing went on" for kill in kills if kill not in resumed]
    wrong += resumed_wrongly(run, kills, INTERVAL_STEPS)
    attempts = run.read_run()["attempts"]
    if any(attempt["status"] == "running" for attempt in attempts) or attempts[-1]["status"] != "completed":
        wrong.append(f"its attempts are {[attempt['status'] for attempt in attempts]}")
    return {
        "losses_equal": equal,
        "percent_of_truth": percents,
        "verified": verified,
        "resumed": len(resumed),
        "attempts": [attempt["status"] for attempt in attempts],
        "steps_lost": steps_lost(run, kills),
        "wrong": wrong,
    }


def _verified(run: RunFolder) -> tuple[bool, list[str]]:
    try:
        found = verify_run(run)
    except ValueError as error:  # nothing of it was metered
        return False, [f"verify: {error}"]
    faults = [f"verify: {check.name}: {fault}" for check in found.checks for fault in check.faults]
    return found.ok, faults + [f"verify: {check.name}: {check.note}" for check in found.checks if check.ok is False]


def inside_checkpoint(kill: Mapping[str, Any]) -> bool:
    """Whether a kill came while a checkpoint was being written, by who writes it or leads who does: no meter."""
    return bool(kill.get("partial")) and kill["kind"] != "meter"


def inside_wanted(kills: Sequence[Mapping[str, Any]]) -> int:
    """How many of these are to have come inside a checkpoint: their share, and one where any was meant to."""
    meant = any(kill["moment"] == "checkpoint" and kill["kind"] != "meter" for kill in kills)
    return max(len(kills) * INSIDE_SHARE // 100, int(meant))


def seen_of_checkpoints(run: RunFolder) -> dict[str, Any]:
    """`partial` and `whole_step` of a kill that comes now. The partial one first: it may become whole in between."""
    folder = run.path / "checkpoints"
    partial = any(folder.glob(".step-*.partial"))
    newest = newest_complete(folder)
    return {"partial": partial, "whole_step": step_of(newest) if newest is not None else 0}


def resumed_wrongly(run: RunFolder, kills: Sequence[Kill], interval_steps: int) -> list[str]:
    """Attempts that overlooked a checkpoint which was whole at a kill before them, and kills that cost too much."""
    wrong = []
    for attempt, (first, *_) in _steps_by_attempt(run).items():
        whole = max((kill.whole_step for kill in kills if kill.at_unix_s < first["time_unix_s"]), default=0)
        if first["step"] <= whole:
            wrong.append(f"attempt {attempt} began at step {first['step']}, though checkpoint step-{whole} was whole")
    return wrong + [
        f"attempt {each['attempt']} lost {each['steps']} steps"
        for each in steps_lost(run, kills)
        if not _few(each, interval_steps)
    ]


def steps_lost(run: RunFolder, kills: Sequence[Kill]) -> list[dict[str, Any]]:
    """Of each attempt that another followed: how many of its steps were done again, how many of these there were when
    the kill came (ranks whose driver is killed train on for a moment), and whether a checkpoint was seen being written.
    """
    by_attempt = _steps_by_attempt(run)
    found = []
    for (number, own), following in zip(by_attempt.items(), list(by_attempt.values())[1:], strict=False):
        times = own[0]["time_unix_s"], following[0]["time_unix_s"]
        kill = next((kill for kill in kills if kill.kind != "meter" and times[0] <= kill.at_unix_s < times[1]), None)
        last, from_step = own[-1]["step"], following[0]["step"] - 1
        found.append(
            {
                "attempt": number,
                "steps": last - from_step,
                "when_killed": (min(last, kill.step) if kill else last) - from_step,
                "writing": kill is not None and kill.partial,
            }
        )
    return found


def _few(lost: dict[str, Any], interval_steps: int) -> bool:
    """At most an interval; what was trained while the checkpoint at its end was being written may come on top."""
    most = 2 * interval_steps - 1 if lost["writing"] else interval_steps
    return lost["steps"] >= 0 and lost["when_killed"] <= most


def _steps_by_attempt(run: RunFolder) -> dict[int, list[dict[str, Any]]]:
    """The steps of each attempt that trained, in order."""
    by_attempt: dict[int, list[dict[str, Any]]] = {}
    for step in run.steps():
        by_attempt.setdefault(step["attempt"], []).append(step)
    return dict(sorted(by_attempt.items()))


def _near(percent: float) -> bool:
    return abs(percent - 100) <= ENERGY_PERCENT


def _went_on(run: RunFolder, kill: Kill) -> bool:
    """Whether it was trained on, and every node was metered on."""
    newest = [max(session.span()[1] for session in read_sessions(path)[0]) for path in run.ledgers()]
    metered = bool(newest) and min(newest) > kill.at_unix_s
    return metered and any(step["time_unix_s"] > kill.at_unix_s for step in run.steps())


def _difference(losses: dict[int, float], reference: dict[int, float]) -> str:
    other = sorted(step for step in losses.keys() & reference.keys() if losses[step] != reference[step])
    if other:
        first = other[0]
        return f"{len(other)} losses differ; that of step {first} is {losses[first]}, and was {reference[first]}"
    too_many, missing = losses.keys() - reference.keys(), reference.keys() - losses.keys()
    return f"{len(missing)} steps are missing, {len(too_many)} too many"
