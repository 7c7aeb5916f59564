"""A factor: one number from elsewhere with its unit, year, place, basis and source, and a hash of all of them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

# What a figure counts, axis by axis. None on an axis: its source does not say.
AXES: dict[str, tuple[str, str]] = {
    "rate": ("average", "marginal"),  # of all generation, or of what answers one more kWh
    "scope": ("direct", "lifecycle"),  # combustion only, or fuel supply and building the plants as well
    "side": ("generation", "consumption"),  # produced in the place, or used there with its imports
    "market": ("location", "market"),  # of the grid, or of contracts (GHG Protocol, scope 2)
}
_AXIS_OF = {word: axis for axis, words in AXES.items() for word in words}


@dataclass(frozen=True)
class Basis:
    """What an intensity counts; an axis is None where the source does not say."""

    rate: str | None = None
    scope: str | None = None
    side: str | None = None
    market: str | None = None

    @classmethod
    def parse(cls, text: str) -> Basis:
        """From words in any order ("average direct generation location"); ValueError for an unknown or doubled one."""
        found: dict[str, str] = {}
        for word in text.replace(",", " ").split():
            axis = _AXIS_OF.get(word)
            if axis is None:
                raise ValueError(f"unknown basis {word!r}; known: {', '.join(_AXIS_OF)}")
            if found.setdefault(axis, word) != word:
                raise ValueError(f"basis {text!r} says both {found[axis]} and {word}")
        return cls(**found)

    def __str__(self) -> str:
        return ", ".join(word for axis in AXES if (word := getattr(self, axis))) or "basis not stated"


@dataclass(frozen=True)
class Factor:
    """One figure from elsewhere.

    key: what it is (intensity_g_per_kwh, pue, wue_l_per_kwh, device_rated_power_w, peak_flops, embodied_kgco2eq ...)
    value: in `unit`; None where it is not known, which is never the same as zero
    year: of the data, not of its publication; geography: a zone key or a name
    low, high: the range that the source gives, if it gives one
    """

    key: str
    value: float | None
    unit: str
    source: str
    year: int | None = None
    geography: str | None = None
    basis: Basis = field(default_factory=Basis)
    low: float | None = None
    high: float | None = None
    note: str = ""

    def __post_init__(self) -> None:
        for name in ("value", "low", "high"):
            number = getattr(self, name)
            if number is not None and (isinstance(number, bool) or not math.isfinite(number) or number < 0):
                raise ValueError(f"{self.key}: {name} must be a finite number of at least 0, not {number!r}")
        bounds = [number for number in (self.low, self.value, self.high) if number is not None]
        if bounds != sorted(bounds):
            raise ValueError(f"{self.key}: its range {self.low} to {self.high} does not hold its value {self.value}")
        if not self.source:
            raise ValueError(f"{self.key}: a factor needs a source")

    @property
    def range_text(self) -> str:
        """'1.06 to 1.46', the range that its source gives; '' where it gives none."""
        if self.low is None and self.high is None:
            return ""
        return " to ".join("not stated" if bound is None else f"{bound:g}" for bound in (self.low, self.high))

    def _content(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def sha256(self) -> str:
        """SHA-256 over all fields as sorted JSON: the same on every machine."""
        text = json.dumps(self._content(), sort_keys=True, ensure_ascii=False, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """For JSON and records, the hash included; `from_dict` gives the factor back."""
        return self._content() | {"sha256": self.sha256}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Factor:
        """A stored factor; ValueError when its hash does not fit its content, which somebody has then changed."""
        known = {each.name for each in fields(cls)}
        content = {key: value for key, value in stored.items() if key in known}
        factor = cls(**content | {"basis": Basis(**(stored.get("basis") or {}))})
        told = stored.get("sha256")
        if told is not None and told != factor.sha256:
            raise ValueError(f"factor {factor.key} ({factor.geography}): its hash does not fit its content")
        return factor

    def __str__(self) -> str:
        number = "not known" if self.value is None else f"{self.value:g} {self.unit}".removesuffix(" 1")
        number += f", {self.range_text}" if self.range_text else ""
        where = [str(part) for part in (self.geography, self.year) if part]
        basis = [str(self.basis)] if self.basis != Basis() else []
        return f"{number} ({'; '.join([', '.join(where)] * bool(where) + basis + [self.source])})"


def mixed_bases(factors: Sequence[Factor]) -> list[str]:
    """Warnings for factors that must not be added or compared as they are: one for each axis that differs.

    An axis that a source does not state is not held against it. CO2 beside CO2eq counts as a difference.
    """
    warnings = []
    for axis in AXES:
        groups: dict[str, list[str]] = {}
        for factor in factors:
            word = getattr(factor.basis, axis)
            if word:
                groups.setdefault(word, []).append(factor.geography or factor.source)
        if len(groups) > 1:
            parts = " with ".join(f"{word} ({', '.join(dict.fromkeys(names))})" for word, names in groups.items())
            warnings.append(f"mixed bases: {parts}; they do not count the same thing")
    grams = {factor.unit for factor in factors if factor.unit.startswith("g CO2")}
    if len(grams) > 1:
        warnings.append(f"mixed bases: {' with '.join(sorted(grams))}; one leaves the other gases out")
    return warnings
