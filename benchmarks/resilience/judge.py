"""What a run that was killed now and then must be: the same losses, all of its energy once, and a record that holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.resilience.stand_in import StandIn, percent_of_truth
from energy.ledger.readings import read_sessions
from energy.records.verify import verify_run
from energy.runs import RunFolder
from orchestrator.checkpoints.saved import complete, damage

INTERVAL_STEPS = 25
ENERGY_PERCENT = 0.5


@dataclass(frozen=True)
class Kill:
    """A kill as it came. step: the newest one that was trained before it."""

    kind: str
    moment: str
    at_unix_s: float
    step: int


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
    verified = verify_run(run)
    wrong += [f"verify: {check.name}: {fault}" for check in verified.checks for fault in check.faults]
    wrong += [f"verify: {check.name}: {check.note}" for check in verified.checks if check.ok is False]
    wrong += [said for path in complete(run.path / "checkpoints") if (said := damage(path)) is not None]
    resumed = [kill for kill in kills if _went_on(run, kill)]
    wrong += [f"after the kill of a {kill.kind} nothing went on" for kill in kills if kill not in resumed]
    lost = steps_lost(run, INTERVAL_STEPS)
    wrong += [
        f"attempt {each['attempt']} lost {each['steps']} steps" for each in lost if not few_lost(each, INTERVAL_STEPS)
    ]
    attempts = run.read_run()["attempts"]
    if any(attempt["status"] == "running" for attempt in attempts) or attempts[-1]["status"] != "completed":
        wrong.append(f"its attempts are {[attempt['status'] for attempt in attempts]}")
    return {
        "losses_equal": equal,
        "percent_of_truth": percents,
        "verified": verified.ok,
        "resumed": len(resumed),
        "attempts": [attempt["status"] for attempt in attempts],
        "steps_lost": lost,
        "wrong": wrong,
    }


def steps_lost(run: RunFolder, interval_steps: int) -> list[dict[str, Any]]:
    """Of each attempt that another followed: how many of its steps were done again, and whether the checkpoint that
    would have saved the most of them was still being written when it ended."""
    by_attempt: dict[int, list[int]] = {}
    for step in run.steps():
        by_attempt.setdefault(step["attempt"], []).append(step["step"])
    numbers = sorted(by_attempt)
    found = []
    for number, following in zip(numbers, numbers[1:], strict=False):
        last, from_step = by_attempt[number][-1], by_attempt[following][0] - 1
        found.append({"attempt": number, "steps": last - from_step, "writing": last - from_step >= interval_steps})
    return found


def few_lost(lost: dict[str, Any], interval_steps: int) -> bool:
    """At most an interval; what was trained while the checkpoint at its end was being written may come on top."""
    return 0 <= lost["steps"] < (2 if lost["writing"] else 1) * interval_steps


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
