"""What one row of a table, or one record, claims about a footprint, and how its figures are said and compared."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from energy.factors import match_accelerator

TOLERANCE = 0.02
_TOTAL = re.compile(r"^\s*(grand\s+)?(total|sum|all)\b\s*[:.]?\s*(\(.*\))?$|^\s*(grand\s+)?total\b", re.IGNORECASE)


@dataclass(frozen=True)
class Claim:
    """What one row of a table, or one record, states; None is what it leaves out.

    energy_kwh: energy whose boundary is not said; energy_gpu_kwh, energy_it_kwh, energy_facility_kwh: where it is
    power_w: of one device; power_of_gpu: of the accelerator alone, not its share of the system
    measured: the energy was metered, so it need not be rated power times hours
    text: what the row says in words
    step: one unit of the last printed digit, by field, in the field's unit
    """

    name: str
    place: str = ""
    device: str | None = None
    devices: float | None = None
    duration_h: float | None = None
    device_hours: float | None = None
    power_w: float | None = None
    power_of_gpu: bool = False
    pue: float | None = None
    intensity_g_per_kwh: float | None = None
    energy_kwh: float | None = None
    energy_gpu_kwh: float | None = None
    energy_it_kwh: float | None = None
    energy_facility_kwh: float | None = None
    carbon_t: float | None = None
    measured: bool = False
    embodied: bool = False
    text: str = ""
    step: Mapping[str, float] = field(default_factory=dict)

    @property
    def hours(self) -> float | None:
        """Device-hours, stated or from devices and duration."""
        if self.device_hours is not None:
            return self.device_hours
        if self.devices is not None and self.duration_h is not None:
            return self.devices * self.duration_h
        return None

    @property
    def rated_it_kwh(self) -> float | None:
        """Device-hours times power: IT energy as the LLaMA formula has it."""
        return None if self.hours is None or self.power_w is None else self.hours * self.power_w / 1000

    @property
    def tdp_w(self) -> float | None:
        known = match_accelerator(self.device) if self.device else None
        return known.tdp_w if known else None


@dataclass(frozen=True)
class Finding:
    """One thing that cannot be right as it stands."""

    check: str
    name: str
    place: str
    message: str

    def __str__(self) -> str:
        return f"{self.check}: {self.name} ({self.place}): {self.message}"


def near(claim: Claim, key: str, printed: float, expected: float) -> bool:
    """Whether a printed figure is the expected one, rounded or truncated."""
    return abs(printed - expected) <= max(TOLERANCE * abs(expected), claim.step.get(key, 0.0) * 1.001)


def number_text(value: float) -> str:
    """Four significant digits, and no exponent for everyday sizes."""
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if size >= 0.001 or size == 0 else f"{value:.2g}"


def energy_text(kwh: float) -> str:
    """kWh as kWh or MWh."""
    return f"{number_text(kwh / 1000)} MWh" if abs(kwh) >= 1000 else f"{number_text(kwh)} kWh"


def tonnes_text(tonnes: float) -> str:
    """Tonnes as t or g."""
    return f"{number_text(tonnes)} t" if abs(tonnes) >= 0.001 else f"{tonnes * 1e6:.3g} g"


def grid_energy(claim: Claim) -> tuple[float, str] | None:
    """(kWh, words) of the energy to which the grid's intensity applies, as far as the row states it."""
    if claim.energy_facility_kwh is not None:
        return claim.energy_facility_kwh, energy_text(claim.energy_facility_kwh)
    own = claim.energy_it_kwh if claim.energy_it_kwh is not None else claim.energy_gpu_kwh
    if own is None:
        own = claim.rated_it_kwh if claim.energy_kwh is None else None
    if own is not None and claim.pue is not None:
        return own * claim.pue, f"{energy_text(own)} x PUE {claim.pue:g}"
    return None


def at_its_boundary(claim: Claim) -> Claim:
    """The claim with energy of unsaid boundary put where hours times power shows that it belongs."""
    energy, rated, pue = claim.energy_kwh, claim.rated_it_kwh, claim.pue
    if energy is None or rated is None or pue is None or claim.measured:
        return claim
    at = {"energy_it_kwh": rated, "energy_facility_kwh": rated * pue}
    fits = [key for key, expected in at.items() if near(claim, "energy_kwh", energy, expected)]
    if not fits:
        return claim
    best = min(fits, key=lambda key: abs(energy - at[key]))
    told = {**claim.__dict__, best: energy, "energy_kwh": None}
    step = {**claim.step, best: claim.step.get("energy_kwh", 0.0)}
    return Claim(**{**told, "step": step})


def is_total(name: str) -> bool:
    """Whether a row is the sum of the others, by its name."""
    return bool(_TOTAL.match(name))
