"""What the energy, the tokens, the compute or the hours bought: loss against each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dashboards.figures.curves import energy_at
from dashboards.figures.drawing import COLOURS, INK, Drawing, Look, Missing, label_right, say_nothing, thin, time_scale
from energy.human import energy_scale, human_count, human_flop

Row = Mapping[str, Any]
AXES = ("energy", "tokens", "flop", "hours")
NAMES = {"energy": "energy spent", "tokens": "tokens trained", "flop": "compute", "hours": "time"}


def _places(
    x: str, account: Any, steps: Sequence[Row], rows: Sequence[Row], flop_per_token: float | None
) -> np.ndarray:
    """Where each row of steps or evaluations lies on the axis: in J, tokens, FLOP or h."""
    times = np.array([row["time_unix_s"] for row in rows], dtype=float)
    if x == "energy":
        return energy_at(account, times)
    if x == "hours":
        first = account.start_unix_s
        if first is None:
            first = float(steps[0]["time_unix_s"]) - float(steps[0].get("seconds") or 0.0)
        return (times - first) / 3600.0
    # An evaluation holds its step and no tokens: those of the step of the same attempt, or of the last one before it.
    tokens = {(int(s.get("attempt") or 1), int(s["step"])): float(s["tokens"]) for s in steps}
    numbers = np.array([s["step"] for s in steps], dtype=float)
    known = np.array([s["tokens"] for s in steps], dtype=float)
    at = [
        tokens.get((int(r.get("attempt") or 1), int(r["step"])), float(np.interp(r["step"], numbers, known)))
        for r in rows
    ]
    return np.array(at, dtype=float) * (1.0 if x == "tokens" else flop_per_token or 0.0)


def _scale(x: str, most: float) -> tuple[float, str]:
    if x == "energy":
        factor, unit = energy_scale(most)
        return factor, f"IT energy ({unit})"
    if x == "hours":
        seconds, unit = time_scale(3600.0 * most)
        return seconds / 3600.0, f"time since the meter started ({unit})"
    said = human_count(most) if x == "tokens" else human_flop(most)
    number, _, unit = said.partition(" ")
    factor = most / float(number.replace(",", "")) if unit else 1.0
    factor = 10.0 ** round(np.log10(factor)) if factor > 0 else 1.0
    return factor, f"tokens trained ({unit})" if x == "tokens" and unit else "tokens trained" if x == "tokens" else (
        f"compute by the PaLM convention ({unit})"
    )


def loss_drawing(
    account: Any,
    steps: Sequence[Row],
    evaluations: Sequence[Row] = (),
    entropy_nats: float | None = None,
    x: str = "energy",
    flop_per_token: float | None = None,
) -> Drawing:
    """Training and validation loss (nats per token) against one of AXES; a line an attempt.

    flop_per_token: by the PaLM convention, for x = "flop". Missing where it is not known.
    """
    if x not in AXES:
        raise ValueError(f"--x {x!r}: expected one of {', '.join(AXES)}")
    if x == "flop" and flop_per_token is None:
        raise Missing("the FLOP of a token are not known: run.json has no model.flop_per_token")

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        if not steps or (x == "energy" and not account.power):
            return say_nothing(axes, "no steps with energy were recorded")
        places = _places(x, account, steps, steps, flop_per_token)
        factor, label = _scale(x, float(places.max()))
        at = places / factor
        losses = np.array([step["loss"] for step in steps], dtype=float)
        numbers = np.array([int(step.get("attempt") or 1) for step in steps])
        attempts = sorted(set(numbers.tolist()))
        for attempt in attempts:
            mine = np.flatnonzero(numbers == attempt)
            axes.plot(*thin(at[mine], losses[mine]), color=COLOURS[0], linewidth=1.2)
            if len(attempts) > 1:
                first = (float(at[mine[0]]), float(losses[mine[0]]))
                axes.plot(*first, marker="|", color=INK, markersize=9)
                axes.annotate(f"attempt {attempt}", first, xytext=(3, 5), textcoords="offset points")
        ends: list[tuple[float, str, Look]] = [
            (float(losses[-1]), f"training {losses[-1]:.3f}", {"color": COLOURS[0], "linewidth": 1.2})
        ]
        reached = float(at.max())
        if evaluations:
            checked = _places(x, account, steps, evaluations, flop_per_token) / factor
            validation = np.array([each["validation_loss"] for each in evaluations], dtype=float)
            few = len(evaluations) <= 60
            dashed: dict[str, Any] = {"color": COLOURS[5], "linewidth": 1.0, "linestyle": (0, (4, 2))}
            of_attempt = np.array([int(each.get("attempt") or 1) for each in evaluations])
            for attempt in sorted(set(of_attempt.tolist())):
                mine = np.flatnonzero(of_attempt == attempt)
                axes.plot(*thin(checked[mine], validation[mine]), marker="o" if few else None, markersize=4, **dashed)
            ends.append((float(validation[-1]), f"validation {validation[-1]:.3f}", dashed))
            reached = max(reached, float(checked.max()))
        low, high = axes.get_ylim()
        if entropy_nats is not None:
            dotted: dict[str, Any] = {"color": INK, "linewidth": 0.7, "linestyle": (0, (1, 2))}
            axes.axhline(entropy_nats, **dotted)
            ends.append((entropy_nats, f"unigram entropy {entropy_nats:.2f}", dotted))
            margin = 0.05 * (high - low)
            low, high = min(low, entropy_nats - margin), max(high, entropy_nats + margin)
        axes.set_ylim(low, high)
        axes.set_xlim(0, reached * 1.01 or 1.0)
        label_right(axes, ends, 0.08)
        axes.set_title(f"Loss (nats per token) against {NAMES[x]}")
        axes.set_xlabel(label)
        axes.grid(axis="y")

    return Drawing(f"loss-{x}", f"Training and validation loss against the {NAMES[x]} so far.", draw)
