"""Energy or carbon so far, beside what was planned and what the budget allows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from dashboards.figures.curves import MEASURED, energy_at
from dashboards.figures.drawing import COLOURS, HATCH, Drawing, Look, Missing, label_right, time_scale
from energy.carbon.series import IntensitySeries
from energy.human import digits, human_carbon, human_energy, scale_of
from energy.units import GRAM_PER_TONNE, JOULE_PER_KWH

POINTS = 200
FAR = 3.0  # a limit this many times above all that is drawn would flatten it: it is named, and not drawn
_KWH = ((1e3, 1e3, "MWh"), (0.1, 1.0, "kWh"), (0.0, 1e-3, "Wh"))
_TONNE = ((1.0, 1.0, "t"), (1e-3, 1e-3, "kg"), (1e-6, 1e-6, "g"), (0.0, 1e-9, "mg"))


@dataclass(frozen=True)
class Spending:
    """What is drawn: `key` of the record, its name, and amounts in its unit (kWh or t CO2eq) at unix seconds."""

    key: str
    what: str
    times: np.ndarray
    amount: np.ndarray
    measured: np.ndarray


def spending(account: Any, record: Mapping[str, Any], of: str, series: IntensitySeries | None) -> Spending:
    """Energy at the facility where the PUE is known, else of the IT; or carbon, whose end is the record's figure.

    of: "energy" or "carbon". Missing where nothing was metered, or where the record has no carbon.
    """
    if account.start_unix_s is None or not account.power:
        raise Missing("nothing was metered: the run's ledgers hold no power (energy/*.ledger)")
    times = np.linspace(account.start_unix_s, account.end_unix_s, POINTS + 1)
    it_kwh, measured_kwh = (energy_at(account, times, methods) / JOULE_PER_KWH for methods in (None, MEASURED))
    pue, energy, carbon = record["energy"]["pue"], record["energy"], record["carbon"]
    if of == "energy" and energy["energy_facility_kwh"] is None:
        return Spending("energy_it_kwh", "IT energy", times, it_kwh, measured_kwh)
    if of == "energy":
        return Spending("energy_facility_kwh", "Facility energy", times, it_kwh * pue, measured_kwh * pue)
    if carbon["carbon_tco2eq"] is None and series is not None and pue is not None:
        raise Missing(
            "the run's carbon is not known: its grid series does not cover all of the run, and no constant does"
        )
    if carbon["carbon_tco2eq"] is None:
        lacks = [name for name, value in (("a PUE (energy.pue)", pue),
                                          ("a grid intensity (energy.grid or energy.intensity)",
                                           carbon["intensity_g_per_kwh"])) if value is None]  # fmt: skip
        raise Missing(f"the run's carbon is not known: the record lacks {' and '.join(lacks) or 'it'}")
    if series is None:
        per_kwh = pue * carbon["intensity_g_per_kwh"] / GRAM_PER_TONNE
        tonnes, measured = it_kwh * per_kwh, measured_kwh * per_kwh
    else:
        middles = (times[1:] + times[:-1]) / 2
        found = [series.at(float(at)) for at in middles]
        fallback = carbon["intensity_g_per_kwh"]
        grams = np.array([fallback or 0.0 if g is None else g for g in found]) * pue
        tonnes, measured = (
            np.concatenate([[0.0], np.cumsum(np.diff(kwh) * grams)]) / GRAM_PER_TONNE for kwh in (it_kwh, measured_kwh)
        )
        scale = carbon["carbon_tco2eq"] / tonnes[-1] if tonnes[-1] else 1.0  # the record integrates exactly
        tonnes, measured = tonnes * scale, measured * scale
    return Spending("carbon_tco2eq", "Carbon, location-based,", times, tonnes, measured)


def budget_of(spec: Mapping[str, Any], of: str) -> float | None:
    """The limit in energy.budget or budget of a run's spec, in kWh or t CO2eq."""
    section = (spec.get("energy") or {}).get("budget") or {}
    value = section.get(of)
    return None if value is None else float(value)


