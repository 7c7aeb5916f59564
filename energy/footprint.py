"""Account x factors = footprint: the record of a run as a pure function of what lies in its folder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from energy.factors import match_accelerator
from energy.formula import carbon_tco2eq, energy_facility_kwh, estimate
from energy.uncertainty import MEASURED, RULE, half_width
from energy.units import JOULE_PER_KWH

SCHEMA = "hoofprint/footprint/1"
FLOP_CONVENTION = "PaLM: 6 N_matmul + 12 L d s per token, embedding look-up excluded"
EMBODIED_NOTE = "not counted: no embodied figure is known for this hardware, which does not mean zero"
WATER_NOTE = "not counted: no water usage effectiveness was given"

Row = Mapping[str, Any]


def _factor(run: Row, key: str) -> tuple[float | None, str | None]:
    given = (run.get("accounting") or {}).get(key)
    if not given or given.get("value") is None:
        return None, None
    value = float(given["value"])
    lowest = 1.0 if key == "pue" else 0.0
    if not math.isfinite(value) or value < lowest:
        raise ValueError(f"accounting.{key} must be a finite number of at least {lowest:g}, not {value!r}")
    return value, str(given.get("source") or "source not given")


def _counted(run: Row, account: Any) -> list[Any]:
    """The devices that carry the training: GPUs where it ran on GPUs, else CPU packages."""
    kind = "gpu" if run.get("device_type") == "cuda" else "cpu"
    return [device for device in account.devices if device.kind == kind]


def _rated(
    run: Row, account: Any, key: str, attribute: str, unit: str, assumptions: list[dict[str, Any]]
) -> float | None:
    """A rated figure of one device: from the spec, else from the factor table by driver name, else None."""
    value, source = _factor(run, key)
    if value is None and run.get("device_type") == "cuda":
        known = {match_accelerator(device.name) for device in _counted(run, account)}
        only = known.pop() if len(known) == 1 else None
        value = getattr(only, attribute) if only else None
        source = f"{only.name}: {only.source}" if only else None
    if value is not None:
        assumptions.append({"key": key, "value": value, "unit": unit, "source": source})
    return value


def _devices_in_use(run: Row, account: Any) -> int:
    counted = len(_counted(run, account))
    if run.get("device_type") == "cuda":
        return int(run.get("world_size") or counted)
    return counted or len(run.get("hosts") or [])


def _attempt_seconds(run: Row, ended: float) -> float:
    attempts = run.get("attempts") or []
    return sum(max(0.0, (each.get("ended_unix_s") or ended) - each["started_unix_s"]) for each in attempts)


def _progress(steps: Sequence[Row]) -> tuple[float, float, float]:
    """(tokens that count, tokens processed with the recomputed ones, seconds in steps)."""
    attempts: dict[Any, list[Row]] = {}
    for step in steps:
        attempts.setdefault(step.get("attempt"), []).append(step)
    processed = 0.0
    for rows in attempts.values():
        first, last = rows[0], rows[-1]
        processed += last["tokens"] - first["tokens"] + first["tokens"] / max(1, first["step"])
    trained = float(steps[-1]["tokens"]) if steps else 0.0
    return trained, max(trained, processed), float(sum(step.get("seconds") or 0.0 for step in steps))


def _finite(value: float | None) -> float | None:
    """JSON knows no NaN: a loss that blew up is null in the record (and stays as it is in the metrics)."""
    return value if value is not None and math.isfinite(value) else None


def _interval(value: float | None, error: float) -> dict[str, float] | None:
    return None if value is None else {"low": value * max(0.0, 1 - error), "high": value * (1 + error)}


def _relative_error(account: Any, total_j: float) -> float:
    """Half width of the energy's 95 % interval over its value (see energy.uncertainty)."""
    parts = [(d.method, d.energy_j, d.doubt_j) for d in account.devices]
    return half_width(parts) / total_j if total_j else 0.0


