"""Where and when: the carbon of a run, had it begun some hours later, or under the series of another place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dashboards.figures.drawing import HATCH, INK, Drawing, Missing
from energy.carbon.series import IntensitySeries, carbon, utc
from energy.human import digits, human_time, scale_of
from energy.units import GRAM_PER_TONNE

HOURS = 24
_GRAM = ((1e6, 1e6, "t"), (1e3, 1e3, "kg"), (1.0, 1.0, "g"), (0.0, 1e-3, "mg"))


def shifted_carbon(curve: tuple[Any, Any], pue: float, series: IntensitySeries) -> np.ndarray:
    """Grams CO2eq of the run had it begun 0 to 23 hours later; NaN where the series does not cover all of it."""
    times, energy = (np.asarray(column, dtype=float) for column in curve)
    facility_j = (energy * pue).tolist()
    found = (carbon((times + 3600.0 * hour).tolist(), facility_j, series).carbon_g for hour in range(HOURS))
    return np.array([np.nan if grams is None else grams for grams in found])


def places_drawing(account: Any, record: Mapping[str, Any], series: Mapping[str, IntensitySeries]) -> Drawing:
    """A row a place, a column an hour by which the run would have begun later.

    series: {place: its intensities}. Missing without a series, a PUE, or any place that covers the run once.
    """
    if not series:
        raise Missing(
            "no series of grid intensities: the run has none (energy.grid_series in its spec); give some by "
            "--series PLACE=FILE.csv"
        )
    if account.curve is None or account.start_unix_s is None:
        raise Missing("nothing was metered: there is no energy to place (energy/*.ledger)")
    pue = record["energy"]["pue"]
    if pue is None:
        raise Missing("carbon needs a PUE, and the run has none (energy.pue in its spec)")
    grams = np.array([shifted_carbon(account.curve, pue, each) for each in series.values()])
    if not np.isfinite(grams).any():
        spans = "; ".join(f"{name}: {utc(s.start_unix_s[0])} to {utc(s.end_unix_s[-1])}" for name, s in series.items())
        needed = f"{utc(account.curve[0][0])} to {utc(account.curve[0][-1])}"
        raise Missing(f"no series covers all of the run, {needed}, nor any of the {HOURS} hours after ({spans})")
    bases = {str(each.basis) for each in series.values()}

    def draw(figure: Figure) -> None:
        figure.set_size_inches(7.2, 1.35 + 0.36 * len(series))
        axes = figure.add_subplot()
        factor, unit = scale_of(float(np.nanmax(grams)), _GRAM)
        values = grams / factor
        axes.add_patch(
            Rectangle((-0.5, -0.5), HOURS, len(series), facecolor="none", edgecolor=INK, hatch=HATCH, linewidth=0)
        )
        mesh = axes.pcolormesh(
            np.arange(HOURS + 1) - 0.5,
            np.arange(len(series) + 1) - 0.5,
            np.ma.masked_invalid(values),
            cmap="cividis",
            vmin=0.0,
            edgecolors="white",
            linewidth=0.6,
        )
        middle = float(np.nanmax(values)) / 2
        for row, line in enumerate(values):
            for hour, value in enumerate(line):
                if np.isfinite(value):
                    colour = INK if value > middle else "white"
                    axes.text(hour, row, digits(value), ha="center", va="center", fontsize=5.8, color=colour)
        axes.set_xticks(range(0, HOURS, 3))
        axes.set_yticks(range(len(series)), list(series))
        axes.set_ylim(len(series) - 0.5, -0.5)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        figure.colorbar(mesh, ax=axes, pad=0.015, fraction=0.03).outline.set_visible(False)  # type: ignore[operator]
        lasted = human_time(float(account.end_unix_s - account.start_unix_s))
        hatched = "; hatched: not covered" if np.isnan(values).any() else ""
        axes.set_title(f"Carbon ({unit} CO₂eq) of this run by place and hour of its start{hatched}")
        mixed = "\nthe series are not on one basis: do not compare rows" if len(bases) > 1 else ""
        axes.set_xlabel(f"begun so many hours after {utc(account.start_unix_s)}; it took {lasted}{mixed}")

    at = np.unravel_index(int(np.nanargmin(grams)), grams.shape)
    least = f"{grams[at] / GRAM_PER_TONNE:.3g} t CO2eq in {list(series)[int(at[0])]} {int(at[1])} h later"
    return Drawing("places", f"Carbon of the run by place and hour of its start; least: {least}.", draw)
