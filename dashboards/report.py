"""The report of a run for people: one HTML file that opens offline and prints, and the same in Markdown."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from jinja2 import Environment

from dashboards.figures import loss_energy_figure, phases_figure, power_figure
from dashboards.templating import template_environment, utc
from energy import human
from energy.accounting.account import account_run
from energy.boundaries import METHODS, boundary_of_record
from energy.carbon.embodied import CONVENTIONS
from energy.export.facts import lacking_carbon, share_text
from energy.records.record import FILE_NAME, series_of, write_record
from energy.runs import MEASURE, RunFolder, replace_file

TEMPLATES = Path(__file__).with_name("templates")
MOST_ROWS = 128  # of sensors, and of warnings: a page of thousands of GPUs is neither read nor under 2 MB
SKIPS_NAMED = 4  # steps that were skipped; the rest is counted
LABELS = {
    "device_hours": "device-hours",
    "energy_it_kwh": "IT energy (kWh)",
    "energy_facility_kwh": "facility energy (kWh)",
    "carbon_tco2eq": "carbon (t CO₂eq)",
    "pue": "power usage effectiveness (PUE)",
    "intensity_g_per_kwh": "grid carbon intensity",
    "device_rated_power_w": "rated power of one device",
    "peak_flops": "peak compute of one device",
}


def headline(record: dict[str, Any]) -> list[dict[str, str]]:
    """The five numbers at the top: label, value with unit, its interval, and one line of context. Of a command that was
    measured, which trains nothing, the three that it has."""
    energy, carbon, compute, time = (record[key] for key in ("energy", "carbon", "compute", "time"))

    def bounds(key: str) -> tuple[float | None, float | None]:
        interval = record["uncertainty"][key] or {}
        return interval.get("low"), interval.get("high")

    def card(label: str, text: str, note: str) -> dict[str, str]:
        value, _, interval = text.partition(" (")
        return {"label": label, "value": value, "interval": interval.rstrip(")"), "note": note}

    facility, mfu = energy["energy_facility_kwh"], compute["mfu"]
    shares = [(energy[f"share_{kind}"], kind) for kind in ("measured", "modelled", "assumed")]
    covered = ", ".join(f"{share_text(share)} {kind}" for share, kind in shares if share)
    hours, rate = time["device_hours"], compute["tokens_per_s"]
    device_hours = "device-hours not known" if hours is None else f"{human.digits(hours)} device-hours"
    used = card(
        "IT energy",
        human.human_energy(energy["energy_it_kwh"], *bounds("energy_it_kwh")),
        covered or "not measured",
    )
    lacking = lacking_carbon(record)
    at_facility = None if facility is None else f"{human.human_energy(facility)} at the facility"
    of_facility = "; ".join(filter(None, (f"needs {lacking}", at_facility))) if lacking else f"of {at_facility}"
    emitted_text = human.human_carbon(carbon["carbon_tco2eq"], *bounds("carbon_tco2eq"))
    emitted = card("Carbon", emitted_text, of_facility)
    took = human.human_time(time["duration_s"])
    if record["model"].get("params") is None:
        return [used, emitted, card("Time", took, device_hours)]
    return [
        used,
        emitted,
        card(
            "Energy per token",
            human.human_joule(energy["joule_per_token"], *bounds("joule_per_token")),
            "IT energy, all phases",
        ),
        card(
            "Compute",
            human.human_flop(compute["compute_flop"]),
            f"{human.human_count(record['data']['tokens_trained'])} tokens"
            + (f", MFU {human.percent(mfu)} (PaLM, of {human.human_flop(compute['peak_flops'])}/s)" if mfu else ""),
        ),
        card("Time", took, f"{device_hours}, {human.human_count(rate)} tokens/s"),
    ]


def state_line(record: dict[str, Any]) -> str:
    """'complete' or 'partial: 61 % of the planned tokens (failed: ...)'."""
    run = record["run"]
    if not run["partial"]:
        return "complete"
    fraction = run["trained_fraction"]
    done = "the planned tokens are not known" if fraction is None else f"{int(fraction * 100)} % of the planned tokens"
    return f"partial: {done} ({run['status']})"


def _plain(value: Any) -> str:
    """A cell: numbers with a thousands separator, everything else as it is, nothing as a dash."""
    if value is None or value == "":
        return "–"
    if isinstance(value, float) and (not value.is_integer() or value >= 1e12):
        return human.digits(value)
    return f"{value:,.0f}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def _origin(item: dict[str, Any]) -> str:
    """A factor's place, year and basis, as far as they are known, and its source."""
    parts = (item.get("geography"), item.get("year"), *(item.get("basis") or {}).values())
    known = ", ".join(str(part) for part in parts if part)
    return f"{known}: {item['source']}" if known else str(item["source"])


