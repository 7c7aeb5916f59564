"""Runs beside each other: what loss each reached for how much energy, and which of them no other beats."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dashboards.figures.drawing import COLOURS, INK, LINES, MARKERS, Drawing, Missing
from energy.human import digits, scale_of

NOTES = 4  # beneath the figure; the command prints all
_KWH = ((1e3, 1e3, "MWh"), (0.1, 1.0, "kWh"), (0.0, 1e-3, "Wh"))


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those (energy, loss) that no other has both lower, by rising energy."""
    kept: list[tuple[float, float]] = []
    for point in sorted(points):
        if not kept or point[1] < kept[-1][1]:
            kept.append(point)
    return kept


def pareto_drawing(runs: Sequence[Mapping[str, Any]], caveats: Sequence[str] = ()) -> Drawing:
    """Loss (nats per token) against IT energy: a marker a run, its evaluations as a line, the front dotted.

    runs: {name, energy_it_kwh, low_kwh, high_kwh, loss, partial, comparable, path: [(kWh, validation loss), ...]}; one
    without energy or loss is not drawn, and is named; one that is not comparable is in no front. caveats: what keeps
    the runs from being compared, printed beneath. Missing where fewer than two can be drawn.
    """
    drawn = [run for run in runs if run["energy_it_kwh"] is not None and run["loss"] is not None]
    left_out = [run["name"] for run in runs if run not in drawn]
    if len(drawn) < 2:
        why = f"{', '.join(left_out)}: no energy or no loss" if left_out else "one run alone"
        raise Missing(f"loss against energy needs two runs or more that have both ({why})")

    def draw(figure: Figure) -> None:
        notes = [*([f"not drawn, no energy or no loss: {', '.join(left_out)}"] if left_out else []), *caveats]
        more = len(notes) - NOTES
        notes = [*notes[:NOTES], *([f"and {more} more: hoofprint compare has them"] if more > 0 else [])]
        notes = [line for note in notes for line in textwrap.wrap(note, 110)]
        figure.set_size_inches(7.2, 3.7 + 0.15 * len(notes))
        axes = figure.add_subplot()
        most = max(run["high_kwh"] or run["energy_it_kwh"] for run in drawn)
        factor, unit = scale_of(most, _KWH)
        labels = []
        for index, run in enumerate(drawn):
            colour, x, y = COLOURS[index % 6], run["energy_it_kwh"] / factor, run["loss"]
            path = [(kwh / factor, loss) for kwh, loss in run["path"]]
            if len(path) > 1:
                axes.plot(*zip(*path, strict=True), color=colour, linewidth=0.9, alpha=0.8,
                          linestyle=LINES[index % len(LINES)])  # fmt: skip
            if run["low_kwh"] is not None and run["high_kwh"] is not None:
                axes.hlines(
                    y, run["low_kwh"] / factor, run["high_kwh"] / factor, color=colour, linewidth=1.0, alpha=0.6
                )
            axes.plot(x, y, marker=MARKERS[index % len(MARKERS)], markersize=7, color=colour,
                      markerfacecolor="white" if run["partial"] else colour, linestyle="none")  # fmt: skip
            apart = ["partial"] * run["partial"] + ["does not compare"] * (not run["comparable"])
            labels.append((x, y, f"{run['name']} ({', '.join(apart)})" if apart else run["name"], colour))
        best = front([(run["energy_it_kwh"] / factor, run["loss"]) for run in drawn if run["comparable"]])
        if len(best) > 1:
            axes.step(*zip(*best, strict=True), where="post", color=INK, linewidth=0.8, linestyle=(0, (1, 2)))
        axes.set_xlim(0, most / factor * 1.06)
        low, high = axes.get_ylim()
        axes.set_ylim(low - 0.06 * (high - low), high)
        _name(axes, labels)
        axes.set_title(f"Loss (nats per token) against IT energy ({unit}); dotted: no run has less of both")
        axes.set_xlabel("\n".join([f"IT energy ({unit}), bars: 95 % interval", *notes]))
        axes.grid()

    said = "; ".join(f"{r['name']}: {digits(r['energy_it_kwh'])} kWh, loss {r['loss']:.3f}" for r in drawn)
    return Drawing("pareto", f"Loss against energy of {len(drawn)} runs. {said}.", draw)


def _name(axes: Axes, labels: list[tuple[float, float, str, str]]) -> None:
    """Names beside their markers (x, y, text, colour), moved up where they would touch, then with a line to them."""
    low, high = axes.get_ylim()
    gap, right = 0.06 * (high - low), axes.get_xlim()[1]
    placed: list[tuple[float, float, float]] = []
    for x, y, text, colour in sorted(labels, key=lambda label: label[1]):
        inward = x > 0.6 * right
        near = x - 0.015 * right if inward else x + 0.015 * right
        width = 0.0125 * right * len(text)
        begin, end = (near - width, near) if inward else (near, near + width)
        at = y - 0.75 * gap if inward else y + 0.6 * gap  # beside the bar of its interval; a path comes from above left
        while any(abs(at - other) < gap and begin < e and b < end for other, b, e in placed):
            at += gap / 4
        placed.append((at, begin, end))
        line = {"arrowstyle": "-", "color": colour, "linewidth": 0.5, "relpos": (1.0 if inward else 0.0, 0.5)}
        axes.annotate(
            text,
            (x, y),
            xytext=(near, at),
            ha="right" if inward else "left",
            va="center",
            annotation_clip=False,
            arrowprops=line if at > y + gap else None,
        )
