"""CPU and memory of a node without counters: codecarbon's models, always marked `modelled`.

The CPU model scales the thermal design power with the load of the whole machine; the memory model counts
probable DIMMs. Both are assumptions, and the sensor's name and a warning say which.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from energy.sensors import Reading, Sensor


class ModelSensor:
    """A codecarbon hardware model as a sensor of watts."""

    def __init__(self, hardware: Any, uuid: str, name: str, kind: str, node: str) -> None:
        self._hardware = hardware
        self._about = {
            "uuid": uuid,
            "name": name,
            "node": node,
            "kind": kind,
            "method": "modelled",
            "boundary": "node",
        }

    def describe(self) -> dict[str, str]:
        return dict(self._about)

    def read(self) -> Reading:
        """Modelled power in W; the model's own failure (it answers zero) makes the device missing."""
        power_w = float(self._hardware.total_power().W)
        return Reading(power_w=power_w) if power_w > 0 else Reading(error="the model gave no power")


def find(node: str, kinds: Collection[str]) -> tuple[list[Sensor], list[str]]:
    """Models of the wanted `kinds` ("cpu", "dram") of this machine, and what they assume."""
    sensors: list[Sensor] = []
    warnings: list[str] = []
    with _captured_log(warnings):
        if "cpu" in kinds:
            _add_cpu(node, sensors, warnings)
        if "dram" in kinds:
            _add_memory(node, sensors, warnings)
    return sensors, warnings


def _add_cpu(node: str, sensors: list[Sensor], warnings: list[str]) -> None:
    from codecarbon.core.cpu import TDP
    from codecarbon.core.util import count_physical_cpus
    from codecarbon.external.hardware import CPU

    tdp = TDP()
    if tdp.tdp is None:
        warnings.append("the CPU is not accounted: codecarbon detects neither its model nor its threads")
        return
    # codecarbon looks up one socket, but guesses an unknown CPU by all the threads of the machine.
    known = bool(tdp._get_cpu_power_from_registry(tdp.model))
    sockets = max(1, int(count_physical_cpus())) if known else 1
    tdp_w = float(tdp.tdp) * sockets
    basis = f"{sockets} x {tdp.tdp:g} W TDP" if known else f"{tdp_w:g} W assumed: unknown CPU, 4 W a thread"
    hardware = CPU(output_dir="", mode="cpu_load", model=tdp.model, tdp=round(tdp_w))
    sensors.append(ModelSensor(hardware, f"cpu@{node}", f"{tdp.model} (model: {basis})", "cpu", node))
    warnings.append(f"the CPU ({tdp.model}) is modelled from its load, not measured: {basis}")


def _add_memory(node: str, sensors: list[Sensor], warnings: list[str]) -> None:
    from codecarbon.external.ram import RAM

    hardware = RAM(tracking_mode="machine")
    gigabytes, power_w = hardware.machine_memory_GB, hardware.total_power().W
    basis = f"{power_w:g} W assumed for {gigabytes:.0f} GiB"
    sensors.append(ModelSensor(hardware, f"dram@{node}", f"memory (model: {basis})", "dram", node))
    warnings.append(f"memory is modelled by its probable DIMMs, not measured: {basis}")


@contextmanager
def _captured_log(warnings: list[str]) -> Iterator[None]:
    """Put codecarbon's log warnings into our list instead of the trainer's terminal."""

    class Capture(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            warnings.append(f"codecarbon: {record.getMessage()}")

    import codecarbon.external.logger  # noqa: F401  (its import sets handlers: let it, before we take them over)

    logger = logging.getLogger("codecarbon")
    before = (logger.handlers, logger.propagate)
    logger.handlers, logger.propagate = [Capture(logging.WARNING)], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before
