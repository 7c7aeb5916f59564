"""What metering one command gave: its window, turned into energy and carbon, and into JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from energy.formula import carbon_tco2eq, energy_facility_kwh
from energy.runs import RunFolder
from energy.uncertainty import MEASURED
from energy.units import JOULE_PER_KWH
from energy.windows import DeviceWindow, Window


@dataclass(frozen=True)
class Factors:
    """What turns IT energy into facility energy and carbon, each with its source; None is not known, never guessed."""

    pue: float | None = None
    pue_source: str | None = None
    intensity_g_per_kwh: float | None = None
    intensity_source: str | None = None

    def __post_init__(self) -> None:
        """ValueError for a figure that cannot be, and for one without a source."""
        for key, value, source, least in (
            ("pue", self.pue, self.pue_source, 1.0),
            ("intensity-g-per-kwh", self.intensity_g_per_kwh, self.intensity_source, 0.0),
        ):
            said = f"--{key.removesuffix('-g-per-kwh')}-source"
            if value is None and source is not None:
                raise ValueError(f"{said} is given without --{key}: the source of which figure?")
            if value is not None and not (math.isfinite(value) and value >= least):
                raise ValueError(f"--{key} {value:g}: expected a finite number of at least {least:g}")
            if value is not None and not source:
                raise ValueError(f"--{key} is given without {said}: say where the figure comes from")

    def accounting(self) -> dict[str, Any]:
        """As in run.json."""
        figures = {"pue": (self.pue, self.pue_source)}
        figures["intensity_g_per_kwh"] = (self.intensity_g_per_kwh, self.intensity_source)
        return {key: None if v is None else {"value": v, "source": source} for key, (v, source) in figures.items()}

    def totals(self, energy_j: float | None) -> dict[str, float | None]:
        """energy_it_kwh, energy_facility_kwh and carbon_tco2eq of so many J."""
        it_kwh = None if energy_j is None else energy_j / JOULE_PER_KWH
        facility = None if it_kwh is None or self.pue is None else energy_facility_kwh(it_kwh, self.pue)
        known = facility is not None and self.intensity_g_per_kwh is not None
        carbon = carbon_tco2eq(facility or 0.0, self.intensity_g_per_kwh or 0.0) if known else None
        return {"energy_it_kwh": it_kwh, "energy_facility_kwh": facility, "carbon_tco2eq": carbon}


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
        total_j = self.window.energy_j
        parts = {"share_measured": MEASURED, "share_modelled": ("modelled",), "share_assumed": ("assumed",)}
        return {
            key: math.fsum(d.energy_j or 0.0 for d in self.window.counted if d.method in methods) / total_j
            if total_j
            else None
            for key, methods in parts.items()
        }

    @property
    def boundary(self) -> str:
        """gpu when nothing but accelerators is in the total, else node."""
        return "node" if any(device.boundary == "node" for device in self.window.counted) else "gpu"

    def as_json(self) -> dict[str, Any]:
        """What `hoofprint measure --json` prints; `low` and `high` bound the 95 % interval of the keys above them."""
        window, totals = self.window, self.factors.totals
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
            **totals(window.energy_j),
            "low": totals(window.low_j),
            "high": totals(window.high_j),
            "boundary": self.boundary,
            **self.shares(),
            "warnings": self.warnings,
        }
