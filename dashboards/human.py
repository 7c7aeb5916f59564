"""Quantities for people: the scale that fits, three significant digits, the interval in the same unit."""

from __future__ import annotations

from energy.units import GRAM_PER_TONNE, JOULE_PER_KWH

Scales = tuple[tuple[float, str], ...]
_ENERGY: Scales = ((3.6e9, "MWh"), (3.6e6, "kWh"), (3.6e3, "Wh"), (1.0, "J"), (1e-3, "mJ"))
_JOULE: Scales = ((1e9, "GJ"), (1e6, "MJ"), (1e3, "kJ"), (1.0, "J"), (1e-3, "mJ"), (1e-6, "µJ"))
_MASS: Scales = ((1e6, "t"), (1e3, "kg"), (1.0, "g"), (1e-3, "mg"), (1e-6, "µg"))
_COUNT: Scales = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k"), (1.0, ""))
_FLOP: Scales = ((1e24, "YFLOP"), (1e21, "ZFLOP"), (1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1.0, "FLOP"))  # fmt: skip # noqa: E501
_TIME: Scales = ((172800.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"))
NONE = "not known"


def digits(value: float) -> str:
    """Three significant digits, never in exponent form for everyday sizes."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e9 or size < 1e-4:
        return f"{value:.2e}"
    places = 0 if size >= 99.95 else 1 if size >= 9.995 else 2 if size >= 0.9995 else 3 if size >= 0.1 else 5
    return f"{value:,.{places}f}"


def scale_of(value: float, scales: Scales) -> tuple[float, str]:
    """The largest scale (factor, unit) that shows `value` as at least 1; zero takes factor 1."""
    if value == 0:
        return next(((factor, unit) for factor, unit in scales if factor == 1.0), scales[-1])
    return next(((factor, unit) for factor, unit in scales if abs(value) >= factor * 0.9995), scales[-1])


def _said(value: float | None, scales: Scales, low: float | None = None, high: float | None = None) -> str:
    if value is None:
        return NONE
    factor, unit = scale_of(value, scales)
    text = f"{digits(value / factor)} {unit}".rstrip()
    if low is None or high is None:
        return text
    return f"{text} ({digits(low / factor)} to {digits(high / factor)})"


def _times(factor: float, *values: float | None) -> list[float | None]:
    return [None if value is None else value * factor for value in values]


def energy_scale(joules: float) -> tuple[float, str]:
    """(joules in one unit, unit) that fits an energy in J."""
    return scale_of(joules, _ENERGY)


def human_energy(kwh: float | None, low: float | None = None, high: float | None = None) -> str:
    """kWh as J, Wh, kWh or MWh; with bounds in kWh, the interval in the same unit."""
    value, least, most = _times(JOULE_PER_KWH, kwh, low, high)
    return _said(value, _ENERGY, least, most)


def human_carbon(tonnes: float | None, low: float | None = None, high: float | None = None) -> str:
    """Tonnes CO2eq as mg, g, kg or t."""
    value, least, most = _times(GRAM_PER_TONNE, tonnes, low, high)
    text, bracket, interval = _said(value, _MASS, least, most).partition(" (")
    return text if tonnes is None else f"{text} CO₂eq{bracket}{interval}"


def human_joule(joules: float | None, low: float | None = None, high: float | None = None) -> str:
    """Joules with a metric prefix."""
    return _said(joules, _JOULE, low, high)


def human_count(count: float | None) -> str:
    """A count as 1,500, 20.0 k, 2.00 M, 1.40 T."""
    return _said(count, _COUNT)


def human_flop(flop: float | None) -> str:
    """FLOP with a metric prefix."""
    return _said(flop, _FLOP)


def human_time(seconds: float | None) -> str:
    """Seconds as ms, s, min, h or d."""
    return _said(seconds, _TIME)
