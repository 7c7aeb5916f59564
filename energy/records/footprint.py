"""Account x factors = footprint: the record of a run as a pure function of what lies in its folder."""

from __future__ import annotations

import math
import os.path
from collections.abc import Mapping, Sequence
from typing import Any

from energy.accounting.compute import compute_account, peak_of
from energy.accounting.held import held_by, trained_on
from energy.accounting.uncertainty import RULE, half_widths, interval, parts_of, relative_quantile, relative_range
from energy.boundaries import quantities_of
from energy.carbon.impact import carbon_block, embodied_block, given, sci_block, water_block
from energy.carbon.series import IntensitySeries
from energy.checking.checks import IMPLAUSIBLE, check_record
from energy.factors import common_accelerator, rated_power
from energy.records.energy_block import energy_block, metering_overhead, paper_method

SCHEMA = "hoofprint/footprint/1"

# Accounting figures of run.json and their units; those that every reader asks for are listed also when missing.
DECLARED = {
    "pue": "1",
    "intensity_g_per_kwh": "g CO2eq/kWh",
    "intensity_market_g_per_kwh": "g CO2eq/kWh",
    "transmission_loss": "1",
    "wue_l_per_kwh": "L/kWh",
    "water_intensity_l_per_kwh": "L/kWh",
    "device_rated_power_w": "W",
    "peak_flops": "FLOP/s",
}
ALWAYS_SHOWN = ("pue", "intensity_g_per_kwh")
WHOLE_GPUS = "; a MIG instance counts as the whole of its GPU, though of the energy it has a share"

Row = Mapping[str, Any]


def _assumptions(run: Row, account: Any, warnings: list[str]) -> dict[str, dict[str, Any]]:
    """By key, the figures from elsewhere that enter; what is wrong with one joins the warnings."""
    figures = ((key, _assumption(run, account, key, warnings)) for key in DECLARED)
    return {key: figure for key, figure in figures if figure is not None}


def _assumption(run: Row, account: Any, key: str, warnings: list[str]) -> dict[str, Any] | None:
    """A figure from elsewhere with all that belongs to it: as run.json has it, else by the tables for these devices.

    The peak is that of the metered devices, where the tables know them, and not of what the spec names. ValueError for
    a figure that cannot be.
    """
    stored = (run.get("accounting") or {}).get(key)
    value = given(run, key, lowest=1.0 if key == "pue" else 0.0)[0]
    on_gpus = run.get("device_type") in ("cuda", None)  # of a run that ended before this was known, as far as it goes
    names = [device.name for device in trained_on(run, account)] if on_gpus else []
    if key == "peak_flops":
        stored, warning = peak_of(stored, names, on_gpus)
        warnings += [warning] if warning else []
    elif key == "device_rated_power_w" and value is None:
        kind = common_accelerator(names)
        factor = rated_power(kind.name) if kind else None
        stored = factor.as_dict() if factor and factor.value is not None else None
    if not stored and key not in ALWAYS_SHOWN:
        return None
    figure = {"value": None, "source": None, **(stored or {})}
    return figure | {"key": key, "unit": figure.get("unit") or DECLARED[key]}


def _finite(value: float | None) -> float | None:
    """JSON knows no NaN: a loss that blew up is null in the record (and stays as it is in the metrics)."""
    return value if value is not None and math.isfinite(value) else None


