"""What metering one command gave: its window, turned into energy and carbon, and into JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from energy.accounting.uncertainty import interval, relative_range
from energy.boundaries import boundary_of, shares_of
from energy.carbon.formula import carbon_tco2eq, energy_facility_kwh
from energy.factors import Factor
from energy.factors.places import named
from energy.metering.windows import DeviceWindow, Window
from energy.runs import RunFolder
from energy.units import JOULE_PER_KWH


@dataclass(frozen=True)
class Factors:
    """What turns IT energy into facility energy and carbon; None is not known, never guessed.

    pue: energy of the facility over that of its IT; intensity: of the grid, g CO2eq/kWh
    """

    pue: Factor | None = None
    intensity: Factor | None = None

    @classmethod
    def declared(
        cls,
        pue: float | str | None = None,
        pue_source: str | None = None,
        intensity_g_per_kwh: float | None = None,
        intensity_source: str | None = None,
    ) -> Factors:
        """From the command line's figures; a PUE may be a name in the tables instead, which has a source of its own.

        ValueError for a figure that cannot be, for one without a source, and for a name that the tables do not hold.
        """
        return cls(
            _named_pue(pue, pue_source) if isinstance(pue, str) else _declared("pue", "1", pue, pue_source, 1.0),
            _declared("intensity_g_per_kwh", "g CO2eq/kWh", intensity_g_per_kwh, intensity_source, 0.0),
        )

    def accounting(self) -> dict[str, Any]:
        """As in run.json."""
        factors = {"pue": self.pue, "intensity_g_per_kwh": self.intensity}
        return {key: None if factor is None else factor.as_dict() for key, factor in factors.items()}

    def intervals(self, energy_j: float | None, half_widths_j: Sequence[float]) -> dict[str, dict[str, float | None]]:
        """{low, high} of `totals`: the 95 % interval of each, its factors' ranges in it (accounting.uncertainty)."""
        totals = self.totals(energy_j)
        errors = sorted(half_j / energy_j for half_j in half_widths_j) if energy_j else []
        inside = {"energy_facility_kwh": [self.pue], "carbon_tco2eq": [self.pue, self.intensity]}
        bounds: dict[str, dict[str, float | None]] = {"low": {}, "high": {}}
        for key, value in totals.items():
            factors = [factor.as_dict() for factor in inside.get(key, []) if factor is not None]
            ranges = [found for factor in factors if (found := relative_range(factor)) is not None]
            told = interval(value, errors, ranges)
            for bound, of in bounds.items():
                of[key] = None if told is None else told[bound]
        return bounds

    def totals(self, energy_j: float | None) -> dict[str, float | None]:
        """energy_it_kwh, energy_facility_kwh and carbon_tco2eq of so many J."""
        pue, g_per_kwh = (factor.value if factor else None for factor in (self.pue, self.intensity))
        it_kwh = None if energy_j is None else energy_j / JOULE_PER_KWH
        facility = None if it_kwh is None or pue is None else energy_facility_kwh(it_kwh, pue)
        carbon = None if facility is None or g_per_kwh is None else carbon_tco2eq(facility, g_per_kwh)
        return {"energy_it_kwh": it_kwh, "energy_facility_kwh": facility, "carbon_tco2eq": carbon}


def _named_pue(name: str, source: str | None) -> Factor:
    if source is not None:
        raise ValueError(f"--pue {name} is a name in the tables and has its source there: leave --pue-source out")
    return named("pue", name)


def _declared(key: str, unit: str, value: float | None, source: str | None, least: float) -> Factor | None:
    option, said = f"--{key.replace('_', '-')}", f"--{key.removesuffix('_g_per_kwh')}-source"
    if value is None:
        if source is not None:
            raise ValueError(f"{said} is given without {option}: the source of which figure?")
        return None
    if not (math.isfinite(value) and value >= least):
        raise ValueError(f"{option} {value:g}: expected a finite number of at least {least:g}")
    if not source:
        raise ValueError(f"{option} is given without {said}: say where the figure comes from")
    return Factor(key, value, unit, source)


@dataclass
class Measurement:
    """A command that was metered: its folder, exit code, window, and what could not be written (`faults`)."""

    folder: RunFolder
    exit_code: int
    window: Window
    factors: Factors
    warnings: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def devices(self) -> list[DeviceWindow]:
        return self.window.devices

    def shares(self) -> dict[str, float | None]:
        """Which part of the energy was measured, modelled and assumed; None when there is none."""
        return shares_of(self.window.counted, self.window.energy_j)

    @property
    def boundary(self) -> str | None:
        """gpu when nothing but accelerators is in the total, else node; None where nothing is in it."""
        return boundary_of(self.window.counted)

    def as_json(self) -> dict[str, Any]:
        """What `hoofprint measure --json` prints; `low` and `high` bound the 95 % interval of the keys above them."""
        window = self.window
        keys = (
            "uuid",
            "name",
            "kind",
            "energy_j",
            "low_j",
            "high_j",
            "method",
            "boundary",
            "samples",
            "gap_s",
            "share",
        )
        return {
            "run_id": self.folder.path.name,
            "run": str(self.folder.path),
            "duration_s": window.duration_s,
            "exit_code": self.exit_code,
            "devices": [{key: getattr(d, key) for key in keys} | {"note": d.note or None} for d in self.devices],
            **self.factors.totals(window.energy_j),
            **self.factors.intervals(window.energy_j, window.half_widths_j()),
            "boundary": self.boundary,
            **self.shares(),
            "warnings": self.warnings,
        }
