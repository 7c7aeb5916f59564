"""Embodied carbon: what an hour of hardware carries of its making, by the factor tables."""

from __future__ import annotations

import math
from dataclasses import dataclass

from energy.factors import SERVER, Embodied, Factor, embodied

HOURS_PER_YEAR = 8760.0
BUSY_SHARE = 0.85  # Luccioni et al. 2022: hardware is in use for 85 % of its life
GPUS_PER_SERVER = 8
CONVENTIONS = {
    "calendar": "share of the service life in calendar hours (ISO/IEC 21031, SCI)",
    "busy-hour": f"share of the hours in use, {BUSY_SHARE:.0%} of the service life (Luccioni et al. 2022)",
}


@dataclass(frozen=True)
class EmbodiedRate:
    """kg CO2eq of an hour of one accelerator with its eighth of a server, and the factors of both.

    central: the central mass over the middle of the stated service life; low: the least mass over the longest life;
    high: the greatest over the shortest.
    """

    low_kg_per_h: float
    central_kg_per_h: float
    high_kg_per_h: float
    factors: tuple[Factor, ...]


def hourly_kg(kgco2e: float, lifetime_years: float, convention: str = "calendar") -> float:
    """kg CO2eq for an hour of a piece of hardware: 1,000 kg over 4 calendar years is 28.5 g."""
    share = BUSY_SHARE if convention == "busy-hour" else 1.0
    return kgco2e / (lifetime_years * HOURS_PER_YEAR * share)


def embodied_rate(device: str, convention: str = "calendar") -> EmbodiedRate | None:
    """What an hour of an accelerator carries by one of CONVENTIONS; None where no figure of it is known.

    ValueError for a device that is not in the tables at all.
    """
    pieces = [(embodied(device), 1.0), (embodied(SERVER), 1.0 / GPUS_PER_SERVER)]
    bounds = [(share, found) for piece, share in pieces if (found := _bounds(piece, convention)) is not None]
    if len(bounds) < len(pieces):
        return None
    low, central, high = (math.fsum(share * found[place] for share, found in bounds) for place in range(3))
    return EmbodiedRate(low, central, high, tuple(piece.factor for piece, _ in pieces))


def _bounds(piece: Embodied, convention: str) -> tuple[float, float, float] | None:
    """kg for an hour of one piece: low, central, high. A bound that the table leaves out is the central mass."""
    factor = piece.factor
    if factor.value is None or piece.lifetime_years is None:
        return None
    shortest, longest = piece.lifetime_years
    least = factor.value if factor.low is None else factor.low
    most = factor.value if factor.high is None else factor.high
    masses_and_years = ((least, longest), (factor.value, (shortest + longest) / 2), (most, shortest))
    low, central, high = (hourly_kg(kg, years, convention) for kg, years in masses_and_years)
    return low, central, high
