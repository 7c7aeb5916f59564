"""Sensors: one source of joules or watts for one device each. `discover` finds those of this node."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Reading:
    """What a sensor said once. `energy_j` is a running counter; with `error` the device is missing."""

    energy_j: float | None = None
    power_w: float | None = None
    error: str | None = None


class Sensor(Protocol):
    """A device's meter. `read` may raise: the meter then books the device as missing for that reading."""

    def describe(self) -> dict[str, str]:
        """uuid, name, node, kind (gpu|cpu|dram), method (counter|integrated|modelled), boundary."""
        ...

    def read(self) -> Reading: ...


POWERCAP = Path("/sys/class/powercap")


def discover(
    node: str, *, gpus: Collection[str] | None = None, powercap: Path = POWERCAP, host_model: bool = True
) -> tuple[list[Sensor], list[str]]:
    """The sensors of this node and warnings about what cannot be measured.

    `gpus` limits the GPUs to these UUIDs. CPU packages and memory without RAPL counters are modelled, unless
    `host_model` is false. Never raises: a source that fails is a warning.
    """
    from energy.sensors import host, nvml, rapl

    sensors: list[Sensor] = []
    warnings: list[str] = []

    def add(source: str, found: tuple[list[Sensor], list[str]]) -> None:
        sensors.extend(found[0])
        warnings.extend(f"{source}: {text}" for text in found[1])

    try:
        add("NVML", nvml.find(node, gpus))
    except Exception as error:
        warnings.append(f"NVML: GPUs cannot be measured ({error!r})")
    try:
        add("RAPL", rapl.find(node, powercap))
    except Exception as error:
        warnings.append(f"RAPL: CPUs cannot be measured ({error!r})")
    missing = {"cpu", "dram"} - {sensor.describe()["kind"] for sensor in sensors}
    if host_model and missing:
        try:
            add("host model", host.find(node, missing))
        except Exception as error:
            warnings.append(f"host model: CPU and memory are not accounted ({error!r})")
    return sensors, warnings
