"""The units in which people and tools state energy, mass and grid intensity, as factors to those that are kept."""

from __future__ import annotations

import re

JOULE_PER_KWH = 3.6e6
GRAM_PER_TONNE = 1e6
G_PER_KWH_FROM_LB_PER_MWH = 0.45359237  # a pound is 453.59237 g

KWH = {"J": 1 / JOULE_PER_KWH, "Wh": 1e-3, "kWh": 1.0, "MWh": 1e3, "GWh": 1e6}
TONNES = {"g": 1 / GRAM_PER_TONNE, "kg": 1e-3, "t": 1.0, "kt": 1e3}
# Every unit that a grid's intensity is taken in, with its factor to g/kWh.
INTENSITIES = {"g/kWh": 1.0, "kg/kWh": 1e3, "kg/MWh": 1.0, "t/MWh": 1e3, "lb/MWh": G_PER_KWH_FROM_LB_PER_MWH}

# "kg CO2eq/kWh", "g_per_kwh", "lbs_co2_per_mwh": the mass, what of, and the energy that it is divided by
_INTENSITY = re.compile(r"(?<![a-z])(?:(g|kg|t)|lbs?)[ _]?(?:co2)?[ _]?(?:eq|e)?[ _]?(?:/|per)[ _]?(k|m)wh(?![a-z])")


def intensity_unit(text: str, *, alone: bool = False) -> str | None:
    """The unit of an intensity that stands in `text`, as one of INTENSITIES; None where there is none of them.

    alone: nothing else may stand there.
    """
    plain = text.strip().lower().replace("₂", "2").replace("-", "").replace(" per ", "/")
    match = _INTENSITY.fullmatch(plain) if alone else _INTENSITY.search(plain)
    unit = f"{match[1] or 'lb'}/{match[2].replace('m', 'M')}Wh" if match else None
    return unit if unit in INTENSITIES else None
