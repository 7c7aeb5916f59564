"""Power over time, with what happened above it and the grid's intensity below; and the GPUs as a heat map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dashboards.figures.curves import bands, cumulative_j, power_series
from dashboards.figures.drawing import (
    COLOURS,
    HATCH,
    INK,
    Drawing,
    Look,
    Missing,
    label_right,
    say_nothing,
    time_scale,
)
from energy.carbon.series import IntensitySeries
from energy.human import human_time, scale_of

BUCKETS = 400
HATCHES = (HATCH, HATCH.replace("/", "\\"))  # of bands above each other in turn: they are told apart in grey
EVENTS = ("startup", "compile", "checkpoint", "evaluation", "lost")
NARROWEST = 1 / 350  # of the width: a mark that can still be seen in print
MAX_ROWS, MAX_CELLS = 64, 2500  # of vector cells: more are a picture inside the SVG, which is smaller
_POWER = ((1e7, 1e6, "MW"), (1e4, 1e3, "kW"), (0.0, 1.0, "W"))
Row = Mapping[str, Any]
Span = tuple[float, float]


def event_lanes(phases: Sequence[Row], attempts: Sequence[Row]) -> dict[str, list[Span]]:
    """{kind of event: spans in unix s}, of those that a reader looks for; attempts only where there was a restart."""
    lanes: dict[str, list[Span]] = {}
    if len(attempts) > 1:
        lanes["attempt"] = [(each["start_unix_s"], each["end_unix_s"]) for each in attempts]
    for kind in EVENTS:
        spans = [(float(p["start_unix_s"]), float(p["end_unix_s"])) for p in phases if p["phase"] == kind]
        if spans:
            lanes[kind] = sorted(spans)
    return lanes


def _joined(spans: Sequence[Span], least: float) -> list[Span]:
    """Spans at least so long, and those that then touch as one: ten thousand checkpoints make no larger file."""
    joined: list[Span] = []
    for start, end in spans:
        end = max(end, start + least)
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return joined


def _draw_lanes(axes: Axes, lanes: Mapping[str, Sequence[Span]], start: float, end: float, factor: float) -> None:
    least = (end - start) * NARROWEST
    for row, (kind, spans) in enumerate(lanes.items()):
        shown = [(max(s, start), min(e, end)) for s, e in spans if e > start and s < end]
        apart = list(shown) if kind == "attempt" else _joined(shown, least)
        bars = [((s - start) / factor, (e - s) / factor) for s, e in apart]
        axes.broken_barh(
            bars,
            (row - 0.32, 0.64),
            facecolor="none" if kind in ("attempt", "lost") else to_rgba(INK, 0.6),
            edgecolor=INK if kind in ("attempt", "lost") else "none",
            hatch=HATCH if kind == "lost" else None,
            linewidth=0.6,
        )
        if kind == "attempt":
            for number, (left, width) in enumerate(bars, 1):
                if width * factor > 0.02 * (end - start):
                    axes.text(left + width / 2, row, str(number), ha="center", va="center", fontsize=7.5)
    axes.set_ylim(len(lanes) - 0.4, -0.6)
    axes.set_yticks(range(len(lanes)), list(lanes), fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", length=0, labelbottom=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _draw_grid(axes: Axes, series: IntensitySeries, start: float, end: float, factor: float) -> None:
    """Intensity as a stepped line from zero; what the series does not cover is hatched, and not a line."""
    edges = sorted({start, end, *(t for t in (*series.start_unix_s, *series.end_unix_s) if start < t < end)})
    found = [series.at((a + b) / 2) for a, b in zip(edges, edges[1:], strict=False)]
    values = np.array([np.nan if value is None else value for value in found])
    x = (np.array(edges) - start) / factor
    axes.stairs(np.nan_to_num(values), x, baseline=0.0, fill=True, facecolor=to_rgba(INK, 0.18))
    axes.stairs(values, x, baseline=None, color=INK, linewidth=0.9)
    for left, right, value in zip(x[:-1], x[1:], values, strict=True):
        if np.isnan(value):
            axes.axvspan(left, right, facecolor="none", edgecolor=INK, hatch=HATCH, linewidth=0.0, alpha=0.5)
    top = (float(np.nanmax(values)) if np.isfinite(values).any() else 0.0) or 1.0
    axes.set_ylim(0, top * 1.15)
    axes.set_yticks([0, float(f"{top:.2g}")])
    place = f", {series.geography}" if series.geography else ""
    hatched = "; hatched: not covered" if np.isnan(values).any() else ""
    axes.set_title(f"Grid intensity (g CO₂eq/kWh){place}{hatched}", fontsize=8.5, pad=4)


def power_drawing(
    account: Any,
    phases: Sequence[Row] = (),
    series: IntensitySeries | None = None,
) -> Drawing:
    """Power (W) over time, stacked by device or node; what is modelled or assumed is hatched.

    phases: the marks of rank 0, shown as lanes above, with the attempts where there were several; series: the grid's
    intensity as a strip below.
    """
    readings = power_series(account)
    lanes = event_lanes(phases, account.attempts) if readings else {}

    def draw(figure: Figure) -> None:
        if not readings:
            return say_nothing(figure.add_subplot(), "no power readings")
        start = min(float(t[0]) for t, _ in readings.values())
        end = max(float(t[-1]) for t, _ in readings.values())
        factor, unit = time_scale(end - start)
        heights = [0.17 * len(lanes) + 0.05] * bool(lanes) + [2.4] + [0.55] * bool(series)
        figure.set_size_inches(7.2, 3.0 if len(heights) == 1 else 0.75 + sum(heights) + 0.12 * len(heights))
        parts = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        axes = parts[1] if lanes else parts[0]
        edges, base, width, labels = _draw_bands(axes, account, readings, start, end, factor)
        axes.set_ylim(0, float(base.max()) * 1.06 or 1.0)
        watts, unit_w = scale_of(float(base.max()), _POWER)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value / watts:g}")
        axes.set_xlim(0, (float(edges[-1]) - start) / factor)
        label_right(axes, labels)
        title = f"Power ({unit_w}), mean over {human_time(width)}"
        axes.grid(axis="y")
        if lanes:
            _draw_lanes(parts[0], lanes, start, end, factor)
            parts[0].set_title(title)
        else:
            axes.set_title(title)
        if series is not None:
            _draw_grid(parts[-1], series, start, end, factor)
        parts[-1].set_xlabel(f"time since the meter started ({unit})")

    told = "Power in watts over time, stacked by device; modelled devices are hatched."
    told += f" Above it: {', '.join(lanes)}." if lanes else ""
    return Drawing("power", told + (" Below it: the grid's carbon intensity." if series else ""), draw)


def _draw_bands(
    axes: Axes, account: Any, readings: Mapping[str, Any], start: float, end: float, factor: float
) -> tuple[np.ndarray, np.ndarray, float, list[tuple[float, str, Look]]]:
    """(edges in unix s, the stack's top in W, seconds of a bucket, labels)."""
    count = int(min(BUCKETS, max(2, max(len(t) for t, _ in readings.values()) - 1)))
    edges = np.linspace(start, end, count + 1)
    width = (end - start) / count or 1.0
    x = (edges - start) / factor
    base = np.zeros(count)
    labels: list[tuple[float, str, Look]] = []
    for index, (label, kind, ids) in enumerate(bands(account)):
        power = sum(
            (np.diff(cumulative_j(readings[i], edges)) / width for i in ids if i in readings),
            np.zeros(count),
        )
        colour, top = COLOURS[index % len(COLOURS)], base + power
        modelled = kind != "measured"
        area: dict[str, Any] = {"baseline": base, "fill": True, "linewidth": 0.0}
        look: dict[str, Any] = {"facecolor": to_rgba(colour, 0.25 if modelled else 1.0), "linewidth": 0.0}
        axes.stairs(top, x, facecolor=look["facecolor"], **area)
        if modelled:  # apart, because SVG viewers give a pattern's ground the pattern's own opacity
            look |= {"edgecolor": colour, "hatch": HATCHES[index % 2]}
            axes.stairs(top, x, **look | area | {"facecolor": "none"})
        else:  # a thin edge tells bands apart in grey
            axes.stairs(top, x, baseline=None, color="white", linewidth=0.4)
        tail = max(1, count // 8)
        labels.append(((base + power / 2)[-tail:].mean(), f"{label}{f', {kind}' if modelled else ''}", look))
        base = top
    return edges, base, width, labels


def gpu_heat_drawing(account: Any) -> Drawing:
    """Mean power (W) of each GPU over time: a row a GPU, or a row a node where they are many; hatched: not read.

    Missing where no GPU was read.
    """
    readings = power_series(account)
    gpus = [device for device in account.devices if device.kind == "gpu" and device.uuid in readings]
    if not gpus:
        raise Missing("no GPU was read: the run's ledgers hold no power of one (device kind gpu)")
    nodes = {device.node for device in gpus}
    by_node = len(gpus) > MAX_ROWS and len(nodes) > 1
    rows: dict[str, list[str]] = {}
    for device in sorted(gpus, key=lambda d: (d.node, d.uuid)):
        many = f"{device.node} " if len(nodes) > 1 else ""
        rows.setdefault(device.node if by_node else f"{many}GPU {device.uuid[-4:]}", []).append(device.uuid)
    start = min(float(readings[d.uuid][0][0]) for d in gpus)
    end = max(float(readings[d.uuid][0][-1]) for d in gpus)
    finest = max(len(readings[d.uuid][0]) for d in gpus) - 1
    columns = max(1, min(finest, 200))
    edges = np.linspace(start, end, columns + 1)
    cells = np.array([np.mean([_mean_power(readings[u], edges) for u in uuids], axis=0) for uuids in rows.values()])

    def draw(figure: Figure) -> None:
        factor, unit = time_scale(end - start)
        height = min(6.5, max(0.5, 0.2 * len(rows)))
        figure.set_size_inches(7.2, height + 0.95)
        axes = figure.add_subplot()
        x = (edges - start) / factor
        axes.add_patch(
            Rectangle((0, -0.5), x[-1], len(rows), facecolor="none", edgecolor=INK, hatch=HATCH, linewidth=0)
        )
        # The colours of cividis grow lighter evenly: they are in the same order in grey and for the colour-blind.
        mesh = axes.pcolormesh(
            x,
            np.arange(len(rows) + 1) - 0.5,
            np.ma.masked_invalid(cells),
            cmap="cividis",
            vmin=0.0,
            rasterized=cells.size > MAX_CELLS,
        )
        mesh.set_edgecolor("face")
        axes.set_xlim(0, x[-1])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        every = -(-len(rows) // 32)
        axes.set_yticks(range(0, len(rows), every), list(rows)[::every], fontsize=8 if len(rows) <= 32 else 6.5)
        axes.tick_params(axis="y", length=0)
        bar = figure.colorbar(mesh, ax=axes, pad=0.015, aspect=max(4.0, 9 * height), fraction=0.05)
        bar.outline.set_visible(False)  # type: ignore[operator]
        of = f", mean of the {max(map(len, rows.values()))} GPUs of a node" if by_node else " of each GPU"
        hatched = f"; hatched: not {'all ' if by_node else ''}read" if np.isnan(cells).any() else ""
        axes.set_title(f"Power (W){of}, mean over {human_time((end - start) / columns)}{hatched}")
        axes.set_xlabel(f"time since the meter started ({unit})")

    return Drawing("gpu-heat", f"Mean power in watts of {len(gpus)} GPUs over time, as a heat map.", draw)


def _mean_power(series: tuple[np.ndarray, np.ndarray], edges: np.ndarray) -> np.ndarray:
    """Mean W between edges; NaN where less than half of the time was read."""
    times, power = series
    read_s = np.diff(cumulative_j((times, np.where(np.isnan(power), 0.0, 1.0)), edges))
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.diff(cumulative_j(series, edges)) / read_s
    return np.where(read_s >= 0.5 * np.diff(edges), mean, np.nan)
