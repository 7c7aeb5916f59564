"""Account x factors = footprint: the record of a run as a pure function of what lies in its folder."""

from __future__ import annotations

import math
import os.path
from collections.abc import Mapping, Sequence
from typing import Any

from energy.accounting.compute import compute_account, peak_of
from energy.accounting.uncertainty import RULE, half_widths, interval, parts_of, relative_quantile, relative_range
from energy.boundaries import boundary_of, quantities_of, shares_of
from energy.carbon.formula import energy_facility_kwh, estimate
from energy.carbon.impact import carbon_block, embodied_block, given, sci_block, water_block
from energy.carbon.series import IntensitySeries
from energy.checking.checks import IMPLAUSIBLE, check_record
from energy.factors import common_accelerator, rated_power
from energy.runs import MEASURE
from energy.units import JOULE_PER_KWH

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

Row = Mapping[str, Any]


def _counted(run: Row, account: Any) -> list[Any]:
    """The devices that carry the training: GPUs where it ran on GPUs, else CPU packages."""
    kind = "gpu" if run.get("device_type") == "cuda" else "cpu"
    return [device for device in account.devices if device.kind == kind]


def _assumption(run: Row, account: Any, key: str, warnings: list[str]) -> dict[str, Any] | None:
    """A figure from elsewhere with all that belongs to it: as run.json has it, else by the tables for these devices.

    The peak is that of the metered devices, where the tables know them, and not of what the spec names. ValueError for
    a figure that cannot be.
    """
    stored = (run.get("accounting") or {}).get(key)
    value = given(run, key, lowest=1.0 if key == "pue" else 0.0)[0]
    on_gpus = run.get("device_type") == "cuda"
    names = [device.name for device in _counted(run, account)] if on_gpus else []
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


def _devices_in_use(run: Row, account: Any) -> int:
    counted = len(_counted(run, account))
    if run.get("device_type") == "cuda":
        return int(run.get("world_size") or counted)
    return counted or len(run.get("hosts") or [])


def _devices_by_attempt(run: Row) -> dict[int, int]:
    """How many GPUs each attempt held, where it was noted: a run may go on with more or fewer than it began with."""
    if run.get("device_type") != "cuda":
        return {}
    attempts = run.get("attempts") or []
    return {int(each["attempt"]): int(each["world_size"]) for each in attempts if each.get("world_size")}


def _device_hours(run: Row, devices: int, devices_of: Mapping[int, int], started: float, ended: float) -> float:
    """Hours that the attempts held their devices, all together; of a run without attempts those of the whole run."""
    held_s = [
        devices_of.get(int(each.get("attempt") or 0), devices)
        * max(0.0, (each.get("ended_unix_s") or ended) - each["started_unix_s"] - each.get("waited_s", 0.0))
        for each in run.get("attempts") or []
    ]
    return (math.fsum(held_s) or devices * max(0.0, ended - started)) / 3600


def _finite(value: float | None) -> float | None:
    """JSON knows no NaN: a loss that blew up is null in the record (and stays as it is in the metrics)."""
    return value if value is not None and math.isfinite(value) else None


def _uncertainty(
    account: Any, total_j: float, figures: Mapping[str, float | None], factors: Mapping[str, Row], by_hour: bool
) -> dict[str, Any]:
    """The record's `uncertainty`: an interval for each figure, and which factors have a range that is in it.

    factors: those in use by key, PUE and intensity; one without a range enters as it is, and the block says so.
    by_hour: the intensity is computed from a series, which has no range.
    """
    widths = half_widths(parts_of(account.devices))
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


def _overhead(account: Any) -> dict[str, Any]:
    """What the metering itself cost: CPU seconds and of what, MB of its largest process, J at the CPUs' mean power."""
    told = account.overhead
    if not told:
        return {"cpu_s": None, "cpu_counts": None, "peak_memory_mb": None, "energy_j": None}
    without = f"; not of {account.cut_off} stretches of metering that were cut off" if account.cut_off else ""
    cpu_j = math.fsum(d.energy_j for d in account.devices if d.kind == "cpu")
    core_s = told["cores"] * max(0.0, (account.end_unix_s or 0.0) - (account.start_unix_s or 0.0))
    return {
        "cpu_s": told["cpu_s"],
        "cpu_counts": told["cpu_counts"] + without,
        "peak_memory_mb": told["peak_memory_mb"],
        "energy_j": told["cpu_s"] * cpu_j / core_s if cpu_j and core_s else None,
    }


