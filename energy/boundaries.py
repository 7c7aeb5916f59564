"""What each figure of a record covers (its boundary), and how it was come by (its method): the words and their texts.

A record has them beside its figures: every device its own, and every block a `quantities` with an entry for each of its
figures, with null as the method of what is not known. The words are for programs, the texts here for people.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Protocol

from energy.accounting.uncertainty import MEASURED

BOUNDARIES = {
    "gpu": "the accelerators alone: no CPUs, memory, fans, power supplies, storage, network or cooling",
    "node": "the nodes' devices, as far as they were read or modelled: no fans, power supplies, storage, network or "
    "cooling",
    "it": "all IT equipment of the run: no cooling and no power distribution",
    "facility": "the IT energy's own boundary, with the cooling and power distribution that PUE stands for",
    "grid": "the lines between power station and facility",
    "power stations": "the power stations behind the facility's electricity",
    "hardware": "the making of each accelerator and of its share of a server: no building and no network",
    "facility and hardware": "the facility's electricity and the making of the hardware",
    "model": "the mathematics of the model, whatever computes it",
    "devices": "the devices that trained, from the start of each attempt to its end",
    "run": "the whole run, from the start of its first attempt to the end of its last",
    "meter": "the metering alone",
}
WHOLE = frozenset({"node", "baseline"})  # kinds of device that stand for all of a node, or for the rest of it
WHOLE_NODE = "whole nodes, by their own sensor or as was declared of them: no network between them and no cooling"
NO_DEVICE = "no device was metered"
METHODS = {
    "counter": "energy counter",
    "integrated": "integrated power readings",
    "modelled": "a model of the device",
    "assumed": "a constant that was given",
    "unknown": "not known: the part of the ledger that said so is lost",
    "mixed": "several methods, each device's beside it",
    "measured": "clocks, counts and sensors of the run",
    "computed": "other figures of the record and its assumptions",
}
SHARES = {"share_measured": MEASURED, "share_modelled": ("modelled",), "share_assumed": ("assumed",)}

Record = Mapping[str, Any]
# Boundary (None where nothing was metered), method, from what it is computed, the figures.
Told = tuple[str | None, str, str, tuple[str, ...]]


class Metered(Protocol):
    """A device as the account and a window both have it."""

    @property
    def boundary(self) -> str: ...
    @property
    def method(self) -> str: ...
    @property
    def energy_j(self) -> float | None: ...


def boundary_of(devices: Iterable[Metered]) -> str | None:
    """gpu when nothing but accelerators is in the total, else node; None where nothing is in it."""
    found = {device.boundary for device in devices}
    return ("node" if "node" in found else "gpu") if found else None


def boundary_text(boundary: str | None, kinds: Collection[str]) -> str:
    """The boundary of one node for people; `kinds` are those of the devices in it."""
    if boundary is None:
        return NO_DEVICE
    return WHOLE_NODE if WHOLE & set(kinds) else BOUNDARIES[boundary]


def covered_by(energy: Record) -> str | None:
    """What a record's `energy` covers, in a few words that are the same where it is the same; None of no device."""
    whole, nodes = _whole_nodes(energy["devices"])
    if not whole or energy["boundary"] is None:
        return energy["boundary"]
    return "whole nodes" if whole == nodes else f"{whole} of {nodes} nodes whole"


def boundary_of_record(energy: Record) -> str:
    """The boundary of a record's `energy` for people: of whole nodes only where each is one."""
    whole, nodes = _whole_nodes(energy["devices"])
    if not whole or whole == nodes:
        return boundary_text(energy["boundary"], WHOLE if whole else ())
    return f"{whole} of {nodes} nodes as {WHOLE_NODE}; of the others {BOUNDARIES['node']}"


def _whole_nodes(devices: Iterable[Record]) -> tuple[int, int]:
    """How many nodes have a sensor or a declaration for all that is in them, and how many were metered."""
    metered = [device for device in devices if device["node"] and device["samples"]]
    return len({device["node"] for device in metered if device["kind"] in WHOLE}), len({d["node"] for d in metered})


def shares_of(devices: Iterable[Metered], total_j: float | None) -> dict[str, float | None]:
    """Which part of the energy was measured, modelled and assumed; None when there is none."""
    parts = [(device.method, device.energy_j or 0.0) for device in devices]
    return {
        key: math.fsum(energy_j for method, energy_j in parts if method in methods) / total_j if total_j else None
        for key, methods in SHARES.items()
    }


def _method(devices: Iterable[Record]) -> str:
    found = {device["method"] for device in devices if device["samples"]}
    if len(found) == 1:
        return found.pop()
    return "measured" if found <= set(MEASURED) else "mixed"


def _energy(record: Record) -> list[Told]:
    it, how = record["energy"]["boundary"], _method(record["energy"]["devices"])
    return [
        (it, how, "", ("energy_it_kwh",)),
        ("facility", "assumed", "", ("pue",)),
        ("facility", "computed", "energy_it_kwh x pue", ("energy_facility_kwh",)),
        (it, "computed", "the devices' curves, cut at the marks of phases and attempts", ("phases", "attempts")),
        (it, "computed", "the phases of steps that were kept", ("useful_kwh", "useful_share")),
        (it, "computed", "the devices' energy by method", tuple(SHARES)),
        (it, "computed", "energy_it_kwh / tokens_trained", ("joule_per_token",)),
        ("facility", "assumed", "device_hours x device_power_w x pue", ("paper_method",)),
    ]


