"""Sensors: one source of joules or watts for one device each. `discover` finds those of this node."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple, Protocol

POWERCAP = Path("/sys/class/powercap")


class Reading(NamedTuple):
    """What a sensor said once. With `error` the device is missing for this reading.

    energy_mj: a running counter in mJ (whole: counters count in mJ or mJ, and sums must be exact), or None.
    power_w: power in W, or None.
    counter_unix_s, power_unix_s: when the driver last updated each (unix s), or None where it does not say.
    covers_past: `power_w` is the mean since the previous reading, not the power from here on.
    pending: the sensor is not ready yet, which is no fault.
    glimpses_w: (unix s, W) of what was seen of the power since the reading before.
    before: where the device is lost, or its counter has begun anew: what was seen last before that.
    begun_anew: the counter has begun anew since the reading before, even if it is not below that one.
    """

    energy_mj: int | None = None
    power_w: float | None = None
    counter_unix_s: float | None = None
    power_unix_s: float | None = None
    covers_past: bool = False
    pending: bool = False
    error: str | None = None
    glimpses_w: tuple[tuple[float, float], ...] = ()
    before: Reading | None = None
    begun_anew: bool = False


class Sensor(Protocol):
    """A device's meter. `read` may raise, be slow or hang: the meter then books the device as missing."""

    def describe(self) -> dict[str, Any]:
        """uuid, name, node, kind, method and boundary.

        kind: gpu | cpu | dram | baseline | node. method: counter | integrated | modelled | assumed.
        boundary: gpu | node. Of kind `node`, the reading is of the whole node and contains all others. Further keys:
        instances ({MIG instance: share}, of a GPU that is metered for these alone) and share (their sum, at most 1),
        range_mj (at which a counter wraps).
        """
        ...

    def read(self) -> Reading: ...

    # A sensor may also have `glance()`, which looks without the work of a reading: what it sees comes with the next
    # reading. False: something is odd, and a reading should come at once.
    #
    # A sensor that is looked up in the background may have `news()`: (its description, warnings) once it is ready,
    # else None. One that works on a thread of its own or asks other programs has `own_cpu_s()`: CPU s of the thread
    # and of the programs so far.


def device_key(about: dict[str, Any]) -> str:
    """What tells a device from others: its UUID, and the MIG instances of it that a meter stands for."""
    return " ".join([about["uuid"], *sorted(about.get("instances") or {})])


def discover(
    node: str,
    *,
    gpus: Collection[str] | str | None = "all",
    host: bool = True,
    powercap: Path = POWERCAP,
) -> tuple[list[Sensor], list[str]]:
    """The sensors of this node, and warnings about what cannot be measured and what to do about it.

    gpus: "all" of the node, "visible" (those that CUDA_VISIBLE_DEVICES names), or UUIDs, also abbreviated.
    host: also CPU packages and memory: RAPL counters, and where there are none codecarbon's models.
    Never raises: a source that fails is a warning.
    """
    from energy.sensors import host as host_models
    from energy.sensors import nvml, rapl

    sensors: list[Sensor] = []
    warnings: list[str] = []

    def add(source: str, found: tuple[list[Sensor], list[str]]) -> None:
        sensors.extend(found[0])
        warnings.extend(f"{source}: {text}" for text in found[1])

    try:
        add("NVML", nvml.find(node, gpus))
    except Exception as error:
        warnings.append(f"NVML: GPUs cannot be measured ({error!r})")
    if not host:
        return sensors, warnings
    try:
        add("RAPL", rapl.find(node, powercap))
    except Exception as error:
        warnings.append(f"RAPL: CPUs cannot be measured ({error!r})")
    missing = {"cpu", "dram"} - {sensor.describe()["kind"] for sensor in sensors}
    if missing:
        try:
            add("host model", host_models.find(node, missing))
        except Exception as error:
            warnings.append(f"host model: CPU and memory are not accounted ({error!r})")
    return sensors, warnings
