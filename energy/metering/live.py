"""What a node uses now, for screens, and what its metering itself takes."""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from energy.accounting.uncertainty import NODE_LEAST
from energy.runs import write_json

TOLD_EVERY_S = 1.0
SILENT_S = 10.0  # a live/<node>.json that is older says nothing of now: ten of its seconds were left out
# Of a device, what tells the next meter's reader what it used in between (energy.accounting.curves.counted_between).
COUNTER = ("counter_mj", "range_mj", "share")


@contextmanager
def told(path: Path, figures: Callable[[], dict[str, Any]]) -> Iterator[None]:
    """Meanwhile a file of a run (live/<node>.json) is replaced once a second, for screens; afterwards it is gone."""
    ended = threading.Event()

    def tell() -> None:
        while True:
            with suppress(OSError):  # a full disk: the meter says so, and the next second may have room again
                write_json(path, figures(), durable=False)
            if ended.wait(TOLD_EVERY_S):
                return

    teller = threading.Thread(target=tell, name="meter-live", daemon=True)
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join(TOLD_EVERY_S)
        with suppress(OSError):
            path.unlink()
            path.parent.rmdir()


def since(figures: dict[str, Any], before: dict[str, Any] | None) -> dict[str, Any]:
    """`live_figures` counted from when `before` were those of the same meter."""
    if before is None:
        return figures
    then_j = {device["uuid"]: device["energy_j"] or 0.0 for device in before["devices"]}
    devices = [
        device
        | {"energy_j": None if device["energy_j"] is None else device["energy_j"] - then_j.get(device["uuid"], 0.0)}
        for device in figures["devices"]
    ]
    energy_j = None if figures["energy_j"] is None else figures["energy_j"] - (before["energy_j"] or 0.0)
    return figures | {"energy_j": energy_j, "devices": devices}


def live_figures(node: str, time_unix_s: float, devices: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """{node, meter_pid, time_unix_s, power_w, energy_j, missing, devices} of the devices as `Meter.now` gives them: a
    node's own sensor in place of its parts (not one that shows less than half of its GPUs), and of a GPU that is
    metered for MIG instances their share.

    power_w is None where of none of them the power is known, and energy_j where none was ever read; so it is of each.

    devices: {uuid, name, kind, power_w, energy_j, missing, counted} of each, `counted` where it is in the node's sums,
    and counter_mj, range_mj and share where it has them.
    """
    whole = [device for device in devices if device["kind"] == "node" and not device["missing"]]
    parts = [device for device in devices if device["kind"] != "node"]
    gpus_w = sum(_power_w(device) or 0.0 for device in parts if device["kind"] == "gpu")
    broken = bool(whole) and (whole[0]["power_w"] or 0.0) < NODE_LEAST * gpus_w
    counted = parts if broken else whole[:1] or parts  # of several sensors of a node one
    powers_w = [w for device in counted if (w := _power_w(device)) is not None]
    # What a sensor of the node could not read is not in its sum, which never falls below that of the parts.
    sums_j = [_energy_j(device) for device in devices if device["kind"] == "node"]
    parts_j = [j for device in parts if (j := _energy_j(device)) is not None]
    sums_j.append(sum(parts_j) if parts_j else None)
    shown = [
        {key: device[key] for key in ("uuid", "name", "kind", "missing")}
        | {
            "power_w": _power_w(device),
            "energy_j": _energy_j(device),
            "counted": any(device is each for each in counted),
        }
        | {key: device[key] for key in COUNTER if device.get(key) is not None}
        for device in devices
    ]
    return {
        "node": node,
        "meter_pid": os.getpid(),  # another one counts energy_j from 0 again
        "time_unix_s": time_unix_s,
        "power_w": sum(powers_w) if powers_w else None,
        "energy_j": max((each for each in sums_j if each is not None), default=None),
        "missing": [device["uuid"] for device in devices if device["missing"]],
        "devices": shown,
    }


def _power_w(device: dict[str, Any]) -> float | None:
    return None if device["missing"] or device["power_w"] is None else device["power_w"] * device.get("share", 1.0)


def _energy_j(device: dict[str, Any]) -> float | None:
    """None of one that was never read, which has used 0 J by its curve."""
    told = device["energy_j"] or device["power_w"] is not None or device.get("counter_mj") is not None
    return device["energy_j"] * device.get("share", 1.0) if told else None


PROCESS, THREADS = "all of the meter's process", "the threads that the meter started"


class OwnCpu:
    """CPU time in s that a meter has taken so far.

    whole_process: nothing else works in its process, so that all of the process since now is the meter's: threads of
    libraries (codecarbon's, Ray's) too. Else it is that of the threads that call `note`. The figure is the one that was
    noted last, so that a forked child, which has a copy of it and no such threads, never counts from zero.
    """

    def __init__(self, whole_process: bool) -> None:
        self.counts = PROCESS if whole_process else THREADS
        self._pid, self._before_s = os.getpid(), time.process_time()
        self._noted_s: dict[threading.Thread, float] = {}
        self._process_s = 0.0

    def note(self) -> None:
        """By each of the meter's threads, as it goes on."""
        if self.counts == THREADS:
            self._noted_s[threading.current_thread()] = time.thread_time()
        elif os.getpid() == self._pid:
            self._process_s = time.process_time() - self._before_s

    def total_s(self, of_sensors: Sequence[tuple[float, float]]) -> float:
        """With what its sensors have taken: CPU s of their threads and of the programs that they asked."""
        own_s = self._process_s + sum(list(self._noted_s.values()))
        threads_s = 0.0 if self.counts == PROCESS else sum(thread_s for thread_s, _ in of_sensors)
        return own_s + threads_s + sum(programs_s for _, programs_s in of_sensors)


def peak_memory_mb() -> float:
    """The largest memory that this process had so far: of `ru_maxrss` a process inherits what its parent had."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM")), None)
        if line is not None:
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux: KiB


def overhead(cpu_s: float, counts: str, readings: int) -> dict[str, Any]:
    """The meter's own CPU time in s and what that counts, and of its process the largest memory in MB and the cores
    that it might use."""
    return {
        "cpu_s": cpu_s,
        "cpu_counts": counts,
        "readings": readings,
        "peak_memory_mb": peak_memory_mb(),
        "cores": os.cpu_count() or 1,
    }