def _carbon(record: Record) -> list[Told]:
    by_hour = record["carbon"]["series_sha256"] is not None
    product = "energy_facility_kwh x the series, hour by hour" if by_hour else "energy_facility_kwh x intensity"
    intensity = ("computed", "carbon / energy_facility_kwh") if by_hour else ("assumed", "")
    return [
        ("facility", "computed", product, ("carbon_tco2eq",)),
        ("facility", *intensity, ("intensity_g_per_kwh",)),
        ("facility", "computed", "energy_facility_kwh x intensity_market", ("carbon_market_tco2eq",)),
        ("facility", "assumed", "", ("intensity_market_g_per_kwh",)),
        ("grid", "assumed", "", ("transmission_loss",)),
        ("grid", "computed", "carbon x loss / (1 - loss)", ("carbon_transmission_tco2eq",)),
    ]


def _compute() -> list[Told]:
    conventions = ("compute_flop", "compute_flop_causal", "compute_flop_6nd")
    return [
        ("model", "computed", "the model's structure", ("flop_per_token", "hardware_flop_per_token")),
        ("model", "computed", "FLOP per token x tokens_useful", conventions),
        ("model", "computed", "FLOP per token x tokens_lost", ("recomputed_flop",)),
        ("devices", "computed", "hardware_flop_per_token x all tokens", ("hardware_flop",)),
        ("run", "measured", "", ("tokens_useful", "tokens_lost", "useful_share", "devices")),
        ("run", "computed", "the devices of each attempt x its time in steps", ("mean_devices",)),
        ("devices", "measured", "", ("tokens_per_s", "device_hours", "gpu_hours", "hardware_days")),
        ("devices", "assumed", "", ("peak_flops",)),
        ("devices", "computed", "tokens_per_s x FLOP per token / peak of all devices", ("mfu", "hfu")),
        ("devices", "computed", "compute_flop / (peak x device-hours)", ("mfu_reserved",)),
    ]


def _sci(record: Record) -> list[Told]:
    scores = tuple(key for key in record["sci"] if key.startswith("score_"))
    operational = tuple(key for key in record["sci"] if key.startswith("operational_"))
    return [
        ("facility and hardware", "computed", "(carbon + embodied) / functional unit", scores),
        ("facility", "computed", "carbon / functional unit", operational),
    ]


def planned_quantities(
    plan: Record, rate_method: str, power: tuple[str, str], rated_boundary: str
) -> dict[str, dict[str, str | None]]:
    """{figure: {boundary, method, and of what is computed `from`}} of a plan's figures.

    rate_method: of its tokens/s; power: boundary and method of its watts per device; rated_boundary: of rated power
    """
    power_boundary, power_method = power
    told: list[Told] = [
        ("model", "computed", "the model's structure", ("params",)),
        ("run", "assumed", "", ("tokens",)),
        ("model", "computed", "FLOP per token x tokens", ("compute_flop",)),
        ("devices", "modelled", "", ("memory_gb_per_gpu", "fits")),
        ("devices", rate_method, "", ("tokens_per_s", "tokens_per_s_per_gpu")),
        ("devices", "computed", "tokens/s x FLOP per token / peak", ("mfu",)),
        ("run", "computed", "tokens / tokens/s, and start-up as before", ("wall_days",)),
        ("devices", "computed", "wall_days x devices", ("gpu_hours", "device_hours")),
        (power_boundary, power_method, "", ("device_power_w",)),
        (power_boundary, "computed", "device_hours x device_power_w", ("energy_it_kwh",)),
        (rated_boundary, "computed", "device_hours x rated power", ("energy_rated_it_kwh",)),
        ("facility", "computed", "energy_it_kwh x pue", ("energy_facility_kwh",)),
        ("facility", "computed", "energy_facility_kwh x intensity", ("carbon_tco2eq",)),
        ("hardware", "computed", "factors x gpu_hours / service life", ("embodied_tco2eq",)),
        ("devices", "computed", "gpu_hours x gpu_hour_price", ("cost",)),
    ]
    return _entries(plan, told)


def _entries(figures: Record, told: Iterable[Told]) -> dict[str, dict[str, str | None]]:
    return {
        key: {"boundary": boundary, "method": None if figures[key] is None else method}
        | ({"from": source} if source else {})
        for boundary, method, source, keys in told
        for key in keys
    }


def quantities_of(record: Record) -> dict[str, dict[str, dict[str, str | None]]]:
    """{block: {figure: {boundary, method, and of what is computed `from`}}} of a record's blocks."""
    embodied = ("carbon_tco2eq", "low_tco2eq", "high_tco2eq")
    blocks: dict[str, list[Told]] = {
        "data": [
            ("run", "measured", "", ("tokens_trained", "tokens_processed")),
            ("model", "measured", "", ("training_loss", "validation_loss")),
        ],
        "compute": _compute(),
        "time": [
            ("run", "measured", "", ("started_unix_s", "ended_unix_s", "duration_s")),
            ("devices", "measured", "", ("gpu_hours", "device_hours")),
        ],
        "energy": _energy(record),
        "carbon": _carbon(record),
        "embodied": [("hardware", "computed", "factors x device-hours / service life", embodied)],
        "water": [
            ("facility", "computed", "energy_it_kwh x wue", ("on_site_l",)),
            ("power stations", "computed", "energy_facility_kwh x water_intensity", ("off_site_l",)),
            ("facility", "assumed", "", ("wue_l_per_kwh",)),
            ("power stations", "assumed", "", ("water_intensity_l_per_kwh",)),
        ],
        "sci": _sci(record),
        "quality": [
            ("run", "measured", "", ("gap_s",)),
            ("meter", "modelled", "its CPU seconds x the CPUs' mean power", ("metering_overhead",)),
        ],
    }
    return {block: _entries(record[block], told) for block, told in blocks.items()}
