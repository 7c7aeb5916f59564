"""Grid intensity by place: country, state, province, bidding zone, cloud region, a constant, or a preset.

    intensity("FR"), intensity("US-CA"), intensity("us-west-2"), intensity("385 g/kWh"), intensity("llama_paper")

A place is never guessed: one that is unknown or could be two is an error that names what is near. The tables come from
`energy.carbon.grid_data`; every factor says its year, basis and source. States and provinces are on the direct basis
and countries on that of the life cycle, so `energy.factors.mixed_bases` warns when they are put side by side.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from dataclasses import dataclass, replace
from functools import lru_cache

from energy.carbon.grid_data import (
    KEY,
    UNIT,
    canadian_provinces,
    chinese_provinces,
    countries,
    google_regions,
    nordic_zones,
    us_states,
)
from energy.factors import Factor, presets, read_table
from energy.units import INTENSITIES, intensity_unit

DECLARED = "declared as a constant"
_CONSTANT = re.compile(r"([-+]?\d[\d_]*(?:\.\d+)?(?:e[-+]?\d+)?)\s*(\D.*)", re.IGNORECASE)


@dataclass(frozen=True)
class Region:
    """A cloud region and the grid zone in which it lies."""

    provider: str
    code: str
    place: str
    zone: str
    source: str
    checked: str  # what its zone was checked against


def _plain(name: str) -> str:
    """A name without case, accents and punctuation, so that "Québec" and "quebec" are one."""
    bare = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return " ".join(re.sub(r"[^a-z0-9]+", " ", bare).split())


@lru_cache(maxsize=1)
def zones() -> dict[str, Factor]:
    """Every grid zone that is known, by key: FRA, US-CA, CA-QC, CN-BJ, SE3."""
    found: dict[str, Factor] = {}
    for table in (countries()[0], us_states()[0], canadian_provinces()[0], chinese_provinces()[0], nordic_zones()[0]):
        found |= table
    return found


@lru_cache(maxsize=1)
def regions() -> dict[str, Region]:
    """Cloud regions by "provider:code"."""
    return {f"{row['provider']}:{row['code']}": Region(**row) for row in read_table("cloud_regions")}


@lru_cache(maxsize=1)
def _index() -> dict[str, list[str]]:
    """{plain name: the zones it may mean}, over names and codes."""
    found: dict[str, list[str]] = {}

    def enter(name: str, zone: str) -> None:
        keys = found.setdefault(_plain(name), [])
        if name and zone not in keys:
            keys.append(zone)

    for zone in zones():
        enter(zone, zone)
    for names in (countries()[1], us_states()[1], canadian_provinces()[1], chinese_provinces()[1], nordic_zones()[1]):
        for zone, name in names.items():
            enter(name, zone)
    for zone, others in chinese_provinces()[2].items():
        for name in others:
            enter(name, zone)
    for row in read_table("countries"):
        for name in [row["iso2"], *row["aliases"].split("|")]:
            if name:
                enter(name, row["iso3"])
    return found


def region_of(place: str) -> Region | None:
    """The cloud region called `place` ("us-west-2", "azure:westus2"); None if it is none. Errors when two share it."""
    wanted = place.strip().lower()
    named = [region for key, region in regions().items() if wanted in (key, region.code)]
    if len(named) > 1:
        raise ValueError(
            f"{place!r} is a region of {' and of '.join(r.provider for r in named)}; write provider:region"
        )
    return named[0] if named else None


def constant(text: str) -> Factor | None:
    """A constant with its unit ("385 g/kWh", "0.385 kg/kWh", "770 lb/MWh") as g/kWh; None if it is none."""
    match = _CONSTANT.fullmatch(text.strip())
    unit = intensity_unit(match[2], alone=True) if match else None
    if match is None or unit is None:
        return None
    value = float(match[1].replace("_", "")) * INTENSITIES[unit]
    if value < 0:
        raise ValueError(f"a grid intensity cannot be negative: {text!r}")
    return Factor(KEY, value, UNIT, DECLARED, note=text.strip())


def near(place: str, most: int = 5) -> list[str]:
    """Names and codes that look like `place`, the likeliest first."""
    known = {_plain(name): name for name in [*presets(), *(region.code for region in regions().values())]}
    known |= {name: _shown(keys[0], name) for name, keys in _index().items()}
    wanted = _plain(place)
    close = difflib.get_close_matches(wanted, known, n=most, cutoff=0.6)
    close += [name for name in known if len(wanted) > 2 and wanted in name and name not in close]
    return list(dict.fromkeys(known[name] for name in close))[:most]


def _shown(zone: str, name: str) -> str:
    return f"{zone if len(name) < 4 else name.title()} ({zone})" if _plain(zone) != name else _titled(zone)


def _titled(zone: str) -> str:
    return f"{zones()[zone].note.split(';')[0].split(':')[0]} ({zone})"


def zone_key(place: str) -> str:
    """The grid zone of a country, state, province, bidding zone or cloud region.

    ValueError with near names when it is not known, and with both when it could be two.
    """
    if not place.strip():
        raise ValueError("no place was given, and a place is never guessed: name a country, state or cloud region")
    region = region_of(place)
    if region is not None:
        return region.zone
    found = _index().get(_plain(place), [])
    if len(found) > 1:
        names = " or ".join(f"{zone} ({zones()[zone].note.split(';')[0]})" for zone in found)
        raise ValueError(f"{place!r} could be {names}; write the code")
    if found:
        return found[0]
    close = near(place)
    if re.fullmatch(r"[-+]?[\d.]+", place.strip()):
        raise ValueError(f"intensity {place!r} has no unit; write it as {place.strip()!r} with g/kWh, kg/kWh or lb/MWh")
    hint = f"did you mean {', '.join(close)}?" if close else "`hoofprint factors grid` lists those that are known"
    raise ValueError(f"unknown place {place!r}; {hint}")


def intensity(place: str) -> Factor:
    """Grid intensity in g per kWh of a place, a constant with its unit, or a preset.

    The value is None where the tables know the place and no figure for it. ValueError for an unknown or doubtful place.
    """
    named = presets().get(place.strip())
    if named:
        return named[KEY]
    declared = constant(place)
    if declared is not None:
        return declared
    factor = zones()[zone_key(place)]
    region = region_of(place)
    if region is None:
        return factor
    note = f"{region.provider} {region.code}: {region.place} ({region.source}); {factor.note}"
    return replace(factor, note=note)


def country_of(zone: str) -> str | None:
    """The country that a state, province or bidding zone is a part of; None for a country."""
    if zone in countries()[0]:
        return None
    return {"US": "USA", "CA": "CAN", "CN": "CHN", "SE": "SWE", "NO": "NOR"}.get(zone[:2])


def alternatives(place: str) -> list[Factor]:
    """Other figures for the same place, mostly on another basis: to be shown beside it, never added to it."""
    found: list[Factor] = []
    region = region_of(place)
    if region is not None and region.provider == "gcp" and region.code in google_regions():
        found.append(google_regions()[region.code])
    zone = None if place.strip() in presets() or constant(place) else zone_key(place)
    if zone == "USA":
        found.append(zones()["US-eGRID"])
    country = country_of(zone) if zone else None
    if country:
        found.append(zones()[country])
    return found
