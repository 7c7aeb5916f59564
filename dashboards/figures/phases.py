"""Where the energy went: what moved the model, what had to be, and what is lost or not known."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from dashboards.figures.curves import MEASURED
from dashboards.figures.drawing import COLOURS, HATCH, INK, Drawing, say_nothing
from energy.accounting.account import GAP, IDLE_DEVICES, LOST, USEFUL
from energy.accounting.phases import UNATTRIBUTED
from energy.human import digits, energy_scale, human_energy, human_time, percent
from energy.units import JOULE_PER_KWH

NOT_USED = (LOST, IDLE_DEVICES, GAP, UNATTRIBUTED)
LETTER_WIDTH, GAP_WIDTH = 0.0125, 0.02  # of a label over the whole bar, as a share of its length
ALL = 0.9995
KINDS = ("useful", "overhead", "lost or not known")
LOOKS: dict[str, dict[str, Any]] = {
    "useful": {"facecolor": COLOURS[0], "edgecolor": COLOURS[0]},
    "overhead": {"facecolor": COLOURS[4], "edgecolor": COLOURS[4]},
    "lost or not known": {"facecolor": "none", "edgecolor": INK, "hatch": HATCH},
}


def kind_of(phase: str) -> str:
    """useful: training steps whose result was kept; lost or not known: steps done again, gaps, idle GPUs, no phase."""
    return "useful" if phase in USEFUL else "lost or not known" if phase in NOT_USED else "overhead"


def phases_drawing(account: Any) -> Drawing:
    """Energy by phase as horizontal bars, the largest on top, and above them all of it as one bar by kind."""
    phases = sorted(account.phases.items(), key=lambda item: (-item[1]["energy_j"], item[0]))
    phases = [(name, part) for name, part in phases if part["energy_j"] > 0 or part["seconds"] > 0]
    total = sum(part["energy_j"] for _, part in phases)
    sums = {kind: sum(part["energy_j"] for name, part in phases if kind_of(name) == kind) for kind in KINDS}
    known = _how_known(account)

    def draw(figure: Figure) -> None:
        if not total:
            figure.set_size_inches(7.2, 1.5)
            return say_nothing(figure.add_subplot(), "no energy was booked")
        rows = 0.27 * max(2, len(phases))
        figure.set_size_inches(7.2, 1.75 + rows)
        whole, axes = figure.subplots(2, 1, height_ratios=[0.5, rows + 0.1])
        _draw_whole(whole, sums, total, known)
        factor, unit = energy_scale(phases[0][1]["energy_j"])
        for row, (name, part) in enumerate(phases):
            joules = part["energy_j"]
            value = joules / factor
            axes.barh(row, value, height=0.66, linewidth=0.6, **LOOKS[kind_of(name)])
            parts = (f"{digits(value)} {unit}", percent(joules / total), human_time(part["seconds"]))
            axes.annotate(" · ".join(parts), (value, row), xytext=(5, 0), textcoords="offset points", va="center")
        axes.set_yticks(range(len(phases)), [name.replace("_", " ") for name, _ in phases])
        axes.invert_yaxis()
        axes.set_xlim(0, phases[0][1]["energy_j"] / factor * 1.42)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        layout = figure.get_layout_engine()
        assert isinstance(layout, ConstrainedLayoutEngine)  # the style asks for it
        layout.set(h_pad=0.09)
        axes.set_title(f"Energy by phase ({unit}): energy, share, time")
        axes.grid(axis="x")

    said = "; ".join(f"{name}: {human_energy(part['energy_j'] / JOULE_PER_KWH)}" for name, part in phases)
    return Drawing("phases", f"Energy by phase{known}. {said}.", draw)


def _how_known(account: Any) -> str:
    """What of the energy was not measured: a bar here is of all devices, and can have no hatching for some of them."""
    rest_j = sum(device.energy_j for device in account.devices if device.method not in MEASURED)
    share = rest_j / account.energy_j if account.energy_j > 0 else 0.0
    return f", {percent(share) if share < ALL else 'all'} of it modelled or assumed" if share > 0 else ""


def _draw_whole(axes: Axes, sums: dict[str, float], total: float, known: str) -> None:
    left, reached = 0.0, 0.0
    labels: list[tuple[str, float]] = []
    for kind, joules in sums.items():
        share = joules / total
        if not joules > 0:
            continue
        axes.barh(0, share, left=left, height=1.0, linewidth=0.6, **LOOKS[kind])
        # A label stands over the start of its part, and moves on where the one before is still written.
        text, at = f"{kind} {percent(share)}", max(left, reached)
        labels.append((text, at))
        reached = at + _width(text)
        left += share
    limit = 1.0 + GAP_WIDTH
    for text, at in reversed(labels):  # and back, where the last would pass the end
        at = min(at, limit - _width(text))
        axes.annotate(text, (at, 0.5), xytext=(0, 4), textcoords="offset points", va="bottom")
        limit = at
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.5, 1.3)
    axes.set_axis_off()
    axes.set_title(f"All energy: {human_energy(total / JOULE_PER_KWH)}{known}", pad=6)


def _width(text: str) -> float:
    """Of a label and the gap after it, as a share of the bar's length."""
    return LETTER_WIDTH * len(text) + GAP_WIDTH