def _paper_method(hours: float, power_w: float | None, pue: float | None, intensity: float | None,
                  facility_kwh: float | None) -> dict[str, Any] | None:  # fmt: skip
    if power_w is None or pue is None:
        return None
    result = estimate(hours, power_w, pue, intensity or 0.0)
    paper_kwh = float(str(result["energy_facility_kwh"]))
    return {
        "device_hours": hours,
        "device_power_w": power_w,
        "pue": pue,
        "energy_facility_kwh": paper_kwh,
        "carbon_tco2eq": None if intensity is None else result["carbon_tco2eq"],
        "ratio_measured_to_paper": facility_kwh / paper_kwh if facility_kwh is not None and paper_kwh else None,
    }


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
    figures_used = ((key, _assumption(run, account, key, warnings)) for key in DECLARED)
    assumed = {key: figure for key, figure in figures_used if figure is not None}
    pue, power_w, peak = (assumed.get(key, {}).get("value") for key in ("pue", "device_rated_power_w", "peak_flops"))

    total_j = account.energy_j
    measured_any = any(device.samples > 0 for device in account.devices)
    it_kwh = total_j / JOULE_PER_KWH if measured_any else None
    facility = energy_facility_kwh(it_kwh, pue) if it_kwh is not None and pue is not None else None
    started, ended = _span(run, account)
    devices = _devices_in_use(run, account)
    devices_of = _devices_by_attempt(run)
    device_hours = _device_hours(run, devices, devices_of, started, ended)
    compute = compute_account(
        run,
        steps,
        devices=devices,
        peak_flops=peak,
        device_hours=device_hours,
        compiling=account.compiling,
        devices_of=devices_of,
    )
    trained, processed = compute["tokens_useful"], compute["tokens_useful"] + compute["tokens_lost"]
    carbon = carbon_block(run, facility, pue, account.curve, series, warnings)
    tonnes = carbon["carbon_tco2eq"]
    made = embodied_block(run, [d.name for d in _counted(run, account)], device_hours)
    joule_per_token = total_j / trained if measured_any and trained else None
    warnings += _missing(run, account, measured_any, pue, carbon, series, max(devices, *devices_of.values(), 0))

    planned = run.get("planned_tokens")
    fraction = (trained + _skipped_last(run, steps)) / planned if planned else None
    entering = ("pue", "intensity_g_per_kwh") if series is None else ("pue",)
    factors = {key: assumed[key] for key in entering if assumed[key]["value"] is not None}
    figures = {
        "energy_it_kwh": it_kwh,
        "energy_facility_kwh": facility,
        "carbon_tco2eq": tonnes,
        "joule_per_token": joule_per_token,
    }
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "run": {
            **{
                key: run.get(key)
                for key in ("run_id", "name", "status", "purpose", "planned_tokens", "attempts", "error")
            },
            **{key: run.get(key) for key in ("code_revision", "versions", "command")},
            **({"training_type": "fine-tuning"} if run.get("initial_weights") else {}),
            "partial": run.get("status") != "completed" or (fraction is not None and fraction < 1),
            "trained_fraction": fraction,
        },
        "model": dict(run.get("model") or {}),
        "data": {
            **_without_places(run.get("data") or {}),
            "tokens_trained": trained,
            "tokens_processed": processed,
            "training_loss": _finite(steps[-1]["loss"]) if steps else None,
            "validation_loss": _finite(evaluations[-1]["validation_loss"]) if evaluations else None,
        },
        "compute": compute,
        "hardware": {
            **{key: run.get(key) for key in ("device_type", "world_size")},
            "hosts": run.get("hosts") and [host for host in run["hosts"] if host not in account.other_nodes],
            "devices": [{"uuid": d.uuid, "name": d.name, "node": d.node, "kind": d.kind} for d in account.devices],
        },
        "time": {
            "started_unix_s": started,
            "ended_unix_s": ended,
            "duration_s": max(0.0, ended - started),
            "gpu_hours": device_hours if run.get("device_type") == "cuda" else 0.0,
            "device_hours": device_hours,
        },
        "energy": _energy_block(run, account, total_j, it_kwh, facility, pue)
        | {
            "joule_per_token": joule_per_token,
            "paper_method": _paper_method(device_hours, power_w, pue, carbon["intensity_g_per_kwh"], facility),
        },
        "carbon": carbon,
        "embodied": made,
        "water": water_block(run, it_kwh, facility),
        "sci": sci_block(
            tonnes, made["carbon_tco2eq"], trained, compute["compute_flop"], (run.get("model") or {}).get("params")
        ),
        "uncertainty": _uncertainty(account, total_j, figures, factors, series is not None),
        "quality": {
            "warnings": list(dict.fromkeys(warnings)),
            "damaged": damaged,
            "gap_s": max((float(d.gap_s) for d in account.devices), default=0.0),
            "metering_overhead": _overhead(account),
        },
        "assumptions": list(assumed.values()),
    }
    for block, told in quantities_of(record).items():
        record[block]["quantities"] = told
    record["quality"]["warnings"] += [f"{IMPLAUSIBLE}{finding}" for finding in check_record(record)]
    return record


