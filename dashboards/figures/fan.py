"""The plan as a fan over time, and on top of it what happened, where the run has begun."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from dashboards.figures.curves import energy_at
from dashboards.figures.drawing import COLOURS, HATCH, Drawing, Look, Missing, label_right, thin, time_scale
from dashboards.figures.planned import SAME, Plan, require_time, three
from energy.human import digits, human_count, human_energy, human_time, scale_of
from energy.units import JOULE_PER_KWH

DAY_S = 86400.0
POINTS = 300
BEGUN = 0.01  # a run that has had less than this share of the time is hardly a line: it is said where to look
_KWH = ((1e3, 1e3, "MWh"), (0.1, 1.0, "kWh"), (0.0, 1e-3, "Wh"))
_TOKENS = ((1e12, 1e12, "T"), (1e9, 1e9, "B"), (1e6, 1e6, "M"), (0.0, 1e3, "k"))


@dataclass(frozen=True)
class Fan:
    """One planned quantity over time: low, likely and high at the end, when each is reached, and what happened.

    what: its name; ends: (amount at the end) and days_s: (seconds), low to high; happened: (s since the start, amount).
    """

    key: str
    what: str
    ends: tuple[float, float, float]
    seconds: tuple[float, float, float]
    happened: tuple[np.ndarray, np.ndarray] | None = None

    def envelope(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(least, likely, most) so far at each moment in s; what has reached its end stays there.

        The rate is the amount over the time of the same case. Tokens have one end and three times: the least is then of
        the slowest. Energy grows at a power, which low and high have each their own.
        """
        low_s, likely_s, high_s = self.seconds
        low, likely, high = self.ends
        if low == high:
            return (np.minimum(low * at / high_s, low), np.minimum(low * at / likely_s, low),
                    np.minimum(low * at / low_s, low))  # fmt: skip
        paths = [np.minimum(end * at / s, end) for end, s in zip(self.ends, self.seconds, strict=True)]
        return np.min(paths, axis=0), paths[1], np.max(paths, axis=0)


def fans_of(
    plan: Plan, account: Any = None, record: Mapping[str, Any] | None = None, steps: Sequence[Mapping[str, Any]] = ()
) -> list[Fan]:
    """Energy (of the facility, where plan and run know it, else IT) and tokens of a plan; with an account, what was.

    Missing where the plan has no time.
    """
    days = require_time(plan)
    seconds = (days[0] * DAY_S, days[1] * DAY_S, days[2] * DAY_S)
    metered = account is not None and account.start_unix_s is not None and bool(account.power)
    pue = (record or {}).get("energy", {}).get("pue")
    found: list[Fan] = []
    facility, it = three(plan, "energy_facility_kwh"), three(plan, "energy_it_kwh")
    if facility is not None and (pue is not None or not metered):
        key, what, ends, times = "energy_facility_kwh", "Facility energy", facility, pue or 1.0
    else:
        key, what, ends, times = "energy_it_kwh", "IT energy", it or (0.0, 0.0, 0.0), 1.0
    if ends[1] > 0:
        happened = None
        if metered:
            at = np.linspace(account.start_unix_s, account.end_unix_s, POINTS + 1)
            happened = (at - at[0], energy_at(account, at) / JOULE_PER_KWH * times)
        found.append(Fan(key, what, ends, seconds, happened))
    tokens = three(plan, "tokens")
    if tokens is not None and tokens[1] > 0:
        happened = None
        if steps:
            start = account.start_unix_s if metered else float(steps[0]["time_unix_s"]) - float(steps[0]["seconds"])
            # In order of time: where steps were done again, the line goes back, as the run did.
            ordered = sorted(steps, key=lambda step: float(step["time_unix_s"]))
            begun = float(ordered[0]["time_unix_s"]) - float(ordered[0]["seconds"])
            at = np.array([start, begun, *(step["time_unix_s"] for step in ordered)], dtype=float)
            done = np.array([0, 0, *(step["tokens"] for step in ordered)], dtype=float)
            happened = (at - start, done)
        found.append(Fan("tokens", "Tokens trained", tokens, seconds, happened))
    return found