def _factor(item: dict[str, Any]) -> str:
    """A factor's value, and the range that goes into the intervals where its source gives one."""
    value, low, high = (item.get(key) for key in ("value", "low", "high"))
    if value is None or (low is None and high is None):
        return _plain(value)
    bounds = " to ".join("not stated" if bound is None else _plain(bound) for bound in (low, high))
    return f"{_plain(value)} ({bounds})"


def _overhead(record: dict[str, Any]) -> str:
    """What the metering itself took, of what that is, and in energy; '' where it is not known."""
    told = record["quality"]["metering_overhead"]
    if told["cpu_s"] is None:
        return ""
    of, energy_j = told.get("cpu_counts"), told["energy_j"]
    counts = f" ({of})" if of else ""
    energy = "" if energy_j is None else f", about {human.human_joule(energy_j)} by the mean power of the CPUs"
    return f"The metering itself took {human.human_time(told['cpu_s'])} of CPU time{counts}{energy}."


def _skipped(record: dict[str, Any]) -> str:
    """The steps that changed nothing because their loss was not finite, the first of them by name; '' without any."""
    data = record["data"]
    count = data.get("steps_skipped") or 0
    if not count:
        return ""
    named = [
        f"step {each['step']:,} ({each['reason']}; sequences {each['first_sequence']:,} to {each['last_sequence']:,})"
        for each in data["skipped"][:SKIPS_NAMED]
    ]
    more = f" and {count - len(named):,} more, in footprint.json" if count > len(named) else ""
    steps = "1 step" if count == 1 else f"{count:,} steps"
    return (
        f"{steps} ({human.human_count(data['tokens_skipped'])} tokens) changed nothing, for want of a finite loss or "
        f"gradient: {', '.join(named)}{more}"
    )


def report_environment() -> Environment:
    """Templates of reports, with what they say of quantities as filters."""
    environment = template_environment(TEMPLATES, keep_trailing_newline=True)
    environment.filters |= {
        "flop": human.human_flop,
        "count": human.human_count,
        "second": lambda unix_s: utc(unix_s, "%Y-%m-%d %H:%M:%S UTC"),
        "plain": _plain,
        "factor": _factor,
        "method": lambda name: METHODS[name],
        "origin": _origin,
        "label": lambda key: LABELS.get(key, str(key).replace("_", " ")),
        "joule": human.human_joule,
        "share": lambda share: "–" if share is None else human.percent(share),
        "ratio": lambda value: "–" if value is None else f"{value:.3g}",
        "cell": lambda text: str(text).replace("|", "\\|"),
    }
    return environment


def _reason(part: dict[str, Any]) -> str:
    return str(part["note"]).removeprefix("not counted: ")


def _read_record(run: RunFolder) -> dict[str, Any]:
    path = Path(run.path) / FILE_NAME
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else write_record(run)


