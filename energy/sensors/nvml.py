"""NVIDIA GPUs through NVML: each of the node once, by UUID, whatever CUDA_VISIBLE_DEVICES says."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from energy.sensors import Reading, Sensor


class NvmlSensor:
    """One GPU: its energy counter (Volta and later) or else its power, to be integrated by the account."""

    def __init__(self, handle: Any, uuid: str, name: str, node: str, has_counter: bool) -> None:
        self._handle = handle
        self._has_counter = has_counter
        self._about = {
            "uuid": uuid,
            "name": name,
            "node": node,
            "kind": "gpu",
            "method": "counter" if has_counter else "integrated",
            "boundary": "gpu",
        }

    def describe(self) -> dict[str, str]:
        return dict(self._about)

    def read(self) -> Reading:
        """Counter in J (since the driver was loaded) and power in W; an error makes the device missing."""
        import pynvml

        try:
            energy_j = None
            if self._has_counter:
                energy_j = pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1000.0
        except pynvml.NVMLError as error:
            return Reading(error=str(error))
        try:
            power_w = pynvml.nvmlDeviceGetPowerUsage(self._handle) / 1000.0
        except pynvml.NVMLError as error:
            return Reading(energy_j=energy_j, error=None if energy_j is not None else str(error))
        return Reading(energy_j=energy_j, power_w=power_w)


def find(node: str, gpus: Collection[str] | None = None) -> tuple[list[Sensor], list[str]]:
    """The GPUs of this node; without driver or library the list is empty and a warning says so."""
    try:
        import pynvml
    except ImportError:
        return [], ["no GPU is measured: the package nvidia-ml-py is not installed"]
    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError as error:
        return [], [f"no GPU is measured: {error} (on a node with NVIDIA GPUs, check that nvidia-smi works)"]
    sensors: list[Sensor] = []
    warnings: list[str] = []
    for index in range(count):
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            uuid, name = pynvml.nvmlDeviceGetUUID(handle), pynvml.nvmlDeviceGetName(handle)
        except pynvml.NVMLError as error:
            warnings.append(f"GPU {index} is not measured: {error}")
            continue
        if gpus is not None and uuid not in gpus:
            continue
        has_counter = _has_counter(handle, pynvml)
        if not has_counter:
            warnings.append(f"{name} {uuid} has no energy counter: its power is integrated")
        sensors.append(NvmlSensor(handle, uuid, name, node, has_counter))
    if gpus is not None:
        found = {sensor.describe()["uuid"] for sensor in sensors}
        warnings.extend(f"{uuid} is not on {node}" for uuid in sorted(set(gpus) - found))
    return sensors, warnings


def power_limit_w(uuid: str) -> float | None:
    """The enforced power limit in W of a GPU, or None where NVML does not tell."""
    import pynvml

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        return pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000.0
    except pynvml.NVMLError:
        return None


def _has_counter(handle: Any, pynvml: Any) -> bool:
    """Whether the GPU counts its energy; other errors are left to the readings to name."""
    try:
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound):
        return False
    except pynvml.NVMLError:
        return True
    return True