def spent_drawing(
    account: Any,
    record: Mapping[str, Any],
    of: str = "energy",
    series: IntensitySeries | None = None,
    plan: Mapping[str, Any] | None = None,
    budget: float | None = None,
) -> Drawing:
    """Cumulative energy or carbon, the modelled part hatched, with the plan's low to high and the budget where known.

    plan: the `plan` of plan.json; budget: in kWh (of the same boundary) or t CO2eq.
    """
    spent = spending(account, record, of, series)
    said = human_energy if of == "energy" else human_carbon
    end = float(spent.amount[-1])
    planned = [None if plan is None else part.get(spent.key) for part in _parts(plan)]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        known = [v for v in (budget, *planned) if v is not None]
        drawn = [v for v in known if v <= FAR * end]
        top = max([end, *drawn]) or 1.0
        factor, unit = scale_of(top, _KWH if of == "energy" else _TONNE)
        seconds = float(spent.times[-1] - spent.times[0])
        time_factor, time_unit = time_scale(seconds)
        x = (spent.times - spent.times[0]) / time_factor
        y, measured = spent.amount / factor, spent.measured / factor
        axes.fill_between(x, 0, measured, facecolor=to_rgba(COLOURS[0], 0.35), linewidth=0)
        hatched: dict[str, Any] = {"facecolor": to_rgba(COLOURS[1], 0.18), "edgecolor": COLOURS[1], "linewidth": 0}
        hatched["hatch"] = HATCH
        axes.fill_between(x, measured, y, facecolor=hatched["facecolor"], linewidth=0)
        axes.fill_between(x, measured, y, **hatched | {"facecolor": "none"})
        axes.plot(x, y, color=COLOURS[0])
        axes.set_xlim(0, float(x[-1]))
        far = [f"{name} {said(value)}, {digits(100 * end / value)} % of it used" for name, value in
               (("budget", budget), ("plan", planned[0])) if value is not None and value > FAR * end]  # fmt: skip
        axes.set_ylim(0, top / factor * (1.28 if far else 1.1))
        ends: list[tuple[float, str, Look]] = [(float(y[-1]), f"{said(end)} in all", {"color": COLOURS[0]})]
        modelled = end - float(spent.measured[-1])
        if modelled > 0.005 * end:
            ends.append((float((y[-1] + measured[-1]) / 2), f"{said(modelled)} modelled", hatched))
        ends += _draw_plan(axes, planned, factor, end, said)
        if budget is not None and budget in drawn:
            dashed: dict[str, Any] = {"color": COLOURS[5], "linewidth": 1.4, "linestyle": (0, (6, 2))}
            axes.axhline(budget / factor, **dashed)
            ends.append((budget / factor, f"budget {said(budget)}", dashed))
        label_right(axes, ends, 0.085)
        if far:
            axes.annotate("↑ " + "; ".join(far), (0.01, 0.98), xycoords="axes fraction", va="top")
        co2 = " CO₂eq" if of == "carbon" else ""
        axes.set_title(f"{spent.what} so far ({unit}{co2}); hatched: modelled or assumed")
        axes.set_xlabel(f"time since the meter started ({time_unit})")
        axes.grid(axis="y")

    beside = [name for name, value in (("the plan", planned[0]), ("the budget", budget)) if value is not None]
    told = f"{spent.what.rstrip(',')} so far: {said(end)}" + (f", beside {' and '.join(beside)}" if beside else "")
    return Drawing(f"{of}-spent", f"{told}.", draw)


def _parts(plan: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """The likely, the low and the high values of a plan."""
    return [plan or {}, (plan or {}).get("low") or {}, (plan or {}).get("high") or {}]


def _draw_plan(axes: Axes, planned: list[Any], factor: float, end: float, said: Any) -> list[tuple[float, str, Look]]:
    likely, low, high = planned
    if likely is None or likely > FAR * end:
        return []
    span = ""
    if low is not None and high is not None and high > low:
        top = min(high, FAR * end) / factor
        axes.axhspan(low / factor, top, facecolor=to_rgba(COLOURS[2], 0.16), linewidth=0, zorder=0.5)
        span = f" ({digits(low / factor)} to {digits(high / factor)})"
    dotted: dict[str, Any] = {"color": COLOURS[2], "linewidth": 1.2, "linestyle": (0, (1, 1.5))}
    axes.axhline(likely / factor, **dotted)
    return [(likely / factor, f"planned {said(likely)}{span}", dotted)]
