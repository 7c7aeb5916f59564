"""A project's energy by what its runs were for, failed ones beside the final."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from dashboards.figures.drawing import COLOURS, HATCH, Drawing, Missing
from energy.human import digits, human_energy, percent, scale_of

_KWH = ((1e3, 1e3, "MWh"), (0.1, 1.0, "kWh"), (0.0, 1e-3, "Wh"))


def project_drawing(by_purpose: Mapping[str, Mapping[str, Any]], measured_kwh: Mapping[str, float]) -> Drawing:
    """IT energy (kWh) by purpose, the largest on top; hatched: modelled, assumed, or not known how.

    by_purpose: of a total (`energy.records.total.roll_up`); measured_kwh: what of each was measured. Missing without
    any energy.
    """
    known = {name: float(part["energy_it_kwh"]) for name, part in by_purpose.items() if part["energy_it_kwh"]}
    if not known:
        raise Missing("no run of the project knows its energy")
    rows = sorted(known.items(), key=lambda item: -item[1])
    total = sum(known.values())

    def draw(figure: Figure) -> None:
        figure.set_size_inches(7.2, 0.75 + 0.42 * len(rows))
        axes = figure.add_subplot()
        size, unit = scale_of(rows[0][1], _KWH)
        at = np.arange(len(rows))
        whole = np.array([kwh / size for _, kwh in rows])
        measured = np.array([min(measured_kwh.get(name, 0.0), kwh) / size for name, kwh in rows])
        colours = [COLOURS[5] if name == "failed" else COLOURS[0] for name, _ in rows]
        axes.barh(at, measured, height=0.6, color=colours, linewidth=0)
        for place, colour in zip(at, colours, strict=True):
            rest = whole[place] - measured[place]
            axes.barh(place, rest, left=measured[place], height=0.6, facecolor=to_rgba(colour, 0.2), linewidth=0)
            axes.barh(place, rest, left=measured[place], height=0.6, facecolor="none", edgecolor=colour, hatch=HATCH,
                      linewidth=0.8)  # fmt: skip
        for row, (name, kwh) in enumerate(rows):
            part = by_purpose[name]
            lacks = "+" if part["energy_it_kwh_unknown_runs"] else ""
            count = f"{part['runs']} run{'s' * (part['runs'] != 1)}"
            text = f"{digits(kwh / size)}{lacks} · {percent(kwh / total)} · {count}"
            axes.annotate(text, (kwh / size, row), (4, 0), textcoords="offset points", va="center", fontsize=8)
        axes.set_yticks(at, [name for name, _ in rows])
        axes.set_xlim(0, float(whole[0]) * 1.45)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_title(f"IT energy ({unit}) by purpose: energy, share, runs; hatched: modelled or assumed")
        axes.grid(axis="x")

    told = "; ".join(f"{name} {human_energy(kwh)}" for name, kwh in rows)
    return Drawing("project", f"IT energy of a project's runs by purpose. {told}.", draw)
