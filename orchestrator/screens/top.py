"""`hoofprint top`: a run as its live state tells of it, whichever process it runs in; text as pure functions of it."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Sequence
from typing import Any

from rich.text import Text

from energy.human import digits, human_carbon, human_energy, human_time
from energy.records.record import FILE_NAME
from orchestrator.live.state import Live
from orchestrator.screens import view

MOST_NODES, MOST_LINES = 8, 4
UNKNOWN = "–"
PHASES = {"startup": "starting", "train_step": "training", "compile": "compiling", "ended": "ending"}


def lines(live: Live, width: int, now: float) -> list[Text]:
    """The whole view, no line wider than `width`."""
    found = [_heading(live, now)]
    if live.doubt is not None:
        found += _wrapped(live.doubt, width, "red")
        found += [Text("  below is the last that is known of it", "dim")] if live.document is not None else []
    if not live.runs:
        found += _ending(live, width)
    if live.document is None:
        return [view.cut(line, width) for line in [*found, *_without(live)]]
    shown, document = view.Shown(live.document), live.document
    # Where nobody works on it any more, it is shown as it was then: no clock goes on.
    then = now if live.runs and live.doubt is None else document["updated_unix_s"]
    drawn = view.training if shown.step else view.starting
    found += drawn(shown, width, then)
    if document["stragglers"]:
        waits = (
            f"rank {each['rank']} ({digits(each['data_wait_s'])} s of {each['window_s']:.0f} s)"
            for each in document["stragglers"]
        )
        found.append(Text.assemble("  ", (f"{'slow':<9}", "yellow"), f"waits for data: {', '.join(waits)}"))
    found += _nodes(document["nodes"])
    return [view.cut(line, width) for line in found]


def plain(live: Live, now: float) -> str:
    """The same as one line of key=value, no spaces in the values, - for what is not known."""
    facts = {"run": live.folder.path.name, "status": live.status}
    head = " ".join(f"{key}={value}" for key, value in facts.items())
    if live.document is None:
        return head
    document = live.document
    stale = "" if live.doubt is None else f" age_s={max(0.0, now - document['updated_unix_s']):.0f}"
    then = view.key_values(view.Shown(document), document["updated_unix_s"])
    return f"{head} attempt={document['attempt']} phase={document['phase']}{stale} {then}"


def as_json(live: Live) -> dict[str, Any]:
    """{run_id, status, doubt, error, live}: `live` is the state as it lies in the folder, null where there is none."""
    return {
        "run_id": live.folder.path.name,
        "status": live.status,
        "doubt": live.doubt,
        "error": live.run.get("error"),
        "live": live.document,
    }


def _heading(live: Live, now: float) -> Text:
    document = live.document
    words = [live.status]
    if live.runs and document is not None:
        seen_s = max(0.0, now - document["updated_unix_s"]) // 1
        words = [str(PHASES.get(document["phase"], document["phase"]))]
        words += [f"attempt {document['attempt']}"] if document["attempt"] > 1 else []
        words += [f"{document['host']}, process {document['pid']}", f"as of {human_time(seen_s)} ago"]
    return Text.assemble((live.folder.path.name, "bold"), "  ", " · ".join(words))


def _ending(live: Live, width: int) -> list[Text]:
    """How a run ended, and what its record says of it."""
    run, name = live.run, live.folder.path
    found = []
    if (ended := run.get("ended_unix_s")) is not None:
        found.append(Text(f"  ended {time.strftime('%d %b %Y %H:%M', time.localtime(ended))}"))
    if run.get("error") and live.doubt is None:
        found += _wrapped(str(run["error"]), width, "red")
    if live.status == "budget" and (budget := run.get("budget")) is not None:
        words = budget["words"]
        found.append(Text(f"  stopped by its budget: {words['spent']} of {words['limit']} ({words['of']})", "yellow"))
        found.append(Text(f"  go on: hoofprint run SPEC --resume {name} --set '{budget['option']}'", "dim"))
    record = live.record
    if record is None and live.at_work:
        found.append(Text("  its record is being written"))
    elif record is None:
        found.append(Text(f"  no record: hoofprint report {name}"))
    else:
        energy, carbon = record["energy"], record["carbon"]["carbon_tco2eq"]
        it, facility = (human_energy(energy[key]) for key in ("energy_it_kwh", "energy_facility_kwh"))
        found.append(Text(f"  record: IT energy {it}, facility {facility}, carbon {human_carbon(carbon)}"))
        found.append(Text(f"  {name / FILE_NAME}", "dim"))
    return found


def _without(live: Live) -> list[Text]:
    if live.runs:
        return [Text("  it has begun, and its workers are not there yet: no live state so far")]
    return [Text("  no live state: it did not get as far as training, or is an older run", "dim")]


def _nodes(nodes: Sequence[dict[str, Any]]) -> list[Text]:
    """The nodes that draw most, and what of each cannot be read."""
    found = []
    speaking = sorted(nodes, key=lambda node: -(node["power_w"] or 0.0))
    for node in speaking[:MOST_NODES]:
        power = "silent" if node["power_w"] is None else f"{digits(node['power_w'])} W"
        watts: dict[str, list[str]] = {}
        for device in node["devices"] or ():
            known = device["power_w"] is not None and not device["missing"]
            watts.setdefault(device["kind"], []).append(digits(device["power_w"]) if known else UNKNOWN)
        parts = [f"{kind} {' '.join(each)}" for kind, each in watts.items()]
        missing = f"  {len(node['missing'])} missing" if node["missing"] else ""
        heading = f"{node['node']}  {power}{missing}  "
        found.append(Text.assemble("  ", (f"{'node':<9}", "cyan"), heading, (" · ".join(parts), "dim")))
    if len(nodes) > MOST_NODES:
        silent = sum(node["power_w"] is None for node in nodes)
        found.append(Text(f"  and {len(nodes) - MOST_NODES} more nodes; of all, {silent} silent", "dim"))
    return found


def _wrapped(text: str, width: int, style: str) -> list[Text]:
    told = textwrap.wrap(text, max(20, width), initial_indent="  ", subsequent_indent="    ", max_lines=MOST_LINES)
    return [Text(line, style) for line in told]
