"""Numbers from elsewhere, each with its unit and source; unknown is None, never zero and never a guess."""

from __future__ import annotations

import csv
import difflib
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

FOLDER = Path(__file__).parent
_VENDOR_WORDS = re.compile(r"\b(nvidia|amd|tesla|geforce|instinct|google|graphics)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Accelerator:
    """A device's rated figures: dense BF16 FLOP/s, GB, TB/s, W."""

    name: str
    peak_flops: float
    memory_gb: float | None
    memory_bandwidth_tb_s: float | None
    tdp_w: float | None
    source: str


def read_table(name: str) -> list[dict[str, str]]:
    """The rows of a factor table (file name without .csv) as text; an empty cell is an empty string."""
    with (FOLDER / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", _VENDOR_WORDS.sub("", name).lower())


def _number(text: str) -> float | None:
    return float(text) if text else None


@lru_cache(maxsize=1)
def _catalogue() -> dict[str, Accelerator]:
    found: dict[str, Accelerator] = {}
    for row in read_table("accelerators"):
        device = Accelerator(
            name=row["name"],
            peak_flops=float(row["peak_flops"]),
            memory_gb=_number(row["memory_gb"]),
            memory_bandwidth_tb_s=_number(row["memory_bandwidth_tb_s"]),
            tdp_w=_number(row["tdp_w"]),
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
