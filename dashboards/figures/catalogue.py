"""Every figure by name: what it shows, what it needs, and how it is made from a run folder."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from dashboards.figures.drawing import Drawing, Missing
from dashboards.figures.fan import fan_drawing
from dashboards.figures.loss import loss_drawing
from dashboards.figures.paper import paper_drawing
from dashboards.figures.phases import phases_drawing
from dashboards.figures.places import places_drawing
from dashboards.figures.planned import Plan
from dashboards.figures.power import gpu_heat_drawing, power_drawing
from dashboards.figures.rates import rates_drawing
from dashboards.figures.spent import budget_of, spent_drawing
from dashboards.figures.tornado import tornado_drawing
from energy.accounting.account import LOST, Account, account_run, lost_windows
from energy.carbon.series import IntensitySeries
from energy.records.record import FILE_NAME, compute_record, series_of
from energy.runs import RunFolder
from energy.schemas import require_known


@dataclass
class Source:
    """A run as figures read it, each file when it is first asked for. Nothing is written.

    x: the axis of the loss; more_series: intensities of other places, by name.
    """

    run: RunFolder
    x: str = "energy"
    more_series: Mapping[str, IntensitySeries] = field(default_factory=dict)

    @cached_property
    def account(self) -> Account:
        return account_run(self.run)

    @cached_property
    def record(self) -> dict[str, Any]:
        """The record that lies there; computed where there is none."""
        path = Path(self.run.path) / FILE_NAME
        if not path.exists():
            return compute_record(self.run)
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: not JSON ({error}); write it again: hoofprint report {self.run.path}") from None
        require_known(record)
        return dict(record)

    @cached_property
    def steps(self) -> list[dict[str, Any]]:
        return self.run.steps()

    @cached_property
    def series(self) -> IntensitySeries | None:
        return series_of(self.run)

    def metered(self) -> Account:
        """The account. Missing where it has no power."""
        if not any(len(times) > 1 for _, times, _ in self.account.power):
            raise Missing("no power readings: the run's ledgers (energy/*.ledger) are missing or empty")
        return self.account

    def trained(self) -> list[dict[str, Any]]:
        """The steps. Missing where there is none."""
        if not self.steps:
            raise Missing("no training steps: metrics/rank-0.jsonl has none (a run of `measure`, or one that failed)")
        return self.steps

    def read_json(self, name: str, key: str) -> dict[str, Any] | None:
        """An object in a JSON file of the run; None where there is no such file or key."""
        path = Path(self.run.path) / name
        if not path.exists():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8")).get(key)
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{path}: not a JSON object ({error})") from None
        return found if isinstance(found, dict) else None

    def planned(self) -> dict[str, Any]:
        """What was planned before the run. Missing where it has no plan."""
        plan = self.read_json("plan.json", "plan")
        if plan is None:
            raise Missing("it has no plan (plan.json): it was started by something other than `hoofprint run`")
        return plan

    def spec(self) -> dict[str, Any]:
        path = Path(self.run.path) / "experiment.yaml"
        if not path.exists():
            return {}
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(f"{path}: not YAML ({error})") from None
        return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class Entry:
    """A figure of the catalogue: what it shows, what it needs; make: None for one that needs no single run.

    of_plan: how it is made of a plan alone, where it can be.
    """

    shows: str
    needs: str
    make: Callable[[Source], Drawing] | None
    of_plan: Callable[[Plan], Drawing] | None = None


def _power(source: Source) -> Drawing:
    phases = source.run.phases()
    again = [{"phase": LOST, "start_unix_s": start, "end_unix_s": end} for start, end in
             lost_windows(source.steps, phases)]  # fmt: skip
    return power_drawing(source.metered(), [*phases, *again], source.series)


def _phases(source: Source) -> Drawing:
    if not source.metered().energy_j > 0:
        raise Missing("no energy was booked: every device of the run shows 0 J")
    return phases_drawing(source.account)


def _loss(source: Source) -> Drawing:
    account = source.metered() if source.x == "energy" else source.account
    run = source.run.read_run()
    entropy = (run.get("data") or {}).get("unigram_entropy_nats")
    per_token = (run.get("model") or {}).get("flop_per_token")
    return loss_drawing(account, source.trained(), source.run.evaluations(), entropy, source.x, per_token)


def _spent(of: str) -> Callable[[Source], Drawing]:
    def make(source: Source) -> Drawing:
        plan, budget = source.read_json("plan.json", "plan"), budget_of(source.spec(), of)
        return spent_drawing(source.metered(), source.record, of, source.series, plan, budget)

    return make


def _places(source: Source) -> Drawing:
    own = {} if source.series is None else {source.series.geography or "this run's grid": source.series}
    return places_drawing(source.account, source.record, own | dict(source.more_series))


def _fan(source: Source) -> Drawing:
    plan = source.planned()  # first, because a run without one has nothing to be held against
    return fan_drawing(plan, source.account, source.record, source.steps)


FIGURES: dict[str, Entry] = {
    "power": Entry("power by node or device, events, the grid's intensity", "meter readings", _power),
    "phases": Entry("where the energy went: by phase, useful and lost", "meter readings", _phases),
    "energy-spent": Entry(
        "energy so far, against plan and budget", "meter readings", _spent("energy")
    ),
    "carbon-spent": Entry(
        "carbon so far, against plan and budget", "meter readings, PUE, grid intensity", _spent("carbon")
    ),
    "loss": Entry("loss against energy, tokens, FLOP or hours (--x)", "training steps", _loss),
    "rates": Entry(
        "tokens/s, MFU and energy per token over the run", "two training steps",
        lambda source: rates_drawing(source.account, source.trained(), source.record),
    ),
    "gpu-heat": Entry(
        "power of each GPU over time", "readings of GPUs", lambda source: gpu_heat_drawing(source.metered())
    ),
    "places": Entry("carbon by place and hour of the start", "a grid series (--series), PUE", _places),
    "tornado": Entry(
        "which assumption moves the plan's time, energy, carbon most", "a plan: PLAN.json, or a run with one",
        lambda source: tornado_drawing(source.planned()), tornado_drawing,
    ),
    "fan": Entry(
        "the plan's low to high over time, and what happened", "a plan: PLAN.json, or a run with one", _fan,
        fan_drawing,
    ),
    "llama-paper": Entry("Table 15 of the LLaMA paper and other grids", "no run", None),
    "pareto": Entry("loss against energy of several runs", "hoofprint compare RUN RUN", None),
}  # fmt: skip


def make_figure(name: str, source: Source | None, plan: Plan | None = None) -> Drawing:
    """The figure called `name` of a run, or of a plan alone.

    ValueError for an unknown one, with near names; Missing where its data is not there.
    """
    if name not in FIGURES:
        close = difflib.get_close_matches(name.lower(), [*FIGURES], n=3, cutoff=0.4)
        close += [known for known in FIGURES if name.lower() in known and name and known not in close]
        hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(FIGURES)}"
        raise ValueError(f"--figure {name!r}: no such figure; {hint}")
    if name == "llama-paper":
        return paper_drawing()
    make, of_plan = FIGURES[name].make, FIGURES[name].of_plan
    if plan is not None:
        if of_plan is None:
            plans = " and ".join(each for each, entry in FIGURES.items() if entry.of_plan is not None)
            raise ValueError(f"--figure {name} is not of a plan: of a plan there are {plans}")
        try:
            return of_plan(plan)
        except Missing as error:
            raise Missing(f"--figure {name} of the plan of {plan.get('name')}: {error}") from None
    if make is None:
        raise ValueError(f"--figure {name} is of several runs: hoofprint compare RUN RUN --figure {name} -o FILE")
    if source is None:
        of = "a run" if of_plan is None else "a plan or a run"
        raise ValueError(f"--figure {name} is of {of}: name its {'folder' if of_plan is None else 'file or folder'}")
    try:
        return make(source)
    except Missing as error:
        raise Missing(f"--figure {name} of {source.run.path.name}: {error}") from None
