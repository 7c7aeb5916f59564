"""NVIDIA GPUs through NVML: each of the node once, by UUID, with energy, power and their driver timestamps.

One `nvmlDeviceGetFieldValues` call reads the energy counter, the instantaneous and the average power together.
pynvml's own wrapper of that call builds its arrays anew each time, and its structures look up every attribute in
Python; here the array is made once for each GPU and read as bytes, which makes a reading three times cheaper. Where the
call or a field is not supported, the older single calls stand in.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Collection, Mapping
from ctypes import byref, c_int32
from functools import partial
from typing import Any, NamedTuple

from energy.sensors import Reading, Sensor
from energy.sensors.patience import Asked, within

ENERGY, AVERAGE, INSTANT = 83, 185, 186  # NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION, _POWER_AVERAGE, _POWER_INSTANT
FIELDS = (ENERGY, INSTANT, AVERAGE)
# nvmlFieldValue_t: field, scope, timestamp (µs since 1970), latency, type of value, return code, value
_VALUES = struct.Struct("=" + "IIqqiiQ" * len(FIELDS))
_ENERGY_US, _ENERGY_CODE, _ENERGY_MJ, _POWER_US, _POWER_CODE, _POWER_MW = 2, 5, 6, 9, 12, 13  # places therein
_UINT = 0xFFFFFFFF  # power is the lower half of the value (all that has an NVIDIA driver is little-endian)
REOPEN_AFTER_S = 5.0  # how often a GPU that is lost, or whose driver was reloaded, is looked for again
# How long a driver may take to be loaded and to find its GPUs, and a GPU to say at first whether it counts its energy.
LOOK_UP_S, FIRST_ANSWER_S = 60.0, 2.0


class NvmlSensor:
    """One GPU: its energy counter (Volta and later) or else its power, to be integrated."""

    def __init__(self, found: Found, node: str, first: Asked[bool], until_s: float) -> None:
        """first: whether it has a counter, asked already; one that has not answered at `until_s` (monotonic s) is taken
        to have one, and is missing until it answers."""
        import pynvml

        self._nvml = pynvml
        self._handle, instances = found.handle, found.instances
        self._failed_s: float | None = None
        self._newest_mj = 0
        self._glimpses: list[tuple[float, tuple[int, ...]]] = []  # unix s, what the call gave
        self._values = (pynvml.c_nvmlFieldValue_t * len(FIELDS))()
        for value, field in zip(self._values, FIELDS, strict=True):
            value.fieldId = field
        self._count, self._pointer = c_int32(len(FIELDS)), byref(self._values)
        try:
            self._call: Any = pynvml._nvmlGetFunctionPointer("nvmlDeviceGetFieldValues")
        except (pynvml.NVMLError, AttributeError):
            self._call = None
        self._first: Asked[bool] | None = None
        try:
            self.has_counter = first.answer(until_s)
        except TimeoutError:
            self.has_counter, self._first = True, first
        self._about: dict[str, Any] = {
            "uuid": found.uuid,
            "name": found.name,
            "node": node,
            "kind": "gpu",
            "method": "counter" if self.has_counter else "integrated",
            "boundary": "gpu",
            **({"share": min(1.0, sum(instances.values())), "instances": dict(instances)} if instances else {}),
        }

    def describe(self) -> dict[str, Any]:
        return dict(self._about)

    @property
    def is_silent(self) -> bool:
        """Whether its first call has not been answered so far: the next one would wait behind it."""
        if self._first is not None and self._first.is_answered:
            self.has_counter, self._first = self._first.answer(), None
        return self._first is not None

    def read(self) -> Reading:
        """Counter in mJ (since the driver was loaded) and power in W; an error makes the device missing."""
        if self._first is not None and self.is_silent:
            return Reading(error="its driver does not answer")
        if self._failed_s is not None and time.monotonic() - self._failed_s >= REOPEN_AFTER_S:
            self._reopen()
        if self._call is None:
            return self._read_singly()
        code = self._call(self._handle, self._count, self._pointer)
        if code == self._nvml.NVML_ERROR_FUNCTION_NOT_FOUND or code == self._nvml.NVML_ERROR_NOT_SUPPORTED:
            self._call = None
            return self._read_singly()
        if code == self._nvml.NVML_ERROR_UNINITIALIZED and self._failed_s is None:
            self._reopen()  # a driver that was loaded again answers at once
            code = self._call(self._handle, self._count, self._pointer)
        glimpses, self._glimpses = self._glimpses, []
        if code:
            self._failed_s = self._failed_s or time.monotonic()
            return Reading(error=str(self._nvml.NVMLError(code)), before=_seen(glimpses))
        self._failed_s = None
        (
            _, _, energy_us, _, _, energy_code, energy_mj,
            _, _, power_us, _, _, power_code, power_mw,
            _, _, average_us, _, _, average_code, average_mw,
        ) = _VALUES.unpack_from(self._values)  # fmt: skip
        if power_code:
            power_us, power_code, power_mw = average_us, average_code, average_mw
        if power_code or (energy_code and self.has_counter):
            return self._mend(None if energy_code else energy_mj, None if power_code else (power_mw & _UINT) / 1e3)
        energy = energy_mj if self.has_counter else None
        began_anew, self._newest_mj = energy_mj < self._newest_mj, energy_mj
        return Reading(
            energy,
            (power_mw & _UINT) / 1e3,
            energy_us * 1e-6 or None,
            power_us * 1e-6 or None,
            glimpses_w=() if began_anew else tuple(map(_glimpse_w, glimpses)),
            before=_seen(glimpses) if began_anew else None,
        )

    def glance(self) -> bool:
        """Look at counter and power for a tenth of what a reading costs, so that of a GPU that is lost, or whose driver
        is loaded again, more is known than at the reading before. False where a reading should come at once."""
        if self._call is None or not self.has_counter or self._failed_s is not None or self._first is not None:
            return True  # nothing to gain: the readings tell
        if self._call(self._handle, self._count, self._pointer):
            return False
        values = _VALUES.unpack_from(self._values)
        if values[_ENERGY_CODE] or values[_POWER_CODE]:
            return True  # a driver without one of these fields
        if values[_ENERGY_MJ] < self._newest_mj:
            return False
        self._newest_mj = values[_ENERGY_MJ]
        self._glimpses.append((time.time(), values))
        return True

    def _reopen(self) -> None:
        """A driver that was loaded again wants a new handle; the next reading tells whether it helped."""
        self._failed_s = time.monotonic()
        try:
            self._nvml.nvmlInit()
            self._handle = self._nvml.nvmlDeviceGetHandleByUUID(self._about["uuid"])
        except self._nvml.NVMLError:
            return

    def _mend(self, energy_mj: int | None, power_w: float | None) -> Reading:
        """A reading of which a field failed: the single call for that part, with its own error."""
        single = self._read_singly()
        if single.error is not None:
            return single
        mended_mj = energy_mj if self.has_counter and energy_mj is not None else single.energy_mj
        return Reading(mended_mj, single.power_w if power_w is None else power_w)

    def _read_singly(self) -> Reading:
        nvml, energy_mj, power_w, why = self._nvml, None, None, ""
        try:
            if self.has_counter:
                energy_mj = nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        except nvml.NVMLError as error:
            why = str(error)
        try:
            power_w = nvml.nvmlDeviceGetPowerUsage(self._handle) / 1000.0
        except nvml.NVMLError as error:
            why = why or str(error)
        return Reading(energy_mj, power_w, error=why if energy_mj is None and power_w is None else None)


def _has_counter(handle: Any) -> bool:
    """Whether the GPU counts its energy; other errors are left to the readings to name."""
    import pynvml

    try:
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound):
        return False
    except pynvml.NVMLError:
        return True
    return True


def _glimpse_w(glimpse: tuple[float, tuple[int, ...]]) -> tuple[float, float]:
    """(unix s, W)"""
    unix_s, values = glimpse
    return values[_POWER_US] * 1e-6 or unix_s, (values[_POWER_MW] & _UINT) / 1e3


def _seen(glimpses: list[tuple[float, tuple[int, ...]]]) -> Reading | None:
    """The last of them as a reading, with the power that the others saw."""
    if not glimpses:
        return None
    *before_w, (power_unix_s, power_w) = map(_glimpse_w, glimpses)
    unix_s, values = glimpses[-1]
    counter_unix_s = values[_ENERGY_US] * 1e-6 or unix_s
    return Reading(values[_ENERGY_MJ], power_w, counter_unix_s, power_unix_s, glimpses_w=tuple(before_w))


class Found(NamedTuple):
    """A GPU that is to be metered. instances: {MIG instance: its share of the GPU} where it stands for these alone."""

    handle: Any
    uuid: str
    name: str
    instances: Mapping[str, float]


def find(node: str, gpus: Collection[str] | str | None = "all") -> tuple[list[Sensor], list[str]]:
    """The GPUs of this node (see `discover`); without driver or library the list is empty and a warning says so.

    A driver that hangs holds nobody up for ever: what has not answered in time is missing, by name.
    """
    try:
        import pynvml
    except ImportError:
        return [], ["no GPU is measured: the package nvidia-ml-py is not installed"]
    try:
        found, warnings = within(LOOK_UP_S, lambda: _look_up(gpus))
    except pynvml.NVMLError as error:
        return [], [f"no GPU is measured: {error} (on a node with NVIDIA GPUs, check that nvidia-smi works)"]
    except TimeoutError:
        return [], [f"no GPU is measured: the driver did not answer in {LOOK_UP_S:g} s (does nvidia-smi?)"]
    asked = [Asked(partial(_has_counter, each.handle)) for each in found]
    until_s = time.monotonic() + FIRST_ANSWER_S
    sensors: list[Sensor] = []
    for each, first in zip(found, asked, strict=True):
        sensor = NvmlSensor(each, node, first, until_s)
        if sensor.is_silent:
            warnings.append(f"{each.name} {each.uuid} does not answer: it is missing until it does")
        elif not sensor.has_counter:
            warnings.append(f"{each.name} {each.uuid} has no energy counter: its power is integrated")
        sensors.append(sensor)
    return sensors, warnings


def _look_up(gpus: Collection[str] | str | None) -> tuple[list[Found], list[str]]:
    """The GPUs that are meant, and what could not be found. NVMLError without a driver."""
    import pynvml

    from energy.sensors import visible

    pynvml.nvmlInit()
    handles, warnings = handles_of_node()
    chosen = visible.choose(gpus, handles, warnings)
    found: list[Found] = []
    for uuid, handle in handles.items():
        if uuid not in chosen:
            continue
        try:
            name = str(pynvml.nvmlDeviceGetName(handle))
        except pynvml.NVMLError as error:
            name, text = "unknown GPU", f"{uuid} does not tell its name: {error}"
            warnings.append(text)
        found.append(Found(handle, uuid, name, chosen[uuid]))
        if chosen[uuid]:
            warnings.append(visible.share_text(uuid, chosen[uuid]))
    return found, warnings


def handles_of_node() -> tuple[dict[str, Any], list[str]]:
    """{UUID: handle} of each GPU of the node in NVML's order, and those that cannot be had. NVML must be open."""
    import pynvml

    handles: dict[str, Any] = {}
    warnings: list[str] = []
    for index in range(pynvml.nvmlDeviceGetCount()):
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            handles[pynvml.nvmlDeviceGetUUID(handle)] = handle
        except pynvml.NVMLError as error:
            warnings.append(f"GPU {index} is not measured: {error}")
    return handles, warnings


def driver_version() -> str | None:
    """The NVIDIA driver's version, or None without one: counters start anew when it is loaded again."""
    try:
        import pynvml

        return str(pynvml.nvmlSystemGetDriverVersion())
    except Exception:  # no library, no driver, no such call: all mean that nobody can tell
        return None
