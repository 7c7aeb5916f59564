"""Finds factors by what a person types: "grid FR", "us-west-2", "accelerator A100", "pue google"."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from energy.carbon import grid
from energy.factors import (
    SERVER,
    Factor,
    absent,
    accelerator,
    accelerators,
    embodied,
    mixed_bases,
    peak_flops,
    preset_factors,
    presets,
    rated_power,
)
from energy.factors.places import KINDS as TABLES
from energy.factors.places import by_place, unknown


@dataclass(frozen=True)
class Found:
    """Factors that answer a query, others for the same thing on another basis, and what must be said of them.

    absent: what the table does not hold, and why
    """

    factors: list[Factor]
    alternatives: list[Factor] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)


def _beside(place: str) -> list[Factor]:
    """The place's residual mix and marginal intensity, where they are known."""
    found = []
    for kind in ("residual", "marginal"):
        with suppress(ValueError):  # a constant, a preset, or a place that the table does not hold
            found.append(by_place(kind, place))
    return [factor for factor in found if factor.value is not None]


def _grid(name: str) -> Found:
    if not name:
        return Found(list(grid.zones().values()))
    factor = grid.intensity(name)
    others = [*grid.alternatives(name), *_beside(name)]
    warnings = [f"do not add or compare as they are: {each}" for each in mixed_bases([factor, *others])]
    return Found([factor], others, warnings)


def _devices(name: str) -> list[str]:
    wanted = "".join(filter(str.isalnum, name)).lower()
    close = [d.name for d in accelerators() if wanted in "".join(filter(str.isalnum, d.name)).lower()]
    return close or [accelerator(name).name]


def _accelerator(name: str) -> Found:
    return Found([each for device in _devices(name) for each in (rated_power(device), peak_flops(device))])


def _embodied(name: str) -> Found:
    known = [*_devices("")] + [SERVER] if not name else [SERVER] if name.lower() == "server" else _devices(name)
    return Found([embodied(each).factor for each in known])


def _table(kind: str, name: str) -> Found:
    """The rows whose names hold every word of `name`; in a table of places, the place's."""
    rows, missing = TABLES[kind].rows(), absent(TABLES[kind].file)
    if name and TABLES[kind].places:
        return Found([by_place(kind, name)])
    known = [factor for key, factor in rows.items() if all(word in key.lower() for word in name.lower().split())]
    if not known:
        raise unknown(kind, name)
    return Found(known, absent=[] if name else missing)


def _presets(name: str) -> Found:
    return Found([factor for key in ([name] if name else presets()) for factor in preset_factors(key).values()])


KINDS: dict[str, Callable[[str], Found]] = {
    "grid": _grid,
    "accelerator": _accelerator,
    "embodied": _embodied,
    **{kind: partial(_table, kind) for kind in TABLES},
    "preset": _presets,
}


def _singular(word: str) -> tuple[str, str, str]:
    return word, word.removesuffix("s"), word.removesuffix("es")


def look_up(query: str) -> Found:
    """The factors that a query names: a kind ("pue"), a kind and a name ("grid FR"), or a name alone ("us-west-2").

    ValueError with near names when nothing is called so.
    """
    first, *others = query.split() or [""]
    table = next((each for each in _singular(first.lower()) if each in KINDS), None)
    if table:
        return KINDS[table](" ".join(others))
    if query.strip() in presets():
        return _presets(query.strip())
    failures = []
    for kind in (_grid, _accelerator):
        try:
            return kind(query.strip())
        except ValueError as error:
            failures.append(str(error))
    doubtful = next((failure for failure in failures if "could be" in failure or "no unit" in failure), None)
    close = [failure for failure in failures if "did you mean" in failure]
    raise ValueError(doubtful or "; ".join(close) or f"no factor is called {query!r}; kinds: {', '.join(KINDS)}")
