"""A plan for whoever asks from a page: of an experiment in a file, or of a spec that was typed there."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.budget.plan import budgets_of_plan
from orchestrator.plan.plan import PlanOptions, make_plan
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.file import BadInput, load_experiment

TYPED = Path("spec.yaml")  # what the faults of a typed spec call it


def plan_asked(
    path: Path | None, text: str | None, changes: Sequence[str], budget: str | None, *, runs_dir: Path
) -> dict[str, Any]:
    """The document of `hoofprint plan --json`, with `start_with`: the command that would start it.

    path: the experiment's file; text: a typed spec, in its place. BadInput or ValueError with the words of the command
    line for a spec, a change or a budget that cannot be used. No file that the page names is read: only the
    experiment's own, and the grid's series and the tokenizer that it names itself.
    """
    named = path if path is not None and text is None else TYPED
    experiment = load_experiment(named, changes, text=text)
    own = _without_changes(path) if path is not None and text is None else None
    series = experiment.energy.grid_series
    if series is not None and (own is None or own.energy.grid_series != series):
        raise BadInput(f"energy.grid_series: {series} is read for an experiment's own file only: hoofprint plan has it")
    reads = own is not None and own.data.tokenizer.path == experiment.data.tokenizer.path
    plan = make_plan(experiment, runs_dir, PlanOptions(budget=budget, strict=False, reads_tokenizer=reads))
    options = [part for change in changes for part in ("--set", change)]
    start_with = shlex.join(["hoofprint", "run", str(named), *options])
    return plan | {"spec_budget": budgets_of_plan(experiment, plan), "start_with": start_with}


def _without_changes(path: Path) -> Experiment | None:
    """None where what the file says is not certain."""
    try:
        return load_experiment(path)
    except BadInput:
        return None
