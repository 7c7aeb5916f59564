"""Plausibility of a footprint, anybody's: what its own figures say about each other, and what physics allows.

Each check works on what a row states and is silent on what it leaves out. A printed figure is rounded or truncated, so
it agrees when it lies within 2 % or one unit of its last digit. The checks:

- implied factor: carbon over IT energy is outside what any grid times any PUE gives
- does not follow: hours x power x PUE x intensity is not what is printed
- PUE counted twice: it is, once PUE is applied a second time
- unit: it is, times or over a thousand (kWh for MWh, kg for t, watts where kilowatts are meant)
- rows do not add up: a total is not the sum of the rows above it
- months against MWh: so many devices at that power use that energy in another time than is stated
- more than rated power, less than idle: the mean power of a device is more than it can draw, or less than it must
- out of range: a PUE below 1, an intensity that no grid has

`check_claim` and `check_claims` look at rows, `check_record` at one of our own records, `checking.table` at files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from energy.checking.claims import Claim, Finding, is_total
from energy.checking.rows import GPU_HEADROOM, check_claim, check_claims, check_sums, idle_floor_w, power_warning
from energy.factors import match_accelerator
from energy.units import JOULE_PER_KWH

__all__ = ["Claim", "Finding", "check_claim", "check_claims", "check_record", "check_sums", "is_total", "power_warning"]

IMPLAUSIBLE = "implausible: "  # how a finding begins among the warnings of a record
EXACT = 1e-6  # a record holds full precision, so its sums and products hold to rounding
SHORTEST_S = 60.0  # below this a mean power says little
PART = "assumed"  # how the share of a GPU that stands for a MIG instance was come by: it has no idle power of its own
MORE_THAN_RATED, LESS_THAN_IDLE = "more than rated power", "less than idle"


def _sum_finding(record: Mapping[str, Any], name: str, total: float | None, parts: list[float]) -> list[Finding]:
    if total is None or not parts:
        return []
    added = math.fsum(parts)
    if abs(added - total) <= EXACT * max(abs(total), abs(added)):
        return []
    message = f"energy_it_kwh is {total!r}, {name} add up to {added!r}"
    return [Finding("rows do not add up", str(record["run"].get("run_id")), "energy", message)]


def _product(record: Mapping[str, Any]) -> list[Finding]:
    energy, carbon, name = record["energy"], record["carbon"], str(record["run"].get("run_id"))
    found = []
    it, pue, facility = energy.get("energy_it_kwh"), energy.get("pue"), energy.get("energy_facility_kwh")
    if None not in (it, pue, facility) and abs(it * pue - facility) > EXACT * max(abs(facility), 1e-12):
        twice = abs(it * pue * pue - facility) <= EXACT * abs(facility)
        check = "PUE counted twice" if twice and pue != 1 else "does not follow"
        found.append(Finding(check, name, "energy", f"{it!r} kWh x PUE {pue!r} is not {facility!r} kWh"))
    g, tonnes = carbon.get("intensity_g_per_kwh"), carbon.get("carbon_tco2eq")
    # An hourly series has no single intensity that the product would hold for.
    if None not in (facility, g, tonnes) and carbon.get("series_sha256") is None:
        expected = facility * g / 1e6
        if abs(expected - tonnes) > EXACT * max(abs(expected), 1e-18):
            twice = pue is not None and pue != 1 and abs(expected * pue - tonnes) <= EXACT * abs(tonnes)
            check = "PUE counted twice" if twice else "does not follow"
            found.append(Finding(check, name, "carbon", f"{facility!r} kWh x {g!r} g/kWh is not {tonnes!r} t"))
    return found


def _metered_s(record: Mapping[str, Any], device: Mapping[str, Any]) -> tuple[float | None, bool]:
    """(time in s that a device's energy is of, whether it was that long). A record from before this was noted has that
    of the whole run, of several attempts of which a device may have been there for one: at most that long."""
    if "metered_s" in device:
        return device["metered_s"], True
    at_most = len(record["run"].get("attempts") or []) > 1 or device.get("gap_s")
    return record["time"].get("duration_s"), not at_most


def _devices(record: Mapping[str, Any]) -> list[Finding]:
    found = []
    for device in record["energy"].get("devices") or []:
        known, (seconds, exactly) = match_accelerator(str(device.get("name") or "")), _metered_s(record, device)
        if known is None or known.tdp_w is None or not device.get("samples"):
            continue
        if seconds is None or seconds < SHORTEST_S:
            continue
        mean_w = device["energy_j"] / seconds
        told = (
            f"{device['energy_j']:,.0f} J in {seconds:,.0f} s is {mean_w:,.0f} W; its rated power is {known.tdp_w:g} W"
        )
        if mean_w > known.tdp_w * GPU_HEADROOM:
            found.append(Finding(MORE_THAN_RATED, str(device["name"]), str(device.get("uuid")), told))
        elif exactly and device.get("method") != PART and mean_w < idle_floor_w(known):
            found.append(Finding(LESS_THAN_IDLE, str(device["name"]), str(device.get("uuid")), told))
    return found


def check_record(record: Mapping[str, Any]) -> list[Finding]:
    """What is implausible about a record (footprint.json as a mapping); ValueError when a part of it is missing."""
    for part in ("run", "energy", "carbon", "time"):
        if not isinstance(record.get(part), Mapping):
            raise ValueError(f"the record has no {part!r}")
    energy, carbon = record["energy"], record["carbon"]
    found = _product(record)
    name = str(record["run"].get("run_id"))
    claim = Claim(
        name=name,
        place="record",
        pue=energy.get("pue"),
        energy_it_kwh=energy.get("energy_it_kwh"),
        energy_facility_kwh=energy.get("energy_facility_kwh"),
        carbon_t=carbon.get("carbon_tco2eq"),
        intensity_g_per_kwh=carbon.get("intensity_g_per_kwh"),
        measured=True,
    )
    told = {finding.check for finding in found}
    found += [finding for finding in check_claim(claim) if finding.check not in told | {"does not follow"}]
    joules = [device["energy_j"] for device in energy.get("devices") or [] if device.get("energy_j") is not None]
    total = energy.get("energy_it_kwh")
    found += _sum_finding(record, "the devices", total, [j / JOULE_PER_KWH for j in joules])
    phases = [part["energy_kwh"] for part in energy.get("phases") or [] if part.get("energy_kwh") is not None]
    found += _sum_finding(record, "the phases", total, phases)
    return found + _devices(record)
