"""Reports of several runs: a project's total, and a comparison. HTML of one file, which opens offline and prints, or
Markdown, which has no figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dashboards.comparison import Comparison
from dashboards.figures import Drawing, Missing
from dashboards.figures.project import project_drawing
from dashboards.report import report_environment
from dashboards.server.compare_table import figure_rows, phase_rows, state_of
from dashboards.templating import day
from energy import human
from energy.records.total import Entry, RunList

MOST_RUNS = 1000  # rows of the list of a project: the page stays under 2 MB; the total has all
MOST_NAMES = 12


def total_html(runs: RunList, total: Mapping[str, Any], title: str) -> str:
    """The report of a project, from its runs and their total (`energy.records.total.project_total`).

    The runs that took most are listed first; how many are not listed is said.
    """
    drawn = _inline(lambda: project_drawing(total["by_purpose"], measured_kwh(runs.entries)))
    return _render("total.html.j2", **_of_total(runs, total, title), **drawn)


def total_markdown(runs: RunList, total: Mapping[str, Any], title: str) -> str:
    """As `total_html`."""
    return _render("total.md.j2", **_of_total(runs, total, title))


def _of_total(runs: RunList, total: Mapping[str, Any], title: str) -> dict[str, Any]:
    entries = sorted(runs.entries, key=lambda entry: (-(entry.energy_it_kwh or 0.0), entry.name))
    times = [entry.start_unix_s for entry in entries if entry.start_unix_s is not None]
    return {
        "title": title,
        "total": total,
        "headline": _headline(total),
        "entries": entries[:MOST_RUNS],
        "more": max(0, len(entries) - MOST_RUNS),
        "left_out": runs.left_out,
        "most_names": MOST_NAMES,
        "days": list(dict.fromkeys(day(each) for each in (min(times), max(times)))) if times else [],
    }


def measured_kwh(entries: Sequence[Entry]) -> dict[str, float]:
    """kWh by group of the runs that were measured, by each record's own share; an unread one adds nothing."""
    found: dict[str, float] = {}
    for entry in entries:
        if entry.energy_it_kwh:
            share = entry.shares.get("share_measured") or 0.0
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


Phases = Sequence[Mapping[str, Any]]  # of a run, as its record has them


def comparison_html(found: Comparison, phases: Sequence[Phases]) -> str:
    """The report of a comparison; phases: of the same runs, in the same order."""
    return _render("compare.html.j2", **_of_comparison(found, phases), **_inline(found.figure))


def comparison_markdown(found: Comparison, phases: Sequence[Phases]) -> str:
    """As `comparison_html`."""
    return _render("compare.md.j2", **_of_comparison(found, phases))


def _of_comparison(found: Comparison, phases: Sequence[Phases]) -> dict[str, Any]:
    names = [run.name for run in found.runs]
    return {
        "title": f"{', '.join(names[:-1])} and {names[-1]}",
        "runs": [{"name": run.name, "state": state_of(run), "purpose": run.purpose, "partial": run.partial}
                 for run in found.runs],
        "rows": figure_rows(found),
        "phases": phase_rows(phases),
        "sentences": found.sentences(),
        "caveats": found.caveats(),
        "changed": found.changed_keys(),
    }  # fmt: skip


def _inline(draw: Callable[[], Drawing]) -> dict[str, str]:
    """The figure of a page, or what it lacks."""
    try:
        return {"figure": draw().inline(), "lacks": ""}
    except Missing as missing:
        return {"figure": "", "lacks": str(missing)}


def _render(name: str, **context: Any) -> str:
    made = report_environment()
    made.filters |= {"mass": _mass}
    made.globals["say"] = {"digits": human.digits, "energy": human.human_energy, "carbon": _mass}
    return made.get_template(name).render(**context)
