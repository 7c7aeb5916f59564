"""How fast and at what price: tokens/s, MFU and joules per token over the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dashboards.figures.curves import energy_at
from dashboards.figures.drawing import COLOURS, Drawing, Missing, label_right, time_scale
from energy.human import digits, scale_of

Row = Mapping[str, Any]
POINTS = 200
_JOULES = ((1e3, 1e3, "kJ"), (1.0, 1.0, "J"), (1e-3, 1e-3, "mJ"), (0.0, 1e-6, "µJ"))


def rates_of(account: Any, steps: Sequence[Row]) -> dict[str, np.ndarray]:
    """Of groups of steps of one attempt: attempt, time in unix s, tokens_per_s in the time of the steps,
    joule_per_token.

    The first step of an attempt has none before it, and is left out: it may have compiled the model. Joules are those
    of everything since the step before, so what lies between steps is in them; tokens/s is of the steps alone.
    """
    rows = [
        (b["time_unix_s"], float(b["tokens"]) - float(a["tokens"]), float(b.get("seconds") or np.nan), a["time_unix_s"],
         b.get("attempt") or 1)
        for a, b in zip(steps, steps[1:], strict=False)
        if (a.get("attempt") or 1) == (b.get("attempt") or 1) and b["tokens"] > a["tokens"]
    ]  # fmt: skip
    if not rows:
        raise Missing("fewer than two steps of one attempt were recorded (metrics/rank-0.jsonl)")
    ends, tokens, seconds, begins, attempts = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    used = energy_at(account, ends) - energy_at(account, begins) if account.power else np.full(len(ends), np.nan)
    groups = [
        part
        for group in np.array_split(np.arange(len(ends)), min(POINTS, len(ends)))
        for part in np.split(group, np.flatnonzero(np.diff(attempts[group])) + 1)
    ]
    total = {name: np.array([column[g].sum() for g in groups]) for name, column in
             (("tokens", tokens), ("seconds", seconds), ("joules", used))}  # fmt: skip
    return {
        "attempt": np.array([attempts[g[0]] for g in groups], dtype=int),
        "time": np.array([ends[g[-1]] for g in groups]),
        "tokens_per_s": total["tokens"] / total["seconds"],
        "joule_per_token": total["joules"] / total["tokens"],
    }


def _broken(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The line with holes where nothing was trained: where two points lie far further apart than most."""
    steps = np.diff(x)
    if not len(steps):
        return x, y
    at = np.flatnonzero(steps > 5 * float(np.median(steps))) + 1
    return np.insert(x, at, x[at]), np.insert(y, at, np.nan)


def rates_drawing(account: Any, steps: Sequence[Row], record: Mapping[str, Any]) -> Drawing:
    """Panels over one time axis; a quantity that is not known has no panel, and the last line says why.

    Missing where there are too few steps.
    """
    rates, compute = rates_of(account, steps), record["compute"]
    peak, per_token, devices = (compute[key] for key in ("peak_flops", "flop_per_token", "devices"))
    panels: list[tuple[str, np.ndarray, float | None]] = []
    absent = []
    top = float(np.nanmax(rates["tokens_per_s"]))
    thousand = 1e3 if top >= 1e4 else 1.0
    rate = compute["tokens_per_s"]
    title = f"Tokens per second{' (thousands)' if thousand > 1 else ''}, in the time of the steps"
    panels.append((title, rates["tokens_per_s"] / thousand, None if rate is None else rate / thousand))
    if peak and per_token and devices:
        # Of a run that went on with more or fewer GPUs, each attempt had its own; of CPUs this counts ranks.
        attempts = (record["run"]["attempts"] or []) if record["hardware"]["device_type"] == "cuda" else []
        held = {each.get("attempt"): each.get("world_size") for each in attempts}
        of_each = np.array([held.get(attempt) or devices for attempt in rates["attempt"].tolist()], dtype=float)
        share = 100 * rates["tokens_per_s"] * per_token / (peak * of_each)
        mean = compute["mfu"]
        convention = str(compute["flop_convention"]).partition(":")[0]
        title = f"MFU (%), {convention} convention over a peak of {digits(peak / 1e12)} TFLOP/s per device"
        panels.append((title, share, None if mean is None else 100 * mean))
    else:
        absent.append("MFU: no peak is known for these devices")
    if np.isfinite(rates["joule_per_token"]).any():
        joules = rates["joule_per_token"]
        factor, unit = scale_of(float(np.nanmedian(joules)), _JOULES)
        mean = record["energy"]["joule_per_token"]
        title = f"IT energy per token ({unit}), with what lies between the steps"
        panels.append((title, joules / factor, None if mean is None else mean / factor))
    else:
        absent.append("energy per token: nothing was metered")

    def draw(figure: Figure) -> None:
        first = account.start_unix_s if account.start_unix_s is not None else float(steps[0]["time_unix_s"])
        factor, unit = time_scale(float(rates["time"][-1]) - first)
        x = (rates["time"] - first) / factor
        figure.set_size_inches(7.2, 0.6 + 1.25 * len(panels))
        parts = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for index, (axes, (title, values, mean)) in enumerate(zip(parts, panels, strict=True)):
            colour = COLOURS[(0, 2, 5)[index]]
            few = len(x) <= 60
            axes.plot(*_broken(x, values), color=colour, linewidth=1.2, marker="." if few else None, markersize=3.5)
            # A pause between two groups of steps must not hide the rest: the axis ends at three times the median.
            high = float(np.nanmax(values))
            limit = 3 * float(np.nanmedian(values))
            axes.set_ylim(0, min(high, limit) * 1.12)
            over = int(np.sum(values > limit))
            if over:
                title += f"; {over} above the axis, up to {digits(high)}"
            if mean is not None:
                whole = min(mean, axes.get_ylim()[1])
                dotted: dict[str, Any] = {"color": colour, "linewidth": 0.7, "linestyle": (0, (1, 2))}
                axes.axhline(whole, **dotted)
                name = f"whole run {digits(mean)}" + ("" if mean <= axes.get_ylim()[1] else " ↑")
                label_right(axes, [(whole, name, dotted)])
            axes.set_title(title, fontsize=8.8, pad=5)
            axes.grid(axis="y")
        margin = 0.01 * float(x[-1] - x[0]) or 1.0
        parts[-1].set_xlim(float(x[0]) - margin, float(x[-1]) + margin)
        notes = f"\nnot shown: {'; '.join(absent)}" if absent else ""
        parts[-1].set_xlabel(f"time since the meter started ({unit}){notes}")

    told = "Tokens per second, MFU and energy per token over the run."
    return Drawing("rates", told + (f" Not shown: {'; '.join(absent)}." if absent else ""), draw)
