"""Rated power, peak FLOP/s and embodied carbon of accelerators; an unknown device is never taken for another."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from energy.factors.model import Factor
from energy.factors.tables import number, read_table

_VENDOR_WORDS = re.compile(r"\b(nvidia|amd|tesla|geforce|instinct|google|graphics)\b", re.IGNORECASE)
SERVER = "server without GPUs (8-GPU class)"
NO_EMBODIED = "no figure is known, which does not mean zero"


@dataclass(frozen=True)
class Accelerator:
    """A device's rated figures: dense BF16 FLOP/s, GB, TB/s, W."""

    name: str
    peak_flops: float
    memory_gb: float | None
    memory_bandwidth_tb_s: float | None
    tdp_w: float | None
    source: str


@dataclass(frozen=True)
class Embodied:
    """Carbon of making one piece of hardware (kg CO2eq: central, with low and high) and its service life in years."""

    factor: Factor
    lifetime_years: tuple[float, float] | None
    convention: str


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", _VENDOR_WORDS.sub("", name).lower())


@lru_cache(maxsize=1)
def _catalogue() -> dict[str, Accelerator]:
    found: dict[str, Accelerator] = {}
    for row in read_table("accelerators"):
        device = Accelerator(
            name=row["name"],
            peak_flops=float(row["peak_flops"]),
            memory_gb=number(row["memory_gb"]),
            memory_bandwidth_tb_s=number(row["memory_bandwidth_tb_s"]),
            tdp_w=number(row["tdp_w"]),
            source=row["source"],
        )
        for alias in [row["name"], *filter(None, row["aliases"].split("|"))]:
            found[_key(alias)] = device
    return found


def accelerators() -> list[Accelerator]:
    """All known accelerators in the order of the table."""
    return list(dict.fromkeys(_catalogue().values()))


def match_accelerator(nvml_name: str) -> Accelerator | None:
    """The accelerator that a driver calls `nvml_name` ("NVIDIA H100 80GB HBM3"), or None if unknown."""
    return _catalogue().get(_key(nvml_name))


def common_accelerator(nvml_names: Iterable[str]) -> Accelerator | None:
    """The accelerator that all of these devices are; None for no device, for several kinds, and for an unknown one."""
    kinds = {match_accelerator(name) for name in nvml_names}
    return kinds.pop() if len(kinds) == 1 else None


def accelerator(name: str) -> Accelerator:
    """The accelerator called `name`; ValueError with near names when it is not known."""
    known = match_accelerator(name)
    if known is not None:
        return known
    names = [device.name for device in accelerators()]
    by_key = {_key(each): each for each in names} | {key: device.name for key, device in _catalogue().items()}
    near = list(dict.fromkeys(by_key[key] for key in difflib.get_close_matches(_key(name), by_key, n=4, cutoff=0.5)))
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
    raise ValueError(f"unknown accelerator {name!r}; {hint}")


def rated_power(name: str) -> Factor:
    """Rated power of one device in W (None where it is not known); ValueError for an unknown device."""
    device = accelerator(name)
    return Factor("device_rated_power_w", device.tdp_w, "W", device.source, geography=device.name)


def peak_flops(name: str) -> Factor:
    """Dense BF16 (or FP16) FLOP/s of one device; ValueError for an unknown device."""
    device = accelerator(name)
    return Factor("peak_flops", device.peak_flops, "FLOP/s", device.source, geography=device.name)


def embodied(name: str) -> Embodied:
    """Embodied carbon of one device, or of `SERVER`; its factor is None where no figure is known.

    ValueError for a device that is not in the tables at all.
    """
    item = name if name == SERVER else accelerator(name).name
    for row in read_table("embodied"):
        if not any(item.startswith(part.strip()) for part in row["item"].split(";")):
            continue
        low, central, high = (number(row[f"kgco2e_{part}"]) for part in ("low", "central", "high"))
        years = [float(year) for year in row["lifetime_years"].split("-")] if row["lifetime_years"] else []
        factor = Factor("embodied_kgco2eq", central, "kg CO2eq", row["source"], geography=item, low=low, high=high)
        return Embodied(factor, (years[0], years[-1]) if years else None, row["convention"])
    return Embodied(Factor("embodied_kgco2eq", None, "kg CO2eq", NO_EMBODIED, geography=item), None, "")