def _span(run: Row, account: Any) -> tuple[float, float]:
    """When the run began and ended, in unix s."""
    begun = [attempt["started_unix_s"] for attempt in run.get("attempts") or []]
    started = min(begun or [run.get("created_unix_s") or account.start_unix_s or 0.0])
    return started, run.get("ended_unix_s") or account.end_unix_s or started or 0.0


def _missing(
    run: Row, account: Any, measured_any: bool, pue: float | None, carbon: Row, series: Any, devices: int
) -> list[str]:
    """What the record does not know, in words."""
    texts = []
    if pue is None:
        texts.append("no PUE was given: facility energy and carbon are not known (energy.pue)")
    if carbon["intensity_g_per_kwh"] is None and series is None:
        texts.append("no grid intensity was given: carbon is not known (energy.grid or energy.intensity)")
    if not measured_any:
        texts.append("no sensor could be read: the energy is missing, not zero")
    metered = {device.node for device in account.devices} | {*account.nodes, *account.other_nodes}
    for node in sorted({meter["node"] for meter in run.get("meters") or []} - metered):
        texts.append(f"no ledger of node {node} is here: its energy is missing, not zero (is the folder a shared one?)")
    texts += run.get("grid_notes") or []
    for device in account.devices:
        if not device.samples:
            texts.append(f"{device.name} ({device.uuid}) could not be read: its energy is missing, not zero")
    idle_gpus = len(_counted(run, account)) - devices
    if idle_gpus > 0:
        texts.append(f"{idle_gpus} GPUs of the nodes did not train; their energy is in the total")
    return texts


def _skipped_last(run: Row, steps: Sequence[Row]) -> float:
    """Tokens of the steps after the last that was not skipped: the run has come past them, too."""
    data, last = run.get("data") or {}, steps[-1]["step"] if steps else 0
    later = sum(each["step"] > last for each in data.get("skipped") or [])
    return later * data["tokens_skipped"] / data["steps_skipped"] if later else 0.0


def _joules(device: Any) -> dict[str, Any]:
    """A device's energy; None where nothing was ever read of it, which is not zero."""
    known = device.samples or device.energy_j
    return {
        "energy_j": device.energy_j if known else None,
        "energy_kwh": device.energy_j / JOULE_PER_KWH if known else None,
    }


def _energy_block(
    run: Row, account: Any, total_j: float, it_kwh: float | None, facility_kwh: float | None, pue: float | None
) -> dict[str, Any]:
    status = {attempt.get("attempt"): attempt.get("status") for attempt in run.get("attempts") or []}
    useful_j = None if it_kwh is None or run.get("kind") == MEASURE else account.useful_j  # a command trains nothing
    keys = ("uuid", "name", "node", "kind", "boundary", "method", "samples", "gap_s")

    def kwh(joules: float) -> float | None:
        return None if it_kwh is None else joules / JOULE_PER_KWH  # where nothing was read no part is known either

    further = ("doubt_j", "integrated_j", "counter_to_power")
    return {
        "energy_it_kwh": it_kwh,
        "energy_facility_kwh": facility_kwh,
        "pue": pue,
        "boundary": boundary_of(account.devices),
        "devices": [
            {key: getattr(d, key) for key in keys} | _joules(d) | {key: getattr(d, key) for key in further}
            for d in account.devices
        ],
        "phases": [
            {
                "phase": name,
                "energy_kwh": kwh(part["energy_j"]),
                "standard_error_kwh": kwh(part["standard_error_j"]),
                "seconds": part["seconds"],
                "method": part["method"],
                "share": part["energy_j"] / total_j if it_kwh is not None and total_j else None,
            }
            for name, part in account.phases.items()
        ],
        "attempts": [
            {
                "attempt": int(part["attempt"]),
                "status": status.get(int(part["attempt"])),
                "energy_kwh": kwh(part["energy_j"]),
                "seconds": part["seconds"],
            }
            for part in account.attempts
        ],
        "useful_kwh": None if useful_j is None else useful_j / JOULE_PER_KWH,
        "useful_share": useful_j / total_j if useful_j is not None and total_j else None,
        **shares_of(account.devices, total_j),
    }