def _uncertainty(account: Any, energy: Row, carbon: Row, assumed: Mapping[str, Row], by_hour: bool) -> dict[str, Any]:
    """The record's `uncertainty`: an interval for each figure, and which factors have a range that is in it.

    A factor without a range, of PUE and intensity, enters as it is, and the block says so. by_hour: the intensity is
    computed from a series, which has no range.
    """
    entering = ("pue",) if by_hour else ("pue", "intensity_g_per_kwh")
    factors = {key: assumed[key] for key in entering if assumed[key]["value"] is not None}
    figures = {key: energy[key] for key in ("energy_it_kwh", "energy_facility_kwh")}
    figures |= {"carbon_tco2eq": carbon["carbon_tco2eq"], "joule_per_token": energy["joule_per_token"]}
    widths, total_j = half_widths(parts_of(account.devices)), account.energy_j
    errors = tuple(sorted(width / abs(total_j) for width in widths)) if total_j else ()
    ranges = {key: found for key, factor in factors.items() if (found := relative_range(factor)) is not None}
    inside = {"energy_facility_kwh": ("pue",), "carbon_tco2eq": ("pue", "intensity_g_per_kwh")}
    bare = [key for key, factor in factors.items() if key not in ranges]
    known = figures["energy_it_kwh"] is not None
    told = [f"{key} with its source's range" for key in ranges]
    told += [f"{key} as given: its source states no range" for key in bare]
    told += ["intensity by the hour as given: its series states no range"] if by_hour else []
    return {
        **{
            key: interval(value, errors, [ranges[name] for name in inside.get(key, ()) if name in ranges])
            for key, value in figures.items()
        },
        "relative": relative_quantile(errors) if known else None,
        "relative_90": relative_quantile(errors, 0.90) if known else None,
        "factors_with_range": list(ranges),
        "factors_without_range": bare,
        "method": RULE + (f" Facility energy and carbon: {'; '.join(told)}." if told else ""),
    }


def _without_places(data: Row) -> dict[str, Any]:
    """run.json's data, with the files that were skipped named from their common folder on: no place of a machine."""
    sources = []
    for source in data.get("sources") or []:
        texts = source.get("skipped_files") or []
        common = os.path.commonprefix(texts).rpartition("/")[0]
        names = [text[len(common) + 1 :] if common or text.startswith("/") else text for text in texts]
        sources.append({**source, "skipped_files": names, "skipped_count": len(names)})
    return {**data, "sources": sources} if sources else dict(data)


def make_footprint(
    run: Row,
    account: Any,
    steps: Sequence[Row],
    evaluations: Sequence[Row],
    series: IntensitySeries | None = None,
) -> dict[str, Any]:
    """The record of one run (schema hoofprint/footprint/1) from run.json, account and metrics; reads no file.

    series: the grid's intensity over the run, where it is declared by the hour rather than as a constant.
    """
    damaged = list(account.damaged)
    warnings = [w for w in account.warnings if w not in damaged] + [
        w for meter in run.get("meters") or [] for w in meter.get("warnings") or []
    ]
    assumed = _assumptions(run, account, warnings)
    pue, power_w, peak = (assumed.get(key, {}).get("value") for key in ("pue", "device_rated_power_w", "peak_flops"))
    held = held_by(run, account)
    compute = compute_account(run, steps, held, peak_flops=peak, compiling=account.compiling)
    trained = compute["tokens_useful"]
    planned = run.get("planned_tokens")
    fraction = (trained + _skipped_last(run, steps)) / planned if planned else None

    energy = energy_block(run, account, pue, trained)
    facility_kwh = energy["energy_facility_kwh"]
    carbon = carbon_block(run, facility_kwh, pue, account.curve, series, warnings)
    intensity = carbon["intensity_g_per_kwh"]
    energy["paper_method"] = paper_method(held.device_hours, power_w, pue, intensity, facility_kwh)
    carriers = trained_on(run, account)
    # Where no hours are known there is no device that would have made them.
    made = embodied_block(run, [device.name for device in carriers], held.device_hours or 0.0)
    made_tco2eq, params = made["carbon_tco2eq"], (run.get("model") or {}).get("params")
    if made_tco2eq is not None and any(device.method == "assumed" for device in carriers):
        made["note"] += WHOLE_GPUS
    warnings += _missing(run, account, energy, carbon, series, held.most_devices)

    record: dict[str, Any] = {
        "schema": SCHEMA,
        "run": _run_block(run, fraction),
        "model": dict(run.get("model") or {}),
        "data": _data_block(run, compute, steps, evaluations),
        "compute": compute,
        "hardware": _hardware_block(run, account),
        "time": held.as_time(),
        "energy": energy,
        "carbon": carbon,
        "embodied": made,
        "water": water_block(run, energy["energy_it_kwh"], facility_kwh),
        "sci": sci_block(carbon["carbon_tco2eq"], made_tco2eq, trained, compute["compute_flop"], params),
        "uncertainty": _uncertainty(account, energy, carbon, assumed, series is not None),
        "quality": {
            "warnings": list(dict.fromkeys(warnings)),
            "damaged": damaged,
            "gap_s": max((float(d.gap_s) for d in account.devices), default=None),
            "metering_overhead": metering_overhead(account),
        },
        "assumptions": list(assumed.values()),
    }
    for block, told in quantities_of(record).items():
        record[block]["quantities"] = told
    record["quality"]["warnings"] += [f"{IMPLAUSIBLE}{finding}" for finding in check_record(record)]
    return record


