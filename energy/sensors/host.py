"""CPU and memory of a node without counters: codecarbon's models, always marked `modelled`.

The CPU model scales the thermal design power with the load of the whole machine; the memory model counts
probable DIMMs. Both are assumptions, and the sensor's name and a warning say which. codecarbon takes seconds to look
at the machine, so it does so on a thread, and the sensors are pending until then.
"""

from __future__ import annotations

import csv
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from energy.sensors import Reading, Sensor

_LOOK_UP = threading.Lock()  # codecarbon's logger is one for the process


class ModelSensor:
    """A codecarbon hardware model as a sensor of watts: pending, then ready or failed for good.

    It is looked up from the first reading on: a meter reads its GPUs before, and looking up takes the interpreter.
    """

    def __init__(self, kind: str, node: str, look_up: Callable[[], None]) -> None:
        self.kind, self._look_up = kind, look_up
        self._hardware: Any = None
        self.looked_s = 0.0  # CPU time of the look-up
        self._failure: str | None = None
        self._news: list[str] | None = None
        self._about = {
            "uuid": f"{kind}@{node}",
            "name": {"cpu": "CPU (model)", "dram": "memory (model)"}[kind],
            "node": node,
            "kind": kind,
            "method": "modelled",
            "boundary": "node",
        }

    def describe(self) -> dict[str, Any]:
        return dict(self._about)

    def read(self) -> Reading:
        """Modelled mean power in W since the last reading; the model's own failure makes the device missing."""
        if self._failure is not None:
            return Reading(error=self._failure)
        if self._hardware is None:
            self._look_up()
            return Reading(pending=True)
        power_w = float(self._hardware.total_power().W)
        return Reading(power_w=power_w, covers_past=True) if power_w > 0 else Reading(error="the model gave no power")

    def news(self) -> tuple[dict[str, Any], list[str]] | None:
        news, self._news = self._news, None
        return None if news is None else (self.describe(), news)

    def own_cpu_s(self) -> tuple[float, float]:
        return self.looked_s, 0.0

    def settle(self, hardware: Any, name: str, warnings: list[str]) -> None:
        self._about["name"], self._hardware, self._news = name, hardware, warnings

    def fail(self, why: str, warnings: list[str]) -> None:
        self._failure, self._news = why, [*warnings, f"host model: {why}"]


def find(node: str, kinds: Collection[str]) -> tuple[list[Sensor], list[str]]:
    """Models of the wanted `kinds` ("cpu", "dram") of this machine; what they assume comes as their `news`."""
    sensors: list[ModelSensor] = []
    thread = threading.Thread(target=_look_up, args=(sensors,), name="host-models", daemon=True)

    def look_up() -> None:
        if thread.ident is None:
            thread.start()

    sensors += [ModelSensor(kind, node, look_up) for kind in ("cpu", "dram") if kind in kinds]
    return list(sensors), []


def _look_up(sensors: list[ModelSensor]) -> None:
    with _LOOK_UP:
        for sensor in sensors:
            warnings: list[str] = []
            before_s = time.thread_time()
            try:
                with _captured_log(warnings):
                    hardware, name, assumed = (_cpu if sensor.kind == "cpu" else _memory)()
                sensor.settle(hardware, name, [f"host model: {text}" for text in [*warnings, assumed]])
            except Exception as error:  # codecarbon parses what machines print: anything may happen, and is then said
                sensor.fail(f"{sensor.kind} is not accounted: {error}", warnings)
            sensor.looked_s = time.thread_time() - before_s


def _cpu() -> tuple[Any, str, str]:
    """(model, name, what it assumes)."""
    from codecarbon.core.cpu import TDP
    from codecarbon.core.util import count_physical_cpus
    from codecarbon.external.hardware import CPU

    class WithoutPandas(TDP):
        """codecarbon's look-up in codecarbon's table, which it reads with pandas: that alone takes 65 MB."""

        known = False

        def _get_cpu_power_from_registry(self, cpu_model_raw: str) -> Any:
            table = _tdp_table()
            names: Any = {"Name": list(table)}  # all that is asked of codecarbon's data frame
            name = self._get_matching_cpu(cpu_model_raw, names)
            self.known = name is not None
            return None if name is None else float(table[name])

    tdp = WithoutPandas()
    if tdp.tdp is None:
        raise RuntimeError("codecarbon detects neither the CPU's model nor its threads")
    # codecarbon looks up one socket, but guesses an unknown CPU by all the threads of the machine.
    sockets = max(1, int(count_physical_cpus())) if tdp.known else 1
    tdp_w = float(tdp.tdp) * sockets
    basis = f"{sockets} x {tdp.tdp:g} W TDP" if tdp.known else f"{tdp_w:g} W assumed: unknown CPU, 4 W a thread"
    hardware = CPU(output_dir="", mode="cpu_load", model=tdp.model, tdp=round(tdp_w))
    return (
        hardware,
        f"{tdp.model} (model: {basis})",
        f"the CPU ({tdp.model}) is modelled from its load, not measured: {basis}",
    )


def _tdp_table() -> dict[str, str]:
    """{CPU: thermal design power in W} as it stands there (a few are no number); of two of one name the first."""
    from codecarbon.input import DataSource

    table: dict[str, str] = {}
    with open(DataSource().cpu_power_path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            table.setdefault(row["Name"], row["TDP"])
    return table


def _memory() -> tuple[Any, str, str]:
    from codecarbon.external.ram import RAM

    hardware = RAM(tracking_mode="machine")
    basis = f"{hardware.total_power().W:g} W assumed for {hardware.machine_memory_GB:.0f} GiB"
    return hardware, f"memory (model: {basis})", f"memory is modelled by its probable DIMMs, not measured: {basis}"


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
