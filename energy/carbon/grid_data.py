"""Grid intensities from the data files that codecarbon ships, read as data: codecarbon itself is not imported.

What is in them, and how each is labelled here:

- countries (`global_energy_mix.json`): Our World in Data's grams per kWh generated, by country, each with its own year.
- US states (`usa_emissions.json`): EPA eGRID, annual total output emission rate, in lb/MWh (x 0.45359237 = g/kWh).
- Canadian provinces (`canada_energy_mix.json`): shares of generation, times the package's own combustion factors for
  coal, petroleum and natural gas. All else counts zero, biomass too, as in codecarbon's own code: the direct basis.
- Chinese provinces (`china_provincial_emissions.json`): the ministry's official factors, CO2 only.
- Swedish and Norwegian bidding zones (`nordic_emissions.json`): generation mix times factors of the sources. Its entry
  for Finland is left out: the file says neither where it is from nor how it was made, and the country table has one.
- Google's regions (`impact.csv`): the provider's own figures; the file states no year.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import math
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from energy.factors import Basis, Factor
from energy.units import G_PER_KWH_FROM_LB_PER_MWH

KEY = "intensity_g_per_kwh"
UNIT = "g CO2eq/kWh"
_MIX = Path("private_infra")
_FOSSIL = {"coal": "coal", "petroleum": "petroleum", "naturalGas": "natural_gas"}


def data_folder() -> Path:
    """Where the installed codecarbon keeps its data; FileNotFoundError when it is not installed."""
    spec = importlib.util.find_spec("codecarbon")  # finds the package and does not run it
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("codecarbon is not installed: its data files hold the grid intensities")
    return Path(spec.submodule_search_locations[0]) / "data"


def _json(path: Path) -> Any:
    return json.loads((data_folder() / path).read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def _package() -> str:
    return f"codecarbon {version('codecarbon')}"


def _factor(
    value: float | None, told: str, path: Path, basis: str, geography: str, note: str,
    year: int | None = None, unit: str = UNIT,
) -> Factor:  # fmt: skip
    """An intensity as the package ships it; `told` is whose figure it is."""
    source = f"{told}, as shipped in {_package()}, {path.as_posix()}"
    return Factor(KEY, value, unit, source, year, geography, Basis.parse(basis), note=note)


def countries() -> tuple[dict[str, Factor], dict[str, str]]:
    """({ISO 3166 alpha-3 code: factor}, {code: name})."""
    path = _MIX / "global_energy_mix.json"
    found, names = {}, {}
    for code, row in _json(path).items():
        value = row["carbon_intensity"] or None  # the one zero in the file lies below the life cycle of any source
        note = row["country_name"] + ("" if value else ": the file prints 0, which no source of electricity reaches")
        basis, year = "average lifecycle generation location", int(row["year"])
        found[code] = _factor(value, "Our World in Data", path, basis, code, note, year)
        names[code] = row["country_name"]
    return found, names


def us_states() -> tuple[dict[str, Factor], dict[str, str]]:
    """({"US-CA": factor}, {zone: name}); "US-eGRID" is the country in the same table."""
    path = _MIX / "2023" / "usa_emissions.json"
    document = _json(path)
    told = document.pop("_source")
    unit = document.pop("_unit")["emissions"]
    if unit != "lbs/MWh":
        raise ValueError(f"{path}: expected lbs/MWh, found {unit!r}")
    found, names = {}, {}
    for name, row in document.items():
        zone = "US-eGRID" if name == "usa" else f"US-{row['regionCode']}"
        names[zone] = "United States (eGRID)" if name == "usa" else name.title().replace(" Of ", " of ")
        value = row["emissions"] * G_PER_KWH_FROM_LB_PER_MWH
        note = f"{names[zone]}; {row['emissions']:g} lb/MWh x {G_PER_KWH_FROM_LB_PER_MWH}"
        basis, year = "average direct generation location", int(told["year"])
        found[zone] = _factor(value, told["name"], path, basis, zone, note, year)
    return found, names


_CANADA = {
    "alberta": "AB",
    "british columbia": "BC",
    "manitoba": "MB",
    "new brunswick": "NB",
    "newfoundland and labrador": "NL",
    "northwest territories": "NT",
    "nova scotia": "NS",
    "nunavut": "NU",
    "ontario": "ON",
    "prince edward island": "PE",
    "quebec": "QC",
    "saskatchewan": "SK",
    "yukon": "YT",
}


def canadian_provinces() -> tuple[dict[str, Factor], dict[str, str]]:
    """({"CA-QC": factor}, {zone: name})."""
    path, sources = _MIX / "2023" / "canada_energy_mix.json", _MIX / "carbon_intensity_per_source.json"
    per_source = _json(sources)
    found, names = {}, {}
    for name, mix in _json(path).items():
        zone = f"CA-{_CANADA[name]}"
        names[zone] = name.title().replace(" And ", " and ")
        value = math.fsum(mix[part] * per_source[factor] for part, factor in _FOSSIL.items()) / mix["total"]
        told, basis = f"generation mix times the factors of {sources.name}", "average direct generation location"
        note = (
            f"{names[zone]}; only coal, petroleum and natural gas count, as in codecarbon's core/emissions.py: water, "
            "nuclear, wind, sun and biomass are 0; year: that of the folder, the file states none"
        )
        found[zone] = _factor(value, told, path, basis, zone, note, 2023)
    return found, names


def chinese_provinces() -> tuple[dict[str, Factor], dict[str, str], dict[str, list[str]]]:
    """({"CN-BJ": factor}, {zone: name}, {zone: other names}); grams of CO2, not of CO2eq."""
    path = _MIX / "2023" / "china_provincial_emissions.json"
    document = _json(path)
    announced = document["metadata"]["announcement"]
    found, names, others = {}, {}, {}
    for zone, row in document["data"].items():
        names[zone], others[zone] = row["description"], row["names"]
        told, basis = f"MEE and NBS of China, {announced}", "average direct consumption location"
        note = f"{row['description']}; CO2 only; transfers between provinces are accounted for"
        found[zone] = _factor(row["emission_factor"], told, path, basis, zone, note, int(row["year"]), "g CO2/kWh")
    return found, names, others


def nordic_zones() -> tuple[dict[str, Factor], dict[str, str]]:
    """({"SE3": factor}, {zone: description}) of Sweden's and Norway's bidding zones."""
    path = _MIX / "nordic_emissions.json"
    found, names = {}, {}
    for zone, row in _json(path)["data"].items():
        if zone == "FI":
            continue
        names[zone] = row["description"]
        told, basis = "ENTSO-E generation by type times factors of the sources", "average lifecycle generation location"
        note = f"{row['description']}; covers {row['coverage']}; its fossil factors are those of combustion"
        found[zone] = _factor(row["emission_factor"], told, path, basis, zone, note, int(row["year"]))
    return found, names


@lru_cache(maxsize=1)
def google_regions() -> dict[str, Factor]:
    """{region: Google's own figure}, to stand beside the grid's."""
    path = Path("cloud") / "impact.csv"
    with (data_folder() / path).open(encoding="utf-8-sig", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["provider"] == "gcp" and row["impact"]]
    told = "Google Cloud, carbon data across regions"
    return {
        row["region"]: _factor(
            float(row["impact"]), told, path, "average location", f"gcp:{row['region']}",
            f"{row['city']}, {row['country_name']}; the file states no year",
        )
        for row in rows
    }  # fmt: skip
