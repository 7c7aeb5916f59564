"""What the attempts of a run have taken of its budget before another one, and whether enough is left for that."""

from __future__ import annotations

import math
import time

from energy.accounting.held import held_s
from energy.carbon.series import carbon
from energy.runs import RunFolder
from energy.units import GRAM_PER_TONNE, JOULE_PER_KWH
from orchestrator.budget.watch import Grid, Limit, Spending, limits_of
from orchestrator.spec.budget import BudgetSpec
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.file import BadInput


def spent_before(folder: RunFolder, experiment: Experiment, world_size: int, attempt: int) -> Spending:
    """What the attempts before `attempt` took, by their ledgers: an unread stretch between two of them included.

    world_size: what an attempt held that does not say it.
    """
    from energy.accounting.account import account_run

    account, run = account_run(folder), folder.read_run()
    energy_j = math.fsum(each["energy_j"] for each in account.attempts if each["attempt"] < attempt)
    times = [each for each in run.get("attempts") or [] if each["attempt"] < attempt]
    until = account.end_unix_s or 0.0
    device_s = math.fsum(held_s(each, each.get("world_size") or world_size, until) for each in times)
    startup_j = account.phases.get("startup", {"energy_j": 0.0})["energy_j"] / max(1, len(times))
    stepped = {int(step.get("attempt") or 1) for step in folder.steps()}
    # One that ended before its first step was nothing but a start-up, and has no mark of one.
    startup_j = max([startup_j, *(e["energy_j"] for e in account.attempts if e["attempt"] not in stepped)])
    pue, grid = experiment.energy.pue, Grid(experiment)
    tonnes = None
    if pue is not None and grid.series is not None and account.curve is not None:
        told = carbon(account.curve[0].tolist(), (account.curve[1] * pue).tolist(), grid.series, grid.constant)
        # What the series does not cover is not known to the record; here it takes the mean, to be counted at all.
        uncovered_g = told.missing_j / JOULE_PER_KWH * grid.series.mean_g_per_kwh
        grams = told.covered_g + uncovered_g if told.carbon_g is None else told.carbon_g
        tonnes = grams / GRAM_PER_TONNE * (energy_j / account.energy_j if account.energy_j else 1.0)
    elif pue is not None and (g_per_kwh := grid.g_per_kwh(0.0)) is not None:
        tonnes = energy_j / JOULE_PER_KWH * pue * g_per_kwh / GRAM_PER_TONNE
    return Spending(energy_j, tonnes, device_s / 3600, startup_j)


def require_room(limits: list[Limit], before: Spending) -> None:
    """BadInput when what is left of a budget does not hold what the last start-ups took."""
    for limit in limits:
        spent, start = limit.spent(before), limit.amount(before.startup_j, 0.0)
        if spent + start < limit.limit:
            continue
        of, took = limit.words(limit.limit), limit.words(spent)
        more = f"--set '{limit.option(2 * max(spent, limit.limit))}'"
        if spent >= limit.limit:
            raise BadInput(
                f"energy.budget.{limit.key}: the run's attempts have taken {took} ({limit.of_what}), and the budget is "
                f"{of}: nothing is left to go on with; give it more, for example {more}"
            )
        raise BadInput(
            f"energy.budget.{limit.key}: of {of} ({limit.of_what}) the run's attempts have taken {took}, and a "
            f"start-up alone takes {limit.words(start)}: it would stop before its first step; give it more: {more}"
        )


def require_budget(experiment: Experiment, folder: RunFolder) -> None:
    """BadInput when the attempts of a run so far have left too little of its budget to go on with."""
    if experiment.energy.budget == BudgetSpec():
        return
    run = folder.read_run()
    workers = run.get("world_size") or experiment.cluster.workers
    before = spent_before(folder, experiment, workers, len(run.get("attempts") or []) + 1)
    require_room(limits_of(experiment, Grid(experiment).g_per_kwh(time.time())), before)
