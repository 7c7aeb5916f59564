"""A run's budget while it runs: what is spent, what the whole would take, and when the trainer must be told to stop.

What counts is what the record will count: all attempts, the start-up, evaluations, checkpoints and the end included;
embodied carbon is not. The trainer ends at a step boundary, then writes a checkpoint, then Ray is closed: what that
takes at the present power is held back, so that the run's whole footprint, and not only its training, fits. The request
goes out when what was spent and what is held back reach the limit together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from energy.carbon.series import IntensitySeries
from energy.carbon.series_file import read_series
from energy.human import NONE, digits, human_carbon, human_energy
from energy.units import GRAM_PER_TONNE, JOULE_PER_KWH
from orchestrator.spec.budget import money
from orchestrator.spec.experiment import Experiment

WARN_AT = 0.8  # of a limit
LOOK_EVERY_S = 0.5  # how often the driver looks
CLOSING_S = 4.0  # from the last checkpoint to the end of the metering: Ray Train's controller asks every 2 s, measured
ENOUGH = 1.05  # what is proposed as a new limit, over the forecast


@dataclass(frozen=True)
class Spending:
    """What a run took: IT energy in J, carbon in t CO2eq (None: not known), device-hours, and energy of a start-up."""

    energy_j: float = 0.0
    carbon_t: float | None = None
    device_hours: float = 0.0
    startup_j: float = 0.0


@dataclass(frozen=True)
class Limit:
    """One key of `energy.budget`. `per_j` and `per_device_hour` turn IT energy in J and device-hours into its unit."""

    key: str
    quantity: str  # with its unit, as the record has it
    limit: float
    per_j: float
    per_device_hour: float
    words: Callable[[float], str]

    @property
    def of_what(self) -> str:
        kinds = {"energy_facility_kwh": "facility energy", "energy_it_kwh": "IT energy"}
        return kinds.get(self.quantity, {"gpu_hours": "GPU-hours"}.get(self.key, self.key))

    @property
    def by_energy(self) -> bool:
        return self.key in ("energy", "carbon")  # per_j does not tell: a grid may be at 0 g/kWh

    def amount(self, energy_j: float, device_hours: float) -> float:
        return energy_j * self.per_j + device_hours * self.per_device_hour

    def spent(self, spending: Spending) -> float:
        if self.key == "carbon":  # counted as it came: the grid changes by the hour
            assert spending.carbon_t is not None  # the spec has PUE and grid: it is known where the energy is
            return spending.carbon_t
        return self.amount(spending.energy_j, spending.device_hours)

    def option(self, value: float) -> str:
        """A limit that holds `value`, as `hoofprint run` takes it."""
        unit = {"energy": " kWh", "carbon": " tCO2eq", "gpu_hours": " GPUh"}.get(self.key, "")
        if self.key == "energy" and value < 0.1:
            value, unit = 1000 * value, " Wh"
        elif self.key == "carbon" and value < 0.1:
            value, unit = 1000 * value, " kgCO2eq"
        exponent = math.floor(math.log10(value)) - 2
        rounded = math.ceil(value / 10**exponent) * 10**exponent
        return f"energy.budget.{self.key}={rounded:.12g}{unit or self._currency}"

    @property
    def _currency(self) -> str:
        currency = self.quantity.removeprefix("cost").removeprefix("_").upper()
        return f" {currency}" if currency else ""


class Grid:
    """The grid's intensity that a carbon budget counts with: the series of the spec, else its constant."""

    def __init__(self, experiment: Experiment):
        energy = experiment.energy
        self.constant = energy.intensity_factor
        self.series: IntensitySeries | None = read_series(energy.grid_series) if energy.grid_series else None

    def g_per_kwh(self, now: float) -> float | None:
        """None where nothing is declared. What a series does not cover takes the constant, else the series' mean."""
        told = self.series.at(now) if self.series is not None else None
        if told is None and self.constant is not None:
            told = self.constant.value
        return self.series.mean_g_per_kwh if told is None and self.series is not None else told


