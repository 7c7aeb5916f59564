"""Three figures of a run as SVG text, the same bytes for the same input: power, phases, loss and energy."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from energy.human import digits, energy_scale, human_energy, human_time, percent
from energy.units import JOULE_PER_KWH

STYLE = Path(__file__).with_name("style.mplstyle")
INK = "#101418"
MEASURED = ("counter", "integrated")
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
BUCKETS = 400
MAX_BANDS = 6
Series = tuple[np.ndarray, np.ndarray]
Row = Mapping[str, Any]


@lru_cache(maxsize=1)
def _style() -> Any:
    return matplotlib.rc_params_from_file(STYLE, use_default_template=True)


def _render(name: str, description: str, draw: Callable[[Figure], None]) -> str:
    """An SVG element fit for inlining: ids of its own, a description, text in the page's own colour."""
    with matplotlib.rc_context(_style()):
        figure = Figure()
        FigureCanvasSVG(figure)
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = svg.replace("<svg ", f'<svg role="img" aria-labelledby="{name}-description" ', 1)
    head = svg.index(">", svg.index("<svg")) + 1
    return f'{svg[:head]}\n <title id="{name}-description">{escape(description)}</title>{svg[head:]}'


def _say_nothing(axes: Axes, text: str) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes)


def _cumulative_j(series: Series, at: np.ndarray) -> np.ndarray:
    """Joules drawn up to each moment; a reading is the mean power since the one before."""
    times, power = (np.asarray(each, dtype=float) for each in series)
    if len(times) < 2:
        return np.zeros(len(at))
    mean = np.nan_to_num(power[1:], nan=0.0)  # a missing reading draws nothing here; the account books its gap
    total = np.concatenate([[0.0], np.cumsum(mean * np.diff(times))])
    return np.interp(at, times, total)


