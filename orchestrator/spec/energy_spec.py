"""Section `energy` of a spec: how it is metered, and the factors of the accounting."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from energy.carbon.grid import constant as grid_constant
from energy.carbon.grid import intensity as grid_intensity
from energy.factors import Factor
from orchestrator.spec import sense
from orchestrator.spec.budget import BudgetSpec
from orchestrator.spec.named import OrName, with_names_looked_up
from orchestrator.spec.quantities import DurationS, IntensityGPerKwh, Number, PowerW
from orchestrator.spec.section import Section

PositiveW = Annotated[PowerW, Field(gt=0)]
SOURCE = "Where that figure comes from"


def _place_of_a_grid(name: str) -> str:
    """A place or a preset; a figure needs a source, and `intensity` is where it has one."""
    if grid_constant(name) is not None:
        raise ValueError(f"expected a place such as FR; {name!r} is a figure: write intensity, with intensity_source")
    grid_intensity(name)
    return name


class FactorRange(Section):
    """The least and the greatest that a factor may be, and who says so. It goes into the intervals of a footprint."""

    low: Annotated[Number, Field(ge=0)] = Field(description="In the unit of the factor")
    high: Annotated[Number, Field(ge=0)] = Field(description="In the unit of the factor")
    source: Annotated[str, Field(min_length=1)] = Field(description=SOURCE)


def with_range(factor: Factor, declared: FactorRange | None) -> Factor:
    """A factor with the range that a spec declares for it, in place of its source's own."""
    if declared is None or factor.value is None:
        return factor
    note = "; ".join(filter(None, (factor.note, f"range: {declared.source}")))
    return replace(factor, low=declared.low, high=declared.high, note=note)


class EnergySpec(Section):
    """Accounting assumptions. What is not declared stays missing in the record: nothing is guessed.

    Those that the factor tables hold may be named, as in `pue: google fleet 2024` or `water_intensity: FR`.
    """

    sample_interval: Annotated[DurationS, Field(ge=0.05, le=60)] = Field(
        default=1.0, description="Between two rows of a ledger"
    )
    pue: Annotated[Number, Field(ge=1, le=5), OrName()] | None = Field(
        default=None, description="Power usage effectiveness: facility energy by IT energy"
    )
    pue_source: str | None = Field(default=None, description=SOURCE)
    pue_range: FactorRange | None = Field(
        default=None, description="Where the source gives none, or another is meant than its own"
    )
    intensity: Annotated[IntensityGPerKwh, Field(ge=0)] | None = Field(
        default=None, description="Of the grid, g CO2eq/kWh, where `grid` names no place"
    )
    intensity_source: str | None = Field(default=None, description=SOURCE)
    intensity_range: FactorRange | None = Field(
        default=None, description="g CO2eq/kWh, around `intensity` or that of `grid`"
    )
    grid: Annotated[str, AfterValidator(_place_of_a_grid)] | None = Field(
        default=None, description="A place (FR, US-CA, us-west-2) or a preset, looked up in the factor tables"
    )
    grid_series: Path | None = Field(
        default=None, description="A CSV or JSON file of intensities by the hour (UTC), in g CO2eq/kWh"
    )
    grid_zone: str | None = Field(
        default=None,
        description="A zone of Electricity Maps, asked after the run for its hours; the token is in the environment, "
        "ELECTRICITYMAPS_TOKEN",
    )
    intensity_market: Annotated[IntensityGPerKwh, Field(ge=0), OrName()] | None = Field(
        default=None, description="g CO2eq/kWh by contracts, beside the grid's; without any, a residual mix"
    )
    intensity_market_source: str | None = Field(default=None, description=SOURCE)
    transmission_loss: Annotated[Number, Field(ge=0, lt=1), OrName()] | None = Field(
        default=None, description="Share lost between power station and site"
    )
    transmission_loss_source: str | None = Field(default=None, description=SOURCE)
    wue: Annotated[Number, Field(ge=0), OrName()] | None = Field(
        default=None, description="Water usage effectiveness: litres on site per IT kWh"
    )
    wue_source: str | None = Field(default=None, description=SOURCE)
    water_intensity: Annotated[Number, Field(ge=0), OrName()] | None = Field(
        default=None, description="Litres at power stations per facility kWh"
    )
    water_intensity_source: str | None = Field(default=None, description=SOURCE)
    embodied_convention: Literal["calendar", "busy-hour"] = Field(
        default="calendar",
        description="What the making of hardware is shared out over: the hours of its life, or those it is busy in",
    )
    device_rated_power: PositiveW | None = Field(
        default=None, description="W of a device for the paper's method; null: by the tables"
    )
    device_rated_power_source: str | None = Field(default=None, description=SOURCE)
    node_baseline: PositiveW | None = Field(
        default=None, description="W of a node's fans, network and storage, which nothing reads"
    )
    node_baseline_source: str | None = Field(default=None, description=SOURCE)
    node_baselines: Annotated[dict[str, PositiveW], Field(min_length=1)] | None = Field(
        default=None,
        description='The same by kind of node: {"gpu-*": 700 W, "*": 90 W}, of the patterns of names the first that '
        "fits",
    )
    node_baselines_source: str | None = Field(default=None, description=SOURCE)
    node_power_command: str | None = Field(
        default=None, description="Prints a node's whole power, such as `ipmitool dcmi power reading`"
    )
    node_power_file: Path | None = Field(default=None, description="Holds a node's whole power, on each node")
    budget: BudgetSpec = BudgetSpec()

    @property
    def intensity_factor(self) -> Factor | None:
        """The grid's declared intensity in g/kWh, by place or as a constant; None where nothing is declared."""
        if self.grid is not None:
            return with_range(grid_intensity(self.grid), self.intensity_range)
        if self.intensity is None:
            return None
        constant = Factor("intensity_g_per_kwh", self.intensity, "g CO2eq/kWh", str(self.intensity_source))
        return with_range(constant, self.intensity_range)

    rules = (sense.each_is_told_once, sense.figures_have_sources, sense.ranges_hold_their_figures)

    @classmethod
    def resolved(cls, given: Any) -> Any:
        return with_names_looked_up(given)

    @field_validator("grid", mode="before")
    @classmethod
    def _norway_is_a_place(cls, place: Any) -> Any:
        if isinstance(place, bool):
            raise ValueError("YAML reads NO as false: quote it, 'NO'")
        return place
