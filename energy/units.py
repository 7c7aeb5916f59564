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


def text_energy(energy_kwh: float) -> str:
    """Energy for people, in the unit that suits its size: `1.23 Wh`, `449 MWh`."""
    return _text(energy_kwh * 1000, (("GWh", 1e9), ("MWh", 1e6), ("kWh", 1e3), ("Wh", 1.0), ("mWh", 1e-3)))


def text_carbon(carbon_tco2eq: float) -> str:
    """Carbon for people: `0.47 g CO2eq`, `173 t CO2eq`."""
    return _text(carbon_tco2eq * 1e6, (("t", 1e6), ("kg", 1e3), ("g", 1.0), ("mg", 1e-3))) + " CO2eq"


def _text(value: float, units: tuple[tuple[str, float], ...]) -> str:
    unit, size = next(((u, s) for u, s in units if abs(value) >= s), units[-1])
    return f"{value / size:.3g} {unit}" if abs(value / size) < 1000 else f"{value / size:,.0f} {unit}"