def _time_scale(seconds: float) -> tuple[float, str]:
    return next(((f, u) for f, u in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")) if seconds >= 3 * f), (1.0, "s"))


def _spread(positions: Sequence[float], gap: float) -> list[float]:
    """Positions of labels, moved upwards where they would touch."""
    placed: list[float] = []
    for position in positions:
        placed.append(position if not placed else max(position, placed[-1] + gap))
    return placed


def _bands(account: Any) -> list[tuple[str, str, list[str]]]:
    """(label, method class, uuids): one a device while few, else one a node, else one a kind."""
    drawn = {uuid for uuid, _, _ in account.power}
    devices = [device for device in account.devices if device.uuid in drawn]
    nodes = {device.node for device in devices}
    many = len(nodes) > 1
    same = {device.name for device in devices if sum(d.name == device.name for d in devices) > 1}

    def short(d: Any) -> str:
        return str(d.name).partition(" (")[0]

    def by_device(d: Any) -> str:
        return f"{short(d)} {str(d.uuid)[-4:]}" if d.name in same else short(d)

    groupings: tuple[Callable[[Any], str], ...] = (
        by_device,
        (lambda d: f"{d.node} {d.kind.upper()}") if many else short,
        lambda d: d.kind.upper(),
    )
    bands: dict[tuple[str, str], list[str]] = {}
    for label in groupings:
        bands = {}
        for device in devices:
            kind = "measured" if device.method in MEASURED else device.method
            bands.setdefault((label(device), kind), []).append(device.uuid)
        if len(bands) <= MAX_BANDS:
            break
    order = sorted(bands.items(), key=lambda item: item[0][1] != "measured")
    return [(label + (f" × {len(ids)}" if len(ids) > 1 else ""), kind, ids) for (label, kind), ids in order]


def power_figure(account: Any) -> str:
    """Power (W) over time, stacked by device; what is modelled or assumed is hatched."""
    series = {
        uuid: (np.asarray(t, dtype=float), np.asarray(p, dtype=float)) for uuid, t, p in account.power if len(t) > 1
    }

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        if not series:
            return _say_nothing(axes, "no power readings")
        start = min(float(t[0]) for t, _ in series.values())
        end = max(float(t[-1]) for t, _ in series.values())
        count = int(min(BUCKETS, max(2, max(len(t) for t, _ in series.values()) - 1)))
        edges = np.linspace(start, end, count + 1)
        width = (end - start) / count or 1.0
        factor, unit = _time_scale(end - start)
        x = (edges - start) / factor
        base, labels = np.zeros(count), []
        for index, (label, kind, ids) in enumerate(_bands(account)):
            power = sum(
                (np.diff(_cumulative_j(series[i], edges)) / width for i in ids if i in series),
                np.zeros(count),
            )
            colour, top = COLOURS[index % len(COLOURS)], base + power
            modelled = kind != "measured"
            area: dict[str, Any] = {"baseline": base, "fill": True, "linewidth": 0.0}
            axes.stairs(top, x, facecolor=to_rgba(colour, 0.25 if modelled else 1.0), **area)
            if modelled:  # apart, because SVG viewers give a pattern's ground the pattern's own opacity
                axes.stairs(top, x, facecolor="none", edgecolor=colour, hatch="////", **area)
            tail = max(1, count // 8)
            labels.append(((base + power / 2)[-tail:].mean(), f"{label}{f', {kind}' if modelled else ''}", colour))
            base = top
        axes.set_ylim(0, float(base.max()) * 1.06 or 1.0)
        axes.set_xlim(0, float(x[-1]))
        for y, (_, text, colour) in zip(
            _spread([y for y, _, _ in labels], axes.get_ylim()[1] * 0.075), labels, strict=True
        ):
            place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
            place |= {"va": "center", "annotation_clip": False}
            axes.annotate("■", (1, y), xytext=(6, 0), color=colour, **place)
            axes.annotate(text, (1, y), xytext=(17, 0), **place)
        axes.set_title(f"Power (W), mean over {human_time(width)}")
        axes.set_xlabel(f"time since the meter started ({unit})")
        axes.grid(axis="y")

    return _render("power", "Power in watts over time, stacked by device; modelled devices are hatched.", draw)


def phases_figure(account: Any) -> str:
    """Energy by phase as horizontal bars, the largest on top."""
    phases = sorted(account.phases.items(), key=lambda item: (-item[1]["energy_j"], item[0]))
    phases = [(name, part) for name, part in phases if part["energy_j"] > 0 or part["seconds"] > 0]
    total = sum(part["energy_j"] for _, part in phases)

    def draw(figure: Figure) -> None:
        figure.set_size_inches(7.2, 0.9 + 0.3 * max(2, len(phases)))
        axes = figure.add_subplot()
        if not total:
            return _say_nothing(axes, "no energy was booked")
        factor, unit = energy_scale(phases[0][1]["energy_j"])
        for row, (name, part) in enumerate(phases):
            joules, lost = part["energy_j"], name in ("unattributed", "gap")
            value, face, edge = joules / factor, "none" if lost else COLOURS[0], INK if lost else COLOURS[0]
            hatch = "////" if lost else None
            axes.barh(row, value, height=0.66, color=face, edgecolor=edge, hatch=hatch, linewidth=0.6)
            parts = (
                f"{digits(value)} {unit}",
                percent(joules / total),
                human_time(part["seconds"]),
            )
            text = " · ".join(parts)
            axes.annotate(text, (value, row), xytext=(5, 0), textcoords="offset points", va="center")
        axes.set_yticks(range(len(phases)), [name.replace("_", " ") for name, _ in phases])
        axes.invert_yaxis()
        axes.set_xlim(0, phases[0][1]["energy_j"] / factor * 1.42)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_title(f"Energy by phase ({unit}): energy, share, time")
        axes.grid(axis="x")

    said = "; ".join(f"{name}: {human_energy(part['energy_j'] / JOULE_PER_KWH)}" for name, part in phases)
    return _render("phases", f"Energy by phase. {said}.", draw)


def _energy_at(account: Any, times: np.ndarray) -> np.ndarray:
    """Joules of all devices booked up to each moment, the end agreeing with the account's totals."""
    spent = np.zeros(len(times))
    booked = {device.uuid: device.energy_j for device in account.devices}
    for uuid, at, power in account.power:
        if len(at) > 1:
            whole = float(_cumulative_j((at, power), np.array([at[-1]]))[0])
            spent += _cumulative_j((at, power), times) * (booked.get(uuid, whole) / whole if whole else 0.0)
    return spent


def loss_energy_figure(
    account: Any, steps: Sequence[Row], evaluations: Sequence[Row] = (), entropy_nats: float | None = None
) -> str:
    """Training and validation loss (nats per token) against the IT energy spent so far; a line an attempt."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        if not steps or not account.power:
            return _say_nothing(axes, "no steps with energy were recorded")
        joules = _energy_at(account, np.array([step["time_unix_s"] for step in steps], dtype=float))
        factor, unit = energy_scale(float(joules.max()))
        attempts = sorted({int(step.get("attempt") or 1) for step in steps})
        for attempt in attempts:
            mine = [i for i, step in enumerate(steps) if int(step.get("attempt") or 1) == attempt]
            axes.plot(joules[mine] / factor, [steps[i]["loss"] for i in mine], color=COLOURS[0], linewidth=1.2)
            if len(attempts) > 1:
                first = (joules[mine[0]] / factor, steps[mine[0]]["loss"])
                axes.annotate(f"attempt {attempt}", first, xytext=(3, 4), textcoords="offset points")
        ends = [
            (
                float(steps[-1]["loss"]),
                float(joules[-1] / factor),
                f"training {steps[-1]['loss']:.3f}",
                COLOURS[0],
            )
        ]
        if evaluations:
            at = _energy_at(account, np.array([each["time_unix_s"] for each in evaluations], dtype=float)) / factor
            losses = [float(each["validation_loss"]) for each in evaluations]
            axes.plot(at, losses, color=COLOURS[5], marker="o", markersize=4, linewidth=1.0, linestyle=(0, (4, 2)))
            ends.append((losses[-1], float(at[-1]), f"validation {losses[-1]:.3f}", COLOURS[5]))
        low, high = axes.get_ylim()
        if entropy_nats is not None:
            axes.axhline(entropy_nats, color=INK, linewidth=0.7, linestyle=(0, (1, 2)))
            ends.append((entropy_nats, 0.0, f"unigram entropy {entropy_nats:.2f}", INK))
            low, high = (
                min(low, entropy_nats - 0.05 * (high - low)),
                max(high, entropy_nats + 0.05 * (high - low)),
            )
        axes.set_ylim(low, high)
        axes.set_xlim(0, max(float(joules.max() / factor), max(x for _, x, _, _ in ends)) * 1.01)
        ends.sort()
        for y, (_, _, text, colour) in zip(_spread([y for y, *_ in ends], (high - low) * 0.08), ends, strict=True):
            axes.annotate(
                text,
                (1.015, y),
                xycoords=("axes fraction", "data"),
                color=colour,
                va="center",
                annotation_clip=False,
            )
        axes.set_title("Loss (nats per token) against energy spent")
        axes.set_xlabel(f"IT energy ({unit})")
        axes.grid(axis="y")

    return _render("loss-energy", "Training and validation loss against the energy spent so far.", draw)