def limits_of(experiment: Experiment, grid_g_per_kwh: float | None) -> list[Limit]:
    """The limits of a spec; one of carbon at this intensity of the grid."""
    budget, pue = experiment.energy.budget, experiment.energy.pue
    found = []
    facility = pue or 1.0
    if budget.energy is not None:
        quantity = "energy_it_kwh" if pue is None else "energy_facility_kwh"
        found.append(Limit("energy", quantity, budget.energy, facility / JOULE_PER_KWH, 0.0, human_energy))
    if budget.carbon is not None:
        assert pue is not None and grid_g_per_kwh is not None  # the spec has checked it
        per_j = facility * grid_g_per_kwh / JOULE_PER_KWH / GRAM_PER_TONNE
        found.append(Limit("carbon", "carbon_tco2eq", budget.carbon, per_j, 0.0, human_carbon))
    if budget.gpu_hours is not None:
        found.append(Limit("gpu_hours", "gpu_hours", budget.gpu_hours, 0.0, 1.0, lambda h: f"{digits(h)} GPU-hours"))
    if budget.cost is not None:
        assert experiment.cluster.gpu_hour_price is not None
        (amount, currency), (price, _) = money(budget.cost), money(experiment.cluster.gpu_hour_price)
        quantity = f"cost_{currency.lower()}" if currency else "cost"
        found.append(Limit("cost", quantity, amount, 0.0, price, lambda sum_: f"{digits(sum_)} {currency}".rstrip()))
    return found


@dataclass(frozen=True)
class State:
    """A limit at one moment, in its own unit; None is not known yet. `stops_at_step`: None where it will not.

    spent: None while it goes by energy and this command's meters have read none: then it stops nothing.
    startup: what this command took before its first step, which going on would take once more.
    """

    limit: Limit
    spent: float | None
    forecast: float | None
    held_back: float
    stops_at_step: int | None
    startup: float = 0.0

    @property
    def share(self) -> float | None:
        return None if self.spent is None else self.spent / self.limit.limit

    @property
    def due(self) -> bool:
        return self.spent is not None and self.spent + self.held_back >= self.limit.limit

    @property
    def says(self) -> str:
        """ "ok", "warned" from 80 % on, "over" when the forecast passes the limit, "due" when it must stop; "unknown"
        while nobody knows what was spent."""
        if self.share is None:
            return "unknown"
        if self.due:
            return "due"
        if self.forecast is not None and self.forecast > self.limit.limit:
            return "over"
        return "warned" if self.share >= WARN_AT else "ok"

    @property
    def spent_words(self) -> str:
        return NONE if self.spent is None else self.limit.words(self.spent)

    def document(self) -> dict[str, Any]:
        return {
            "key": self.limit.key,
            "quantity": self.limit.quantity,
            "limit": self.limit.limit,
            "spent": self.spent,
            "share": self.share,
            "forecast": self.forecast,
            "held_back": None if self.spent is None else self.held_back,
            "startup": None if self.forecast is None else self.startup,
            "stops_at_step": self.stops_at_step,
            "state": self.says,
            "words": {
                "limit": self.limit.words(self.limit.limit),
                "spent": self.spent_words,
                "forecast": None if self.forecast is None else self.limit.words(self.forecast),
                "of": self.limit.of_what,
            },
        }


@dataclass(frozen=True)
class Pace:
    """How a run goes now. power_w: of all devices; step_s: of a training step, None before there is one; ahead_s: what
    a request to stop leaves to be done, in s."""

    step: int
    total_steps: int
    power_w: float | None
    step_s: float | None
    ahead_s: float


