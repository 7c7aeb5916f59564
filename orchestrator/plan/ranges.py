"""Low, likely and high of one planned quantity, and what it rests on."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from energy.factors import Factor

SAME = 5e-4  # a smaller relative difference is none


@dataclass(frozen=True)
class Range:
    """An interval of one quantity with its likely value; all three in the same unit."""

    low: float
    likely: float
    high: float

    def __post_init__(self) -> None:
        assert self.low <= self.likely <= self.high, self

    @classmethod
    def exact(cls, value: float) -> Range:
        return cls(value, value, value)

    @classmethod
    def of(cls, factor: Factor) -> Range:
        """A factor with its source's range; a bound that the source leaves out is the value."""
        assert factor.value is not None, factor
        low, high = (factor.value if bound is None else bound for bound in (factor.low, factor.high))
        return cls(low, factor.value, high)

    @classmethod
    def around(cls, likely: float, values: Iterable[float]) -> Range:
        """`likely` with the spread of `values` round it."""
        seen = [likely, *values]
        return cls(min(seen), likely, max(seen))

    def times(self, other: Range | float) -> Range:
        """The product of two quantities that are not negative: low times low, high times high."""
        by = other if isinstance(other, Range) else Range.exact(other)
        return Range(self.low * by.low, self.likely * by.likely, self.high * by.high)

    def plus(self, other: Range) -> Range:
        return Range(self.low + other.low, self.likely + other.likely, self.high + other.high)

    def dividing(self, dividend: float) -> Range:
        """`dividend` divided by this: the highest rate gives the lowest time."""
        return Range(dividend / self.high, dividend / self.likely, dividend / self.low)


@dataclass
class Basis:
    """What a plan rests on: the values with their sources, and what the reader must know about them."""

    assumptions: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)  # a short one for each row of the screen

    def assume(self, key: str, value: Any, unit: str, source: str) -> None:
        self.assumptions.append({"key": key, "value": value, "unit": unit, "source": source})

    def take(self, factor: Factor) -> None:
        """A figure from elsewhere, with all that belongs to it and its hash."""
        self.assumptions.append(factor.as_dict())


def product(one: Range | None, other: Range | float | None) -> Range | None:
    """The product, or None where a factor is not known."""
    return None if one is None or other is None else one.times(other)


def positive(name: str, value: float | None, most: float = math.inf, zero: bool = False) -> float | None:
    """`value` when it is None or a finite number above 0 (or 0 where allowed) and up to `most`; else ValueError."""
    if value is None or (math.isfinite(value) and (value > 0 or (zero and value == 0)) and value <= most):
        return value
    least = "of at least 0" if zero else "above 0"
    limit = "" if math.isinf(most) else f" and at most {most:g}"
    raise ValueError(f"{name} must be a finite number {least}{limit}, not {value:g}")
