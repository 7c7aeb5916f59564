"""Figures that belong to a place or have a name in the tables, for `hoofprint factors` and for specs.

    by_place("residual", "DE"), by_place("water", "us-west-2"), named("pue", "google fleet 2024")

A place is never guessed. Where only the country's figure is known, a state or a cloud region in it gets that, and the
note says so; where none is known, the error says why.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from energy.carbon.grid import country_of, region_of, zone_key
from energy.factors import (
    Factor,
    absent,
    marginal_intensity,
    pue,
    read_table,
    residual_mix,
    transmission_loss,
    water_intensity,
    wue,
)


@dataclass(frozen=True)
class Kind:
    """A table of figures: what it is called in the folder and in sentences, and whether its rows are places."""

    file: str
    what: str
    rows: Callable[[], dict[str, Factor]]
    places: bool = True
    whole_country: bool = True  # a state may take its country's figure


KINDS = {
    "pue": Kind("pue", "PUE", pue, places=False),
    "wue": Kind("wue", "WUE", wue, places=False),
    "residual": Kind("residual_mix", "residual mix", residual_mix, whole_country=False),
    "marginal": Kind("marginal_intensity", "marginal intensity", marginal_intensity, whole_country=False),
    "water": Kind("water_intensity", "water intensity of electricity", water_intensity),
    "loss": Kind("transmission_loss", "loss on the lines", transmission_loss),
}
_PART = "of the whole country"
# Keys of a spec's energy section that may be a name in a table instead of a number.
OF_SPEC = {
    "pue": "pue",
    "wue": "wue",
    "intensity_market": "residual",
    "transmission_loss": "loss",
    "water_intensity": "water",
}


def _same(name: str, rows: Mapping[str, Factor]) -> Factor | None:
    return next((factor for key, factor in rows.items() if key.lower() == name.strip().lower()), None)


def unknown(kind: str, name: str) -> ValueError:
    """The error for a name that a table does not hold: what is near, and what the table lacks and why."""
    table, rows = KINDS[kind], KINDS[kind].rows()
    close = [key for key in rows if all(word in key.lower() for word in name.lower().split())]
    if not close and len(name) > 3:  # two codes of countries are always near each other
        close = difflib.get_close_matches(name.lower(), rows, n=4, cutoff=0.5)
    hint = f"; did you mean {', '.join(close[:4])}?" if close and name.strip() else "."
    return ValueError(f"no {table.what} is known for {name!r}{hint} Not in the table: {'; '.join(absent(table.file))}")


def by_place(kind: str, place: str) -> Factor:
    """The figure of a table for a country, state, zone, cloud region, or a row's own name.

    Its value may be None where the table knows the place and no figure for it. ValueError, with the reason, for a place
    that is not in it.
    """
    table, rows = KINDS[kind], KINDS[kind].rows()
    own = _same(place, rows)
    if own is not None:
        return own
    region = region_of(place)
    if region is not None and kind == "marginal":
        for row in read_table(table.file):
            if f"{region.provider}:{region.code}" in row["regions"].split("|"):
                return rows[row["name"]]
    try:
        zone = zone_key(place)
    except ValueError as error:
        raise unknown(kind, place) if place.lower().startswith(("egrid", "watttime")) else error from None
    if zone in rows:
        return rows[zone]
    country = country_of(zone)
    # A bidding zone trades one national residual mix and one set of lines; a state's grid is not its country's.
    if country in rows and (table.whole_country or country in ("SWE", "NOR")):
        return replace(rows[country], note=f"{rows[country].note}; {_PART}, {zone} is a part of it")
    raise unknown(kind, place)


def named(key: str, name: str) -> Factor:
    """The figure that a spec's energy key names ("pue", "google fleet 2024"); ValueError if none, or none is known."""
    kind = OF_SPEC[key]
    factor = by_place(kind, name) if KINDS[kind].places else _same(name, KINDS[kind].rows())
    if factor is None:
        raise unknown(kind, name)
    if factor.value is None:
        reason = factor.note.partition("; ")[2].partition("; checked against")[0]
        raise ValueError(f"no {KINDS[kind].what} is known for {name!r}: {reason}")
    return factor


def source_in_spec(factor: Factor) -> str:
    """A factor of the tables as the source that a spec keeps beside its number: its name there, and its source."""
    name, *others = factor.note.split("; ")
    part = [text for text in others if text.startswith(_PART)]
    return f"{name}: {'; '.join([factor.source, *part])}"


def from_source(key: str, value: float, source: str) -> Factor | None:
    """The table's factor that a resolved spec holds as number and source; None where it says something else."""
    kind = KINDS[OF_SPEC[key]] if key in OF_SPEC else None
    for factor in kind.rows().values() if kind else ():
        own = source_in_spec(factor)
        if factor.value == value and source.startswith(own):
            return replace(factor, note=factor.note + source.removeprefix(own))
    return None
