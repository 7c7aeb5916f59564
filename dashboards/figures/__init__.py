"""Figures of runs for print: drawn by matplotlib, the same bytes for the same input.

Pages take them as SVG elements (`power_figure` and its like); files come from the catalogue (`make_figure`, `FIGURES`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dashboards.figures.catalogue import FIGURES, Source, make_figure
from dashboards.figures.drawing import FORMATS, Drawing, Missing
from dashboards.figures.loss import AXES, loss_drawing
from dashboards.figures.pareto import pareto_drawing
from dashboards.figures.phases import phases_drawing
from dashboards.figures.planned import read_plan
from dashboards.figures.power import power_drawing
from energy.carbon.series import IntensitySeries

__all__ = [
    "AXES",
    "FIGURES",
    "FORMATS",
    "Drawing",
    "Missing",
    "Source",
    "loss_energy_figure",
    "make_figure",
    "pareto_drawing",
    "phases_figure",
    "power_figure",
    "read_plan",
]

Row = Mapping[str, Any]


def power_figure(account: Any, phases: Sequence[Row] = (), series: IntensitySeries | None = None) -> str:
    """Power (W) over time as an SVG element; see `power_drawing`."""
    return power_drawing(account, phases, series).inline()


def phases_figure(account: Any) -> str:
    """Energy by phase as an SVG element; see `phases_drawing`."""
    return phases_drawing(account).inline()


def loss_energy_figure(
    account: Any, steps: Sequence[Row], evaluations: Sequence[Row] = (), entropy_nats: float | None = None
) -> str:
    """Loss against the IT energy spent as an SVG element; see `loss_drawing`."""
    return loss_drawing(account, steps, evaluations, entropy_nats).inline()
