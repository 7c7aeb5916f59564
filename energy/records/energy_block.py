"""The record's `energy`: by device, phase and attempt, the paper's method beside it; and what the metering cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from energy.boundaries import boundary_of, shares_of
from energy.carbon.formula import energy_facility_kwh, estimate
from energy.runs import MEASURE
from energy.units import JOULE_PER_KWH

Row = Mapping[str, Any]


def energy_block(run: Row, account: Any, pue: float | None, trained_tokens: float) -> dict[str, Any]:
    """The record's `energy` but for `paper_method`. Where nothing was read, neither the total nor a part is known."""
    total_j = account.energy_j
    read = any(device.samples > 0 for device in account.devices)
    status = {attempt.get("attempt"): attempt.get("status") for attempt in run.get("attempts") or []}
    useful_j = account.useful_j if read and run.get("kind") != MEASURE else None  # a command trains nothing

    def kwh(joules: float) -> float | None:
        return joules / JOULE_PER_KWH if read else None

    it_kwh = kwh(total_j)
    return {
        "energy_it_kwh": it_kwh,
        "energy_facility_kwh": energy_facility_kwh(it_kwh, pue) if it_kwh is not None and pue is not None else None,
        "pue": pue,
        "boundary": boundary_of(account.devices),
        "devices": [_device(device) for device in account.devices],
        "phases": [
            {
                "phase": name,
                "energy_kwh": kwh(part["energy_j"]),
                "standard_error_kwh": kwh(part["standard_error_j"]),
                "seconds": part["seconds"],
                "method": part["method"],
                "share": part["energy_j"] / total_j if read and total_j else None,
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
        "joule_per_token": total_j / trained_tokens if read and trained_tokens else None,
    }


def _device(device: Any) -> dict[str, Any]:
    """What is known of a device; its energy is None where nothing was ever read of it, which is not zero."""
    known = device.samples or device.energy_j
    return {
        **{key: getattr(device, key) for key in ("uuid", "name", "node", "kind", "boundary", "method")},
        **{key: getattr(device, key) for key in ("samples", "gap_s", "metered_s")},
        "energy_j": device.energy_j if known else None,
        "energy_kwh": device.energy_j / JOULE_PER_KWH if known else None,
        **{key: getattr(device, key) for key in ("doubt_j", "integrated_j", "counter_to_power")},
    }


def paper_method(hours: float | None, power_w: float | None, pue: float | None, intensity: float | None,
                 facility_kwh: float | None) -> dict[str, Any] | None:  # fmt: skip
    """LLaMA's formula (device-hours x rated W x PUE) beside what was measured; None without hours, power or PUE."""
    if hours is None or power_w is None or pue is None:
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


def metering_overhead(account: Any) -> dict[str, Any]:
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
