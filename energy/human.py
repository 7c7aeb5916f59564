"""Quantities for people: the scale that fits, three significant digits, the interval in the same unit."""

from __future__ import annotations

from energy.units import GRAM_PER_TONNE, JOULE_PER_KWH

Scales = tuple[tuple[float, float, str], ...]  # (from this size on, size of one unit, unit), the largest first


def _plain(*scales: tuple[float, str]) -> Scales:
    return tuple((factor * 0.9995, factor, unit) for factor, unit in scales)


_ENERGY: Scales = (
    (3.6e9, 3.6e9, "MWh"),
    (3.6e5, 3.6e6, "kWh"),
    (36.0, 3.6e3, "Wh"),
    *_plain((1.0, "J"), (1e-3, "mJ")),
)
_JOULE = _plain((1e9, "GJ"), (1e6, "MJ"), (1e3, "kJ"), (1.0, "J"), (1e-3, "mJ"), (1e-6, "µJ"))
_MASS = _plain((1e6, "t"), (1e3, "kg"), (1.0, "g"), (1e-3, "mg"), (1e-6, "µg"))
_COUNT = ((1e12, 1e12, "T"), (1e9, 1e9, "B"), (1e6, 1e6, "M"), (1e4, 1e3, "k"), (0.0, 1.0, ""))
_FLOP = _plain(
    *((1000.0**power, f"{prefix}FLOP") for power, prefix in zip(range(8, 2, -1), "YZEPTG", strict=True)), (1.0, "FLOP")
)
_TIME = (
    (172800.0, 86400.0, "d"),
    (3600.0, 3600.0, "h"),
    (60.0, 60.0, "min"),
    (1.0, 1.0, "s"),
    (0.0, 1e-3, "ms"),
)
NONE = "not known"


def digits(value: float) -> str:
    """Three significant digits, never in exponent form for everyday sizes."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e9 or size < 1e-4:
        return f"{value:.2e}"
    return f"{value:,.0f}" if size >= 99.95 else f"{value:#.3g}"


def percent(share: float) -> str:
    """A share (1 is all) in per cent, with two digits where it is small."""
    return f"{100 * share:.1f} %" if share >= 0.01 or share == 0 else f"{100 * share:.2g} %"


def scale_of(value: float, scales: Scales) -> tuple[float, str]:
    """(size of one unit, unit) that suits `value`; zero takes the unit of size 1."""
    if value == 0:
        return next(((factor, unit) for _, factor, unit in scales if factor == 1.0), scales[-1][1:])
    return next(((factor, unit) for least, factor, unit in scales if abs(value) >= least), scales[-1][1:])


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
