"""What the exports read from a record, by one name each: the only place of theirs that knows where it stands."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from energy.boundaries import METHODS, boundary_of_record
from energy.human import percent
from energy.runs import MEASURE

SECONDS_PER_DAY = 86400.0
NAMED = 3  # devices that could not be read; the rest is counted


@dataclass(frozen=True)
class Facts:
    """A record's figures; None is not known. Masses in tonnes, energies in kWh, time in s, compute in FLOP."""

    run_id: str
    name: str
    status: str
    partial: bool
    params: float | None
    tokens: float | None
    compute_flop: float | None
    compute_flop_6nd: float | None
    flop_convention: str
    energy_it_kwh: float | None
    energy_facility_kwh: float | None
    pue: float | None
    location_tco2eq: float | None
    market_tco2eq: float | None
    intensity_g_per_kwh: float | None
    intensity_source: str | None
    market_g_per_kwh: float | None
    market_source: str | None
    embodied_tco2eq: float | None
    device_hours: float | None
    duration_s: float
    started_unix_s: float
    ended_unix_s: float
    devices: str
    unread: str  # the devices that no sensor could tell of; '' where there are none
    training_type: str | None  # pre-training or fine-tuning; None of what trained nothing
    is_command: bool  # of `hoofprint measure`
    boundary_text: str
    methods: str
    share_measured: float | None
    lacking_carbon: str  # what the carbon would need; '' where it is known
    region: str | None
    provider: str | None
    relative_error: float | None  # of the IT energy
    facility_low_kwh: float | None  # the 95 % interval of the facility energy, the range of PUE in it
    facility_high_kwh: float | None
    attempts: int
    version: str | None

    @property
    def location_g(self) -> float | None:
        return None if self.location_tco2eq is None else self.location_tco2eq * 1e6


def facts_of(record: Mapping[str, Any]) -> Facts:
    run, data, compute, energy, carbon, time = (
        record[key] for key in ("run", "data", "compute", "energy", "carbon", "time")
    )
    facility = record["uncertainty"]["energy_facility_kwh"] or {}
    return Facts(
        run_id=str(run.get("run_id") or "run"),
        name=str(run.get("name") or run.get("run_id") or "run"),
        status=str(run["status"]),
        partial=bool(run["partial"]),
        params=record["model"].get("params"),
        tokens=data["tokens_trained"] or None,
        compute_flop=compute["compute_flop"],
        compute_flop_6nd=compute.get("compute_flop_6nd"),
        flop_convention=compute["flop_convention"],
        energy_it_kwh=energy["energy_it_kwh"],
        energy_facility_kwh=energy["energy_facility_kwh"],
        pue=energy["pue"],
        location_tco2eq=carbon["carbon_tco2eq"],
        market_tco2eq=carbon.get("carbon_market_tco2eq"),
        intensity_g_per_kwh=carbon["intensity_g_per_kwh"],
        intensity_source=carbon["source"],
        market_g_per_kwh=carbon.get("intensity_market_g_per_kwh"),
        market_source=carbon.get("market_source"),
        embodied_tco2eq=record["embodied"]["carbon_tco2eq"],
        device_hours=time["device_hours"],
        duration_s=time["duration_s"],
        started_unix_s=time["started_unix_s"],
        ended_unix_s=time["ended_unix_s"],
        devices=_devices(record),
        unread=_unread(energy["devices"]),
        is_command=run.get("purpose") == MEASURE,
        training_type=run.get("training_type") or ("pre-training" if compute["compute_flop"] is not None else None),
        boundary_text=boundary_of_record(energy),
        methods=", ".join(METHODS[name] for name in METHODS if any(d["method"] == name for d in energy["devices"])),
        share_measured=energy["share_measured"],
        lacking_carbon=lacking_carbon(record),
        region=carbon.get("region"),
        provider=carbon.get("provider"),
        relative_error=record["uncertainty"]["relative"],
        facility_low_kwh=facility.get("low"),
        facility_high_kwh=facility.get("high"),
        attempts=len(run.get("attempts") or []),
        version=(run.get("versions") or {}).get("hoofprint"),
    )


def _devices(record: Mapping[str, Any]) -> str:
    """'8 x NVIDIA A100-SXM4-80GB': what trained, at the most; of a command the accelerators, where there are any."""
    hardware, run = record["hardware"], record["run"]
    devices, trained_on, attempts = hardware["devices"], hardware["device_type"], run.get("attempts") or []
    has_gpus = trained_on != "cpu" and any(device["kind"] == "gpu" for device in devices)
    kind = "gpu" if has_gpus else "cpu"
    counted = Counter(device["name"] for device in devices if device["kind"] == kind)
    held = max([hardware.get("world_size") or 0, *(attempt.get("world_size") or 0 for attempt in attempts)])
    others = counted.total() - held
    if not has_gpus or run.get("purpose") == MEASURE or not held or others <= 0:
        return _listed(counted) or "not known"
    how = "idle" if len(attempts) < 2 else "idle, or of other attempts"
    if len(counted) > 1:  # of which kind they were is not in the record
        return f"{_listed(counted)} ({others} of these GPUs {how})"
    more = f"{others} more GPU{'s' if others > 1 else ''}"
    return f"{_listed(Counter(dict.fromkeys(counted, held)))} ({more} of the nodes {how})"


def _listed(counted: Counter[str]) -> str:
    return ", ".join(f"{count} x {name}" for name, count in sorted(counted.items()))


def _unread(devices: Sequence[Mapping[str, Any]]) -> str:
    names = [f"{device['name']} ({device['uuid']})" for device in devices if not device["samples"]]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def share_text(share: float) -> str:
    """A share (1 is all) in per cent, with a decimal where it is neither all nor nothing: less than all is no 100 %."""
    if share == 0 or math.isclose(share, 1.0, rel_tol=1e-9):
        return f"{100 * share:.0f} %"
    return percent(min(share, 0.999) if share < 1 else share)


def lacking_carbon(record: Mapping[str, Any]) -> str:
    """What a record lacks for its carbon: 'a measurement, PUE and grid intensity', '' where it is known."""
    energy, carbon = record["energy"], record["carbon"]
    if carbon["carbon_tco2eq"] is not None:
        return ""
    by_hour = carbon.get("series_sha256") is not None
    lacking = [
        ("a measurement", energy["energy_it_kwh"] is None),
        ("PUE", energy["pue"] is None),
        ("grid intensity", carbon["intensity_g_per_kwh"] is None and not by_hour),
    ]
    names = [name for name, is_lacking in lacking if is_lacking] or ["grid intensity for all of its time"]
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def utc(unix_s: float) -> str:
    """A unix time as 2026-11-24T07:00:00Z."""
    return datetime.fromtimestamp(int(unix_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def significant(value: float, figures: int) -> float:
    """A number rounded to so many significant figures."""
    if value == 0 or not math.isfinite(value):
        return value
    return round(value, figures - 1 - math.floor(math.log10(abs(value))))


def figure(value: float, figures: int = 3) -> str:
    """A number for people: so many significant figures, a power of ten beyond a million and below a thousandth."""
    rounded = significant(value, figures)
    if rounded == 0:
        return "0"
    if not 1e-3 <= abs(rounded) < 1e6:
        return f"{rounded:.{figures - 1}e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    whole = abs(rounded) >= 10 ** (figures - 1)
    return f"{rounded:,.0f}" if whole else f"{rounded:#.{figures}g}"