def fan_drawing(
    plan: Plan, account: Any = None, record: Mapping[str, Any] | None = None, steps: Sequence[Mapping[str, Any]] = ()
) -> Drawing:
    """A panel for energy and one for tokens: the plan's low to high shaded and hatched, what happened as a line."""
    fans = fans_of(plan, account, record, steps)
    if not fans:
        raise Missing("the plan has neither energy nor tokens")
    spent_s = max((float(fan.happened[0][-1]) for fan in fans if fan.happened is not None), default=0.0)
    until = max(fans[0].seconds[2] * 1.04, spent_s)
    hardly = 0 < spent_s < BEGUN * until

    def draw(figure: Figure) -> None:
        figure.set_size_inches(7.2, 0.6 + 1.9 * len(fans))
        every = figure.subplots(len(fans), 1, sharex=True, squeeze=False)[:, 0]
        factor, unit = time_scale(until)
        for axes, fan in zip(every, fans, strict=True):
            _panel(axes, fan, until, factor)
        every[-1].set_xlim(0, until / factor)
        said = "; the run has only begun: its line is at the very left" if hardly else ""
        of = "the meter started" if spent_s else "the start"
        every[-1].set_xlabel(f"time since {of} ({unit}){said}")

    told = [f"{fan.what} {_said(fan, fan.ends[1])} in {human_time(fan.seconds[1])}" for fan in fans]
    so_far = [_said(fan, float(fan.happened[1][-1])) for fan in fans if fan.happened is not None]
    beside = f"; actual {' and '.join(so_far)} in {human_time(spent_s)}" if so_far else ""
    return Drawing("fan", f"The plan of {plan.get('name')}: {', '.join(told)}{beside}.", draw)


def _said(fan: Fan, value: float) -> str:
    return f"{human_count(value)}" if fan.key == "tokens" else human_energy(value)


def _panel(axes: Axes, fan: Fan, until: float, factor: float) -> None:
    most = max(fan.ends[2], 0.0 if fan.happened is None else float(np.nanmax(fan.happened[1])))
    size, unit = scale_of(most, _TOKENS if fan.key == "tokens" else _KWH)
    corners = [*fan.seconds, *(fan.happened[0][-1:] if fan.happened is not None else [])]
    at = np.unique(np.concatenate([np.linspace(0.0, until, POINTS), corners]))
    least, likely, top = (part / size for part in fan.envelope(at))
    x = at / factor
    axes.fill_between(x, least, top, facecolor=to_rgba(COLOURS[2], 0.14), linewidth=0)
    axes.fill_between(x, least, top, facecolor="none", edgecolor=to_rgba(COLOURS[2], 0.55), hatch=HATCH, linewidth=0)
    plan: dict[str, Any] = {"color": COLOURS[2], "linestyle": (0, (5, 2)), "linewidth": 1.2}
    axes.plot(x, likely, **plan)
    axes.plot(fan.seconds[1] / factor, fan.ends[1] / size, marker="D", color=COLOURS[2], markersize=4, linestyle="none")
    axes.set_ylim(0, most / size * 1.08)
    low, middle, high = fan.ends
    outer = [(word, end) for word, end in (("low", low), ("high", high)) if abs(end - middle) > SAME * middle]
    also = "".join(f" and {word}" for word in ("low", "high") if outer and word not in dict(outer))
    labels: list[tuple[float, str, Look]] = [
        (middle / size, f"{'likely' if outer else 'planned'}{also} {digits(middle / size)}", plan)
    ]
    labels += [(end / size, f"{word} {digits(end / size)}", {}) for word, end in outer]
    if fan.happened is not None:
        seconds, amount = thin(*fan.happened)
        axes.plot(seconds / factor, amount / size, color=COLOURS[0], linewidth=1.8)
        axes.plot(seconds[-1] / factor, amount[-1] / size, marker="o", color=COLOURS[0], markersize=4)
        labels.append((float(amount[-1]) / size, f"actual {digits(float(amount[-1]) / size)}", {"color": COLOURS[0]}))
    label_right(axes, labels, 0.13)
    band = "; hatched: the plan's low to high" if np.any(top > least * (1 + SAME)) else ""
    axes.set_title(f"{fan.what} ({unit}){band}")
    axes.grid(axis="y")