def _run_block(run: Row, fraction: float | None) -> dict[str, Any]:
    """fraction: of the planned tokens, those that were trained."""
    keys = ("run_id", "name", "status", "purpose", "planned_tokens", "attempts", "error")
    return {
        **{key: run.get(key) for key in (*keys, "code_revision", "versions", "command")},
        **({"training_type": "fine-tuning"} if run.get("initial_weights") else {}),
        "partial": run.get("status") != "completed" or (fraction is not None and fraction < 1),
        "trained_fraction": fraction,
    }


def _data_block(run: Row, compute: Row, steps: Sequence[Row], evaluations: Sequence[Row]) -> dict[str, Any]:
    return {
        **_without_places(run.get("data") or {}),
        "tokens_trained": compute["tokens_useful"],
        "tokens_processed": compute["tokens_useful"] + compute["tokens_lost"],
        "training_loss": _finite(steps[-1]["loss"]) if steps else None,
        "validation_loss": _finite(evaluations[-1]["validation_loss"]) if evaluations else None,
    }


def _hardware_block(run: Row, account: Any) -> dict[str, Any]:
    hosts = run.get("hosts")
    return {
        **{key: run.get(key) for key in ("device_type", "world_size")},
        "hosts": hosts and [host for host in hosts if host not in account.other_nodes],
        "devices": [{key: getattr(d, key) for key in ("uuid", "name", "node", "kind")} for d in account.devices],
    }


def _missing(run: Row, account: Any, energy: Row, carbon: Row, series: Any, devices: int) -> list[str]:
    """What the record does not know, in words. devices: the most that an attempt held."""
    texts = []
    if energy["pue"] is None:
        texts.append("no PUE was given: facility energy and carbon are not known (energy.pue)")
    if carbon["intensity_g_per_kwh"] is None and series is None:
        lacks = "by the hour is here, and no constant was given" if run.get("grid_notes") else "was given"
        texts.append(f"no grid intensity {lacks}: carbon is not known (energy.grid or energy.intensity)")
    if energy["energy_it_kwh"] is None:
        texts.append("no sensor could be read: the energy is missing, not zero")
    metered = {device.node for device in account.devices} | {*account.nodes, *account.other_nodes}
    for node in sorted({meter["node"] for meter in run.get("meters") or []} - metered):
        texts.append(f"no ledger of node {node} is here: its energy is missing, not zero (is the folder a shared one?)")
    texts += run.get("grid_notes") or []
    for device in account.devices:
        if not device.samples:
            texts.append(f"{device.name} ({device.uuid}) could not be read: its energy is missing, not zero")
    idle_gpus = len(trained_on(run, account)) - devices
    if idle_gpus > 0:
        texts.append(f"{idle_gpus} GPUs of the nodes did not train; their energy is in the total")
    return texts


def _skipped_last(run: Row, steps: Sequence[Row]) -> float:
    """Tokens of the steps after the last that was not skipped: the run has come past them, too."""
    data, last = run.get("data") or {}, steps[-1]["step"] if steps else 0
    later = sum(each["step"] > last for each in data.get("skipped") or [])
    return later * data["tokens_skipped"] / data["steps_skipped"] if later else 0.0
