"""A comparison of runs in words and cells, for its page: one unit a row, so that it can be read across."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dashboards.comparison import AS_FACTOR, SAME, Compared, Comparison, sense_of
from dashboards.server.parts import UNKNOWN
from energy import human

_KWH: human.Scales = ((1e3, 1e3, "MWh"), (0.1, 1.0, "kWh"), (1e-4, 1e-3, "Wh"), (0.0, 1 / 3.6e6, "J"))
_JOULE: human.Scales = ((1e3, 1e3, "kJ"), (1.0, 1.0, "J"), (1e-3, 1e-3, "mJ"), (0.0, 1e-6, "µJ"))
_TONNE: human.Scales = ((1.0, 1.0, "t"), (1e-3, 1e-3, "kg"), (1e-6, 1e-6, "g"), (0.0, 1e-9, "mg"))
Say = Callable[[float], str]


def figure_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """{label, cells: [{value, note, change, sense, apart}]} of each figure that any run knows.

    apart: it does not compare with the first run's; sense: "better" or "worse" where a figure has such.
    """
    first, rows = comparison.runs[0], []
    blocked = {run.name: comparison.blocked(run) for run in comparison.runs[1:]}
    changes = {run.name: comparison.differences(run) for run in comparison.runs[1:]}
    for key, label, say in _figures(comparison):
        cells = []
        for run in comparison.runs:
            value = run.figures[key]
            cell: dict[str, Any] = {
                "value": UNKNOWN if value is None else say(value),
                "note": "",
                "change": "",
                "sense": "",
            }
            cell["apart"] = run is not first and value is not None and key in blocked[run.name]
            if key == "energy_it_kwh" and run.low_kwh is not None and run.high_kwh is not None:
                cell["note"] = f"{say(run.low_kwh)} to {say(run.high_kwh)}"
            if run is not first and not cell["apart"]:
                cell["change"], cell["sense"] = _change(key, changes[run.name][key])
            cells.append(cell)
        rows.append({"label": label, "cells": cells})
    return rows


def _figures(comparison: Comparison) -> list[tuple[str, str, Say]]:
    """(key, name with its unit, how a value is said)."""

    def scaled(key: str, name: str, scales: human.Scales, what: str = "") -> tuple[str, str, Say]:
        most = max((value for run in comparison.runs if (value := run.figures[key]) is not None), default=0.0)
        size, unit = human.scale_of(most, scales)
        return key, f"{name} ({unit}{what})", lambda value: human.digits(value / size)

    kinds = {str(run.means["loss_kind"]) for run in comparison.runs if run.figures["loss"] is not None}
    kind = kinds.pop() if len(kinds) == 1 else ""
    found: list[tuple[str, str, Say]] = [
        ("params", "Parameters", human.human_count),
        ("tokens", "Tokens", human.human_count),
        ("loss", f"{kind} loss".strip().capitalize(), lambda value: f"{value:.3f}"),
        scaled("energy_it_kwh", "IT energy", _KWH),
        scaled("energy_facility_kwh", "Facility energy", _KWH),
        scaled("joule_per_token", "Energy per token", _JOULE),
        scaled("carbon_tco2eq", "Carbon", _TONNE, " CO₂eq"),
        ("gpu_hours", "GPU-hours", human.digits),
        ("mfu", "MFU (PaLM)", human.percent),
    ]
    return [each for each in found if any(run.figures[each[0]] is not None for run in comparison.runs)]


def _change(key: str, difference: Mapping[str, float | None] | None) -> tuple[str, str]:
    """The change against the first run, in % or as a factor, and whether it is for the better."""
    relative = None if difference is None else difference["relative"]
    if relative is None:
        return "", ""
    if abs(relative) < SAME:
        return "=", ""
    words = f"×{human.digits(1 + relative)}" if relative >= AS_FACTOR else f"{100 * relative:+.3g} %".replace("-", "−")
    return words, sense_of(key, relative)


def state_of(run: Compared) -> str:
    """How it ended, and how much of its plan it trained where that is not all."""
    share = run.trained_fraction
    return f"{run.status}, {human.percent(share)} of its plan" if run.partial and share is not None else run.status


def phase_rows(phases: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """{phase, cells: [{energy, share, seconds, width} or None]}: what each run spent in it, the largest on top.

    phases: of each run, as its record has them. width: per cent of the largest share of all.
    """
    by_run = [{str(each["phase"]): each for each in of_run} for of_run in phases]
    names = dict.fromkeys(name for of_run in by_run for name in of_run)
    most = max((each["share"] or 0.0 for of_run in by_run for each in of_run.values()), default=0.0)

    def largest(name: str) -> float:
        return max(of_run[name]["share"] or 0.0 for of_run in by_run if name in of_run)

    def cell(each: Mapping[str, Any] | None) -> dict[str, Any] | None:
        if each is None:
            return None
        share = each["share"]
        return {
            "energy": human.human_energy(each["energy_kwh"]),
            "share": UNKNOWN if share is None else human.percent(share),
            "seconds": human.human_time(each["seconds"]),
            "width": round(100 * share / most, 1) if share and most else 0.0,
        }

    ordered = sorted(names, key=lambda name: -largest(name))
    return [{"phase": name, "cells": [cell(of_run.get(name)) for of_run in by_run]} for name in ordered]


def flat_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """A row a run for a spreadsheet: every figure, and its change in % against the first run where they compare."""
    rows = []
    for index, run in enumerate(comparison.runs):
        changes = comparison.differences(run) if index else {}
        row: dict[str, Any] = {"run": run.name, "status": run.status, "purpose": run.purpose}
        for key, value in run.figures.items():
            relative = (changes.get(key) or {}).get("relative")
            row |= {key: value, f"{key}_change_percent": None if relative is None else 100 * relative}
        row |= {"energy_it_low_kwh": run.low_kwh, "energy_it_high_kwh": run.high_kwh}
        rows.append(row | {"does_not_compare": "; ".join(sorted(comparison.blocked(run))) if index else ""})
    return rows