def _overhead(account: Any) -> dict[str, float | None]:
    """What the metering itself cost: CPU seconds, its largest process in MB, and joules at the CPUs' mean power."""
    told = account.overhead
    if not told:
        return {"cpu_s": None, "peak_memory_mb": None, "energy_j": None}
    cpu_j = sum(d.energy_j for d in account.devices if d.kind == "cpu")
    core_s = told["cores"] * max(0.0, (account.end_unix_s or 0.0) - (account.start_unix_s or 0.0))
    return {
        "cpu_s": told["cpu_s"],
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


def make_footprint(run: Row, account: Any, steps: Sequence[Row], evaluations: Sequence[Row]) -> dict[str, Any]:
    """The record of one run (schema hoofprint/footprint/1) from run.json, account, metrics; reads no file."""
    assumptions: list[dict[str, Any]] = []
    damaged = list(account.damaged)
    warnings = [w for w in account.warnings if w not in damaged] + [
        w for meter in run.get("meters") or [] for w in meter.get("warnings") or []
    ]
    pue, pue_source = _factor(run, "pue")
    intensity, intensity_source = _factor(run, "intensity_g_per_kwh")
    assumptions += [
        {"key": "pue", "value": pue, "unit": "1", "source": pue_source},
        {"key": "intensity_g_per_kwh", "value": intensity, "unit": "g CO2eq/kWh", "source": intensity_source},
    ]
    if pue is None:
        warnings.append("no PUE was given: facility energy and carbon are not known (accounting.pue)")
    if intensity is None:
        warnings.append("no grid intensity was given: carbon is not known (accounting.intensity_g_per_kwh)")
    power_w = _rated(run, account, "device_rated_power_w", "tdp_w", "W", assumptions)
    peak = _rated(run, account, "peak_flops", "peak_flops", "FLOP/s", assumptions)

    total_j = float(sum(device.energy_j for device in account.devices))
    measured_any = any(device.samples > 0 for device in account.devices)
    if not measured_any:
        warnings.append("no sensor could be read: the energy is missing, not zero")
    it_kwh = total_j / JOULE_PER_KWH if measured_any else None
    facility = energy_facility_kwh(it_kwh, pue) if it_kwh is not None and pue is not None else None
    carbon = carbon_tco2eq(facility, intensity) if facility is not None and intensity is not None else None

    model, data = dict(run.get("model") or {}), dict(run.get("data") or {})
    trained, processed, step_s = _progress(steps)
    planned = run.get("planned_tokens")
    fraction = trained / planned if planned else None
    partial = run.get("status") != "completed" or (fraction is not None and fraction < 1)
    joule_per_token = total_j / trained if measured_any and trained else None

    for device in account.devices:
        if not device.samples:
            warnings.append(f"{device.name} ({device.uuid}) could not be read: its energy is missing, not zero")
    started = min(
        [a["started_unix_s"] for a in run.get("attempts") or []]
        or [run.get("created_unix_s") or account.start_unix_s or 0.0]
    )
    ended = run.get("ended_unix_s") or account.end_unix_s or started or 0.0
    devices = _devices_in_use(run, account)
    device_hours = devices * (_attempt_seconds(run, ended) or max(0.0, ended - started)) / 3600
    flop_per_token = model.get("flop_per_token")
    tokens_per_s = processed / step_s if step_s else None
    mfu = (
        tokens_per_s * flop_per_token / (peak * devices)
        if tokens_per_s and flop_per_token and peak and devices
        else None
    )
    idle_gpus = len(_counted(run, account)) - devices
    if idle_gpus > 0:
        warnings.append(f"{idle_gpus} GPUs of the nodes did not train; their energy is in the total")

    def share(*methods: str) -> float | None:
        part = sum(d.energy_j for d in account.devices if d.method in methods)
        return part / total_j if total_j else None

    whole_node = any(device.boundary == "node" for device in account.devices)
    error = _relative_error(account, total_j)
    return {
        "schema": SCHEMA,
        "run": {
            **{
                key: run.get(key)
                for key in ("run_id", "name", "status", "purpose", "planned_tokens", "attempts", "error")
            },
            **{key: run.get(key) for key in ("code_revision", "versions", "command")},
            "partial": partial,
            "trained_fraction": fraction,
        },
        "model": model,
        "data": {
            **data,
            "tokens_trained": trained,
            "tokens_processed": processed,
            "training_loss": _finite(steps[-1]["loss"]) if steps else None,
            "validation_loss": _finite(evaluations[-1]["validation_loss"]) if evaluations else None,
        },
        "compute": {
            "compute_flop": trained * flop_per_token if flop_per_token else None,
            "recomputed_flop": (processed - trained) * flop_per_token if flop_per_token else None,
            "flop_per_token": flop_per_token,
            "flop_convention": FLOP_CONVENTION,
            "tokens_per_s": tokens_per_s,
            "mfu": mfu,
            "peak_flops": peak,
        },
        "hardware": {
            **{key: run.get(key) for key in ("device_type", "world_size", "hosts")},
            "devices": [{"uuid": d.uuid, "name": d.name, "node": d.node, "kind": d.kind} for d in account.devices],
        },
        "time": {
            "started_unix_s": started,
            "ended_unix_s": ended,
            "duration_s": max(0.0, ended - started),
            "gpu_hours": device_hours if run.get("device_type") == "cuda" else 0.0,
            "device_hours": device_hours,
        },
        "energy": {
            "energy_it_kwh": it_kwh,
            "energy_facility_kwh": facility,
            "pue": pue,
            "boundary": "node" if whole_node else "gpu",
            "devices": [
                {
                    key: getattr(d, key)
                    for key in ("uuid", "name", "node", "kind", "boundary", "method", "samples", "gap_s")
                }
                | {"energy_j": d.energy_j, "energy_kwh": d.energy_j / JOULE_PER_KWH}
                | {key: getattr(d, key) for key in ("doubt_j", "integrated_j", "counter_to_power")}
                for d in account.devices
            ],
            "phases": [
                {
                    "phase": name,
                    "energy_kwh": part["energy_j"] / JOULE_PER_KWH,
                    "standard_error_kwh": part["standard_error_j"] / JOULE_PER_KWH,
                    "seconds": part["seconds"],
                    "method": part["method"],
                    "share": part["energy_j"] / total_j if total_j else None,
                }
                for name, part in account.phases.items()
            ],
            "useful_kwh": account.useful_j / JOULE_PER_KWH if measured_any else None,
            "useful_share": account.useful_j / total_j if total_j else None,
            "share_measured": share(*MEASURED),
            "share_modelled": share("modelled"),
            "share_assumed": share("assumed"),
            "joule_per_token": joule_per_token,
            "paper_method": _paper_method(device_hours, power_w, pue, intensity, facility),
        },
        "carbon": {
            "carbon_tco2eq": carbon,
            "basis": "location",
            "intensity_g_per_kwh": intensity,
            "source": intensity_source,
        },
        "embodied": {"carbon_tco2eq": None, "note": EMBODIED_NOTE},
        "water": {"on_site_l": None, "off_site_l": None, "note": WATER_NOTE},
        "sci": {
            "score_g_per_million_tokens": None,
            "operational_g_per_million_tokens": carbon * 1e12 / trained if carbon is not None and trained else None,
            "functional_unit": "1,000,000 tokens trained",
            "note": "the score needs embodied carbon, which is not known; the operational part stands alone",
        },
        "uncertainty": {
            "energy_it_kwh": _interval(it_kwh, error),
            "energy_facility_kwh": _interval(facility, error),
            "carbon_tco2eq": _interval(carbon, error),
            "joule_per_token": _interval(joule_per_token, error),
            "relative": error if measured_any else None,
            "method": RULE,
        },
        "quality": {
            "warnings": list(dict.fromkeys(warnings)),
            "damaged": damaged,
            "gap_s": max((float(d.gap_s) for d in account.devices), default=0.0),
            "metering_overhead": _overhead(account),
        },
        "assumptions": assumptions,
    }
