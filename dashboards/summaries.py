"""Reports of several runs, each one HTML file that opens offline and prints: a project's total, and a comparison."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from dashboards.comparison import Comparison
from dashboards.figures import Missing, Source
from dashboards.figures.project import project_drawing
from dashboards.report import template_environment
from dashboards.server.compare_table import figure_rows, phase_rows, state_of
from energy import human
from energy.records.record import FILE_NAME
from energy.records.total import Entry, RunList

MOST_RUNS = 1000  # rows of the list of a project: the page stays under 2 MB; the total has all
MOST_NAMES = 12


def total_html(runs: RunList, total: Mapping[str, Any], title: str) -> str:
    """The report of a project, from its runs and their total (`energy.records.total.project_total`).

    The runs that took most are listed first; how many are not listed is said.
    """
    entries = sorted(runs.entries, key=lambda entry: (-(entry.energy_it_kwh or 0.0), entry.name))
    times = [entry.start_unix_s for entry in entries if entry.start_unix_s is not None]
    try:
        figure = project_drawing(total["by_purpose"], measured_kwh(entries)).inline()
    except Missing as missing:
        figure, lacks = "", str(missing)
    else:
        lacks = ""
    return _render(
        "total",
        title=title,
        total=total,
        headline=_headline(total),
        entries=entries[:MOST_RUNS],
        more=max(0, len(entries) - MOST_RUNS),
        figure=figure,
        lacks=lacks,
        left_out=runs.left_out,
        most_names=MOST_NAMES,
        days=list(dict.fromkeys(_day(each) for each in (min(times), max(times)))) if times else [],
    )


def measured_kwh(entries: Sequence[Entry]) -> dict[str, float]:
    """kWh by group of the runs that were measured, by each record's own share; an unread one adds nothing."""
    found: dict[str, float] = {}
    for entry in entries:
        if not entry.has_record or not entry.energy_it_kwh:
            continue
        record = json.loads((entry.path / FILE_NAME).read_text(encoding="utf-8"))
        share = record["energy"]["share_measured"] or 0.0
        found[entry.group] = found.get(entry.group, 0.0) + share * entry.energy_it_kwh
    return found


def _headline(total: Mapping[str, Any]) -> list[dict[str, str]]:
    """The numbers at the top; + is at least, where not every run knows the figure."""
    whole = total["total"]

    def card(label: str, key: str, said: Any, note: str) -> dict[str, str]:
        lacks = whole[f"{key}_unknown_runs"]
        value = human.NONE if whole[key] is None or (lacks and not whole[key]) else said(whole[key])
        if value != human.NONE and lacks:
            value += " +"
        unknown = f"not known of {lacks} of {whole['runs']} runs" if lacks else note
        return {"label": label, "value": value, "note": unknown}

    ratio = total["total_to_final"]["energy_it_kwh"]
    final = "" if ratio is None else f"{human.digits(ratio)} times the final runs"
    failed = (total["by_purpose"].get("failed") or {}).get("energy_it_kwh")
    burnt = "no failed run" if failed is None else f"{human.human_energy(failed)} of it in failed runs"
    return [
        card("IT energy", "energy_it_kwh", human.human_energy, burnt),
        card("Facility energy", "energy_facility_kwh", human.human_energy, final),
        card("Carbon, CO₂eq", "carbon_tco2eq", _mass, "location-based"),
        card("GPU-hours", "gpu_hours", human.digits, "hours of the devices that trained"),
        {"label": "Runs", "value": f"{whole['runs']:,}", "note": "failed and development ones included"},
    ]


def _mass(tonnes: float) -> str:
    return human.human_carbon(tonnes).removesuffix(" CO₂eq")


def comparison_html(found: Comparison, sources: Sequence[Source]) -> str:
    """The report of a comparison; sources: of the same runs, in the same order, for their phases."""
    try:
        figure, lacks = found.figure().inline(), ""
    except Missing as missing:
        figure, lacks = "", str(missing)
    names = [run.name for run in found.runs]
    return _render(
        "compare",
        title=f"{', '.join(names[:-1])} and {names[-1]}",
        runs=[{"name": run.name, "state": state_of(run), "purpose": run.purpose, "partial": run.partial}
              for run in found.runs],
        rows=figure_rows(found),
        phases=phase_rows([source.record["energy"]["phases"] for source in sources]),
        sentences=found.sentences(),
        caveats=found.caveats(),
        changed=found.changed_keys(),
        figure=figure,
        lacks=lacks,
    )  # fmt: skip


def _day(unix_s: float | None) -> str:
    return "–" if unix_s is None else datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d")


def _render(name: str, **context: Any) -> str:
    made = template_environment()
    made.filters |= {"day": _day, "mass": _mass}
    made.globals["say"] = {"digits": human.digits, "energy": human.human_energy, "carbon": _mass}
    return made.get_template(f"{name}.html.j2").render(**context)
