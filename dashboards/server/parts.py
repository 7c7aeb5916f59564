"""Parts of the pages that are figures in words: the cards of a live run, its budgets, the map of its devices."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from energy import human
from energy.units import JOULE_PER_KWH

if TYPE_CHECKING:
    from dashboards.server.nodes import Node

UNKNOWN = "–"
HEAT_STEPS = 9
MOST_CELLS = 4096  # of the map of devices


def live_cards(document: Mapping[str, Any], by_hour: bool = False) -> list[dict[str, str]]:
    """The five numbers of a live state (live.json): label, value with unit, and one line of context. by_hour: the
    grid's intensity is declared as a series."""
    facility, forecast = document["energy_facility_kwh"], document["forecast"]
    whole = forecast["energy_it_kwh"]
    mfu, peak = document["mfu"], document["peak_flops"]
    power_w = document["power_w"]
    rate = document["tokens_per_s"]
    carbon = document["carbon_tco2eq"]
    return [
        {
            "label": "IT energy so far",
            "value": human.human_energy(document["energy_it_kwh"]),
            "note": f"about {human.human_energy(whole)} at the end"
            if whole is not None
            else "its end is not known yet",
        },
        {
            "label": "Carbon so far",
            "value": human.human_carbon(carbon),
            "note": f"of {human.human_energy(facility)} at the facility"
            if facility is not None and carbon is not None
            else _carbon_lacks(document, by_hour),
        },
        {
            "label": "Energy per token",
            "value": human.human_joule(document["joule_per_token"]),
            "note": "IT energy" + (f", {human.human_count(rate)} tokens/s" if rate else ""),
        },
        {
            "label": "MFU",
            "value": UNKNOWN if mfu is None else human.percent(mfu),
            "note": "no peak of these devices is known"
            if mfu is None
            else f"{str(document['mfu_convention']).partition(':')[0]}"
            + (f", peak {human.human_flop(peak)}/s" if peak else ""),
        },
        {
            "label": "Power now",
            "value": "not known" if power_w is None else f"{human.digits(power_w)} W",
            "note": f"{len(document['nodes'])} node{'s' if len(document['nodes']) != 1 else ''}",
        },
    ]


def _carbon_lacks(document: Mapping[str, Any], by_hour: bool) -> str:
    """Why the carbon so far is not known."""
    if document["energy_it_kwh"] is None:
        return "nothing was read yet"
    lacks = ["PUE"] if document["pue"] is None else []
    lacks += ["grid intensity"] if document["intensity_g_per_kwh"] is None and not by_hour else []
    return f"needs {' and '.join(lacks)}" if lacks else "the grid intensity of some hours is not known"


def meter_cards(nodes: Sequence[Node]) -> list[dict[str, str]]:
    """What the meters of a run tell where nothing is trained (yet): energy so far and power now; [] without a meter."""
    if not nodes:
        return []
    energies = [node.energy_j for node in nodes if node.energy_j is not None]
    powers = [node.power_w for node in nodes if node.power_w is not None]
    silent = len(nodes) - len(powers)
    return [
        {
            "label": "IT energy so far",
            "value": human.human_energy(math.fsum(energies) / JOULE_PER_KWH) if energies else "not known",
            "note": "since its meters began",
        },
        {
            "label": "Power now",
            "value": f"{human.digits(math.fsum(powers))} W" if powers else "not known",
            "note": f"{len(nodes)} node{'s' if len(nodes) != 1 else ''}" + (f", {silent} silent" if silent else ""),
        },
    ]


def budget_bar(budget: Mapping[str, Any]) -> dict[str, Any]:
    """One budget of a live state in words, and in per cent of its limit: spent, and expected at the end."""
    share, forecast, limit = budget["share"], budget["forecast"], budget["limit"]
    words = budget["words"]
    return {
        "key": budget["key"],
        "of": words["of"],
        "text": f"{words['spent']} of {words['limit']}"
        + (f", {words['forecast']} at the end" if words["forecast"] else ""),
        "width": round(100 * min(1.0, share or 0.0), 1),
        "forecast": round(100 * min(1.0, forecast / limit), 1) if forecast and limit else 0.0,
        "state": budget["state"],
    }


def heat_map(nodes: Iterable[tuple[str, list[tuple[str, str, str, float | None, Any]]]]) -> tuple[list[Any], str]:
    """([(node, its cells)], what the colours say): each kind of device on a scale of its own, up to its highest."""
    rows, left = [], MOST_CELLS
    for name, devices in nodes:
        rows.append((str(name), devices[: max(0, left)]))
        left -= len(devices)
    most: dict[str, float] = {}
    for _, devices in rows:
        for _, _, kind, power_w, _ in devices:
            if power_w is not None:
                most[kind] = max(most.get(kind, 0.0), power_w)
    table = []
    for name, devices in rows:
        cells = []
        for uuid, device, kind, power_w, missing in devices:
            known = power_w is not None and not missing
            share = power_w / most[kind] if known and power_w is not None and most[kind] else 0.0
            said = f"{human.digits(power_w)} W" if known and power_w is not None else f"not read: {missing or 'silent'}"
            cells.append(
                {
                    "kind": kind.upper() if kind in ("gpu", "cpu", "dram") else kind,
                    "watts": human.digits(power_w) if known and power_w is not None else "?",
                    "heat": f"h{round(share * HEAT_STEPS)}" if known else "unread",
                    "title": f"{device} {uuid}: {said}",
                }
            )
        if cells:
            table.append((name, cells))
    told = ", ".join(f"{kind.upper()} {human.digits(value)} W" for kind, value in most.items())
    dropped = f"; {-left} more devices are not drawn" if left < 0 else ""
    return table, f"darkest is the highest of its kind: {told}{dropped}" if most else ""