class Watch:
    """The budget of one attempt. Fed with the attempt's energy; without limits it only counts."""

    def __init__(self, experiment: Experiment, before: Spending, world_size: int, started_unix_s: float):
        self._experiment, self._grid, self.pue = experiment, Grid(experiment), experiment.energy.pue
        self._world_size, self._started_unix_s = world_size, started_unix_s
        self._until_s: float | None = None  # on the monotonic clock; None before it was fed
        self.spending = self._before = before
        self._fed_j: float | None = None  # None: nothing was read yet
        self._startup: tuple[float, float] = (0.0, 0.0)  # J and device-hours until the first step

    def intensity_g_per_kwh(self, now: float) -> float | None:
        return self._grid.g_per_kwh(now)

    def resize(self, world_size: int) -> None:
        """From here on so many devices are held."""
        self._world_size = world_size

    def feed(self, energy_j: float | None, now: float, now_s: float) -> None:
        """energy_j: IT energy in J until now, without what was spent before; None while nothing was read. now_s: the
        same moment on the monotonic clock, which device-hours go by: the other may be set."""
        if self._until_s is None:
            self._until_s = now_s - max(0.0, now - self._started_unix_s)
        hours = self._world_size * (now_s - self._until_s) / 3600
        self._until_s = now_s
        self.spending = replace(self.spending, device_hours=self.spending.device_hours + hours)
        if energy_j is None:
            return
        added_j, self._fed_j = energy_j - (self._fed_j or 0.0), energy_j
        tonnes, g_per_kwh = self.spending.carbon_t, self._grid.g_per_kwh(now)
        if self.pue is not None and g_per_kwh is not None:
            tonnes = (tonnes or 0.0) + added_j / JOULE_PER_KWH * self.pue * g_per_kwh / GRAM_PER_TONNE
        self.spending = replace(self.spending, energy_j=self.spending.energy_j + added_j, carbon_t=tonnes)

    def waited(self, seconds: float) -> None:
        """So long nobody held the devices, which have been counted."""
        hours = self.spending.device_hours - self._world_size * seconds / 3600
        self.spending = replace(self.spending, device_hours=max(self._before.device_hours, hours))

    def first_step(self) -> None:
        """The start-up is over."""
        self._startup = (self._fed_j or 0.0, self.spending.device_hours - self._before.device_hours)

    def correct(self, before: Spending) -> None:
        """What was spent before is known better: a counter has told what it grew by while nobody read it."""
        tonnes = self.spending.carbon_t
        if tonnes is not None and before.carbon_t is not None:
            tonnes += before.carbon_t - (self._before.carbon_t or 0.0)
        more_j = before.energy_j - self._before.energy_j
        self._before = before
        self.spending = replace(self.spending, energy_j=self.spending.energy_j + more_j, carbon_t=tonnes)

    def states(self, pace: Pace, now: float) -> list[State]:
        return [self._state(limit, pace) for limit in limits_of(self._experiment, self._grid.g_per_kwh(now))]

    def _state(self, limit: Limit, pace: Pace) -> State:
        per_s = limit.amount(pace.power_w or 0.0, self._world_size / 3600)
        held_back = per_s * pace.ahead_s
        spent = None if limit.by_energy and self._fed_j is None else limit.spent(self.spending)
        known = pace.power_w is not None or not limit.by_energy
        if spent is None or not known or pace.step_s is None:
            return State(limit, spent, None, held_back, None)
        startup = limit.amount(*self._startup)
        per_step = per_s * pace.step_s
        forecast = spent + per_step * (pace.total_steps - pace.step)
        stops_at = None
        if forecast > limit.limit and per_step > 0:
            left = max(0.0, limit.limit - spent - held_back)
            stops_at = min(pace.total_steps, pace.step + 1 + math.floor(left / per_step))
        return State(limit, spent, forecast, held_back, stops_at, startup)


def forecast_words(document: Mapping[str, Any], total_steps: int) -> str | None:
    """The sentence about a budget that the run will pass, of a `State.document()`; None while it holds."""
    words, stops_at = document["words"], document["stops_at_step"]
    if stops_at is None:
        return None
    return f"will end at {words['forecast']} of {words['limit']}: stops at about step {stops_at:,} of {total_steps:,}"


class BudgetSpent(Exception):
    """A budget ended the training. starting: the attempt that had not come to its first step then, so that there was no
    step boundary to stop at. step: the last one that the run has done; 0 where it has done none."""

    def __init__(self, state: State, step: int, starting: int | None = None):
        self.state, self.step, self.starting = state, step, starting
        super().__init__(self.in_words)

    @property
    def startup(self) -> bool:
        """Whether the run's start-up alone took the budget."""
        return self.starting == 1 and self.step == 0

    @property
    def in_words(self) -> str:
        limit, words = self.state.limit, self.state.limit.words
        of = f"the budget of {words(limit.limit)} ({limit.of_what})"
        if self.startup:
            return f"{of} does not hold the start-up, which has taken {self.state.spent_words} before its first step"
        if self.starting is not None:
            where = f"after step {self.step:,}" if self.step else "before the run's first step"
            return f"{of} was reached while attempt {self.starting} started, {where}"
        return f"{of} stopped the run after step {self.step:,}"

    @property
    def option(self) -> str:
        """The value for `--set` with which the run would start again and get to its end, or at least into its steps."""
        limit, state = self.state.limit, self.state
        enough = 10 * max(state.spent or 0.0, limit.limit)
        if state.forecast is not None:
            enough = ENOUGH * (state.forecast + state.startup + state.held_back)
        return limit.option(max(enough, ENOUGH * limit.limit))

    @property
    def document(self) -> dict[str, Any]:
        """For run.json."""
        return {**self.state.document(), "step": self.step, "startup": self.startup, "option": self.option}