def _beyond(record: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(what, how much, from what) of everything beside energy and location-based carbon that is known."""
    carbon, made, water, sci = (record[key] for key in ("carbon", "embodied", "water", "sci"))
    low, high = made.get("low_tco2eq"), made.get("high_tco2eq")
    rows = [
        ("carbon, market-based", carbon.get("carbon_market_tco2eq"), human.human_carbon, carbon.get("market_source")),
        (
            "carbon of losses on the grid",
            carbon.get("carbon_transmission_tco2eq"),
            human.human_carbon,
            carbon.get("transmission_loss_source"),
        ),
        (
            "embodied carbon",
            made["carbon_tco2eq"],
            lambda tonnes: human.human_carbon(tonnes, low, high),
            f"{made['note']}; {made.get('convention')}",
        ),
        ("water on site", water["on_site_l"], lambda litres: f"{human.digits(litres)} L", water.get("wue_source")),
        (
            "water at power stations",
            water["off_site_l"],
            lambda litres: f"{human.digits(litres)} L",
            water.get("water_intensity_source"),
        ),
        (
            "SCI",
            sci["score_g_per_million_tokens"],
            lambda grams: f"{human.digits(grams)} g per million tokens",
            "(operational + embodied) per token"
            + ("" if made.get("convention") == CONVENTIONS["busy-hour"] else ", ISO/IEC 21031:2024"),
        ),
    ]
    return [(name, said(value), str(source or "")) for name, value, said, source in rows if value is not None]


def _outcome(run: RunFolder) -> dict[str, Any] | None:
    """What became of the run's plan (plan.json), where it had one and something of it is known."""
    file = Path(run.path) / "plan.json"
    if not file.exists():
        return None
    outcome = json.loads(file.read_text(encoding="utf-8")).get("outcome") or {"totals": [], "factors": []}
    known = {part: [row for row in outcome[part] if row["ratio"] is not None] for part in ("totals", "factors")}
    known["factors"] = [_as_cause(row) for row in known["factors"]]
    return known if known["totals"] else None


def _as_cause(row: dict[str, Any]) -> dict[str, Any]:
    """A row of plan.json such that its ratio is that of its two figures: of throughput, the time that a token takes."""
    if row["factor"] != "throughput":
        return row
    inverse = {key: 1e6 / row[key] for key in ("planned", "actual")}
    return {**row, **inverse, "factor": "time per token", "unit": "device-µs"}


def _other_code(record: dict[str, Any]) -> list[str]:
    """Of a run that went on with other code or packages than it began with: what each such attempt ran."""
    run, texts = record["run"], []
    for attempt in run.get("attempts") or []:
        ran = {} if attempt.get("code_revision") == run["code_revision"] else {"": attempt.get("code_revision")}
        now = run.get("versions") or {}
        ran |= {name: old for name, old in (attempt.get("versions") or now).items() if now.get(name) != old}
        if "versions" in attempt and ran:  # else the record is from before it was noted
            told = ", ".join(f"{name} {value or 'not known'}".strip() for name, value in ran.items())
            texts.append(f"attempt {attempt['attempt']} ran {told}")
    return texts


def _context(run: RunFolder, record: dict[str, Any]) -> dict[str, Any]:
    spec = Path(run.path) / "experiment.yaml"
    measured = run.read_run().get("kind") == MEASURE  # a command of `hoofprint measure`
    return {
        "record": record,
        "headline": headline(record),
        "state": state_line(record),
        "phases": sorted(record["energy"]["phases"], key=lambda part: -(part["energy_kwh"] or 0.0)),
        "boundary": boundary_of_record(record["energy"]),
        "spec": spec.read_text(encoding="utf-8") if spec.exists() else "",
        "plan": _outcome(run),
        "beyond": _beyond(record),
        "overhead": _overhead(record),
        "skipped": _skipped(record),
        "other_code": _other_code(record),
        "doubts": record["quality"]["warnings"] + [f"damaged ledger: {each}" for each in record["quality"]["damaged"]],
        "most_rows": MOST_ROWS,
        "not_counted": [
            *(
                f"{name}: {_reason(record[part])}"
                for name, part, key in (
                    ("embodied carbon", "embodied", "carbon_tco2eq"),
                    ("water", "water", "on_site_l"),
                )
                if record[part][key] is None
            ),
            *([] if measured else ["preparing the data and starting Ray, before the meters run"]),
            "network and storage outside the nodes, and the people and machines around the run",
            *([] if measured else ["development runs other than this one"]),
            *(["CPUs, memory and fans of the nodes"] if record["energy"]["boundary"] == "gpu" else []),
        ],
    }


def figures(run: RunFolder) -> dict[str, str]:
    """The three figures of a run by name, as SVG text."""
    account = account_run(run)
    entropy = ((run.read_run().get("data")) or {}).get("unigram_entropy_nats")
    return {
        "power": power_figure(account, run.phases(), series_of(run)),
        "phases": phases_figure(account),
        "loss-energy": loss_energy_figure(account, run.steps(), run.evaluations(), entropy),
    }


def write_report(run: RunFolder | str | os.PathLike[str]) -> tuple[Path, Path]:
    """Writes report.html and report.md beside footprint.json (made first if missing); returns both paths."""
    run = run if isinstance(run, RunFolder) else RunFolder(run)
    context, environment = _context(run, _read_record(run)), report_environment()
    html_path, markdown_path = Path(run.path) / "report.html", Path(run.path) / "report.md"
    replace_file(html_path, environment.get_template("report.html.j2").render(**context, figures=figures(run)))
    replace_file(markdown_path, environment.get_template("report.md.j2").render(**context))
    return html_path, markdown_path
