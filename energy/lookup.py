"""Finds factors by what a person types: "grid FR", "us-west-2", "accelerator A100", "pue google"."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field

from energy import grid
from energy.factors import (
    SERVER,
    Factor,
    accelerator,
    accelerators,
    embodied,
    mixed_bases,
    peak_flops,
    presets,
    rated_power,
)
from energy.factors import pue as pue_table
from energy.factors import wue as wue_table


@dataclass(frozen=True)
class Found:
    """Factors that answer a query, others for the same thing on another basis, and what must be said of them."""

    factors: list[Factor]
    alternatives: list[Factor] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def _grid(name: str) -> Found:
    if not name:
        return Found(list(grid.zones().values()))
    factor = grid.intensity(name)
    others = grid.alternatives(name)
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


def _table(table: dict[str, Factor], name: str, what: str) -> Found:
    known = [factor for key, factor in table.items() if all(word in key.lower() for word in name.lower().split())]
    if known:
        return Found(known)
    close = difflib.get_close_matches(name.lower(), table, n=4, cutoff=0.3) or list(table)
    raise ValueError(f"no {what} called {name!r}; did you mean {', '.join(close)}?")


def _presets(name: str) -> Found:
    if name and name not in presets():
        raise ValueError(f"unknown preset {name!r}; known: {', '.join(presets())}")
    return Found([factor for key in ([name] if name else presets()) for factor in presets()[key].values()])


KINDS: dict[str, Callable[[str], Found]] = {
    "grid": _grid,
    "accelerator": _accelerator,
    "embodied": _embodied,
    "pue": lambda name: _table(pue_table(), name, "PUE"),
    "wue": lambda name: _table(wue_table(), name, "WUE"),
    "preset": _presets,
}


def look_up(query: str) -> Found:
    """The factors that a query names: a kind ("pue"), a kind and a name ("grid FR"), or a name alone ("us-west-2").

    ValueError with near names when nothing is called so.
    """
    words = query.split()
    if words and words[0].lower().removesuffix("s") in KINDS:
        return KINDS[words[0].lower().removesuffix("s")](" ".join(words[1:]))
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
