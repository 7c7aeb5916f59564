"""Conversions between the units in which tools report energy and carbon. Everything inside is SI: J, W, s."""

JOULE_PER_KWH = 3.6e6
SECONDS_PER_HOUR = 3600.0
GRAM_PER_TONNE = 1e6
G_PER_KWH_FROM_LB_PER_MWH = 0.45359237


def joule_to_kwh(energy_j: float) -> float:
    """Energy in kWh."""
    return energy_j / JOULE_PER_KWH


def kwh_to_joule(energy_kwh: float) -> float:
    """Energy in J."""
    return energy_kwh * JOULE_PER_KWH


def gram_to_tonne(mass_g: float) -> float:
    """Mass in tonnes (tCO2eq when grams of CO2eq are given)."""
    return mass_g / GRAM_PER_TONNE
