"""One process that meters with one tool, as a user would by the tool's documentation. Runs in the tool's own venv.

    python adapters.py '{"tool": "zeus", "mode": "window", "seconds": 30, "out": "folder"}'

Says `ready` once everything is imported, waits for a line, meters, and prints a line `RESULT {json}`. Modes: `window`
(one stretch), `steady` (CPU and memory while it only meters), `session` (metering that may be killed at any moment,
writing to `out`), `saved` (the energy that is found in `out` afterwards). Standard library only, but for the tool.
"""

from __future__ import annotations

import glob
import json
import os
import resource
import sys
import time
from typing import Any

CHUNK_S = 2.0  # sessions are cut into windows or epochs of this length where a tool can do so


class Tool:
    """What the modes need of a tool. Times are unix seconds."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options, self.out = options, options.get("out", ".")

    def open(self) -> None:
        """Start metering; returns when the tool has its first reading, or says so."""

    def close(self) -> dict[str, Any]:
        """End metering: {start, end, joules: total, devices: {uuid or index: joules}, ...}."""
        raise NotImplementedError

    def session(self, seconds: float) -> float:
        """Meter for so long, writing what the tool writes; the unix time at which it is told to end."""
        self.open()
        time.sleep(seconds)
        end = time.time()
        self.close()
        return end

    def saved(self) -> dict[str, Any]:
        """What is found on the disk."""
        raise NotImplementedError


class Hoofprint(Tool):
    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options)
        import pynvml  # noqa: F401  (importing is no metering: the other tools have it by now, too)

        from energy import Meter
        from energy.sensors import host, nvml, rapl  # noqa: F401

        self.meter_class = Meter

    def open(self) -> None:
        ledger = os.path.join(self.out, "energy", "node.ledger") if self.options.get("ledger") else None
        extra = {key: self.options[key] for key in ("attempt", "host", "gpus") if key in self.options}
        self.meter = self.meter_class(ledger, node="node", **extra).start()
        if self.options["mode"] != "session":
            self.meter.begin("window")

    def close(self) -> dict[str, Any]:
        window = self.meter.end("window")
        gpus = [device for device in window.devices if device.kind == "gpu"]
        result = {
            "start": window.start_unix_s,
            "end": window.end_unix_s,
            "joules": sum(device.energy_j or 0.0 for device in gpus),
            "devices": {device.uuid: device.energy_j for device in gpus},
            "intervals": {device.uuid: [device.low_j, device.high_j] for device in gpus},
            "methods": {device.uuid: device.method for device in gpus},
            "gaps_s": {device.uuid: device.gap_s for device in gpus},
            "notes": {device.uuid: device.note for device in gpus if device.note},
        }
        self.meter.stop()
        return result

    def session(self, seconds: float) -> float:
        self.open()
        time.sleep(seconds)
        end = time.time()
        self.meter.stop()
        return end

    def saved(self) -> dict[str, Any]:
        """From the record: its energy, and the start and end that it states."""
        from energy.accounting.account import account_run
        from energy.records.footprint import make_footprint
        from energy.runs import RunFolder

        # Nothing but the ledger says when this run began and ended.
        record = make_footprint({"run_id": "killed"}, account_run(RunFolder(self.out)), [], [])
        energy = record["energy"]
        return {
            "joules": sum(device["energy_j"] for device in energy["devices"] if device["kind"] == "gpu"),
            "gap": next((phase for phase in energy["phases"] if phase["phase"] == "gap"), None),
            "start": record["time"]["started_unix_s"],
            "end": record["time"]["ended_unix_s"],
        }


class CodeCarbon(Tool):
    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options)
        import pynvml
        from codecarbon import OfflineEmissionsTracker

        self.tracker_class = OfflineEmissionsTracker
        # Its own first and last reading of the counter bound what it measured: their times are noted on the way.
        self.read_at: list[float] = []
        real = pynvml.nvmlDeviceGetTotalEnergyConsumption

        def noting(handle: Any) -> Any:
            value = real(handle)
            self.read_at.append(time.time())
            return value

        pynvml.nvmlDeviceGetTotalEnergyConsumption = noting

    def open(self) -> None:
        self.tracker = self.tracker_class(
            country_iso_code="DNK", log_level="error", output_dir=self.out, allow_multiple_runs=True
        )
        began = time.time()
        self.tracker.start()
        if self.tracker._start_time is None:
            raise RuntimeError("start() gave up without a word")
        # its clock starts after the hardware was set up, just before the reading that it counts from
        began = max(began, time.time() - (time.perf_counter() - self.tracker._start_time))
        readings = [at for at in self.read_at if at >= began]
        self.start = readings[0] if readings else began
        self.read_at.clear()

    def close(self) -> dict[str, Any]:
        end = time.time()
        self.tracker.stop()
        data = self.tracker.final_emissions_data
        last = [at for at in self.read_at if at >= end]
        return {"start": self.start, "end": last[-1] if last else end, "joules": data.gpu_energy * 3.6e6}

    def saved(self) -> dict[str, Any]:
        import pandas

        files = glob.glob(os.path.join(self.out, "emissions*.csv"))
        return {"joules": float(sum(pandas.read_csv(file)["gpu_energy"].sum() for file in files)) * 3.6e6}


class Zeus(Tool):
    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options)
        from zeus.monitor import ZeusMonitor

        self.monitor_class = ZeusMonitor
        self.log_file: str | None = None

    def open(self) -> None:
        self.monitor = self.monitor_class(cpu_indices=[], log_file=self.log_file)
        self._begin()

    def _begin(self) -> None:
        self.monitor.begin_window("window", sync_execution=False)
        self.start = time.time()

    def close(self) -> dict[str, Any]:
        end = time.time()
        energy = self.monitor.end_window("window", sync_execution=False)
        return {"start": self.start, "end": end, "joules": energy.total_energy, "devices": energy.gpu_energy}

    def session(self, seconds: float) -> float:
        self.log_file = os.path.join(self.out, f"zeus-{os.getpid()}.csv")
        until = time.time() + seconds
        self.open()
        while time.time() < until:
            time.sleep(CHUNK_S)
            self.close()
            self._begin()
        end = time.time()
        self.close()
        return end

    def saved(self) -> dict[str, Any]:
        joules = 0.0
        for file in glob.glob(os.path.join(self.out, "zeus-*.csv")):
            with open(file) as lines:
                joules += sum(sum(map(float, line.split(",")[3:])) for line in list(lines)[1:])
        return {"joules": joules}


class ZeusPower(Tool):
    """Zeus's PowerMonitor, what it has for GPUs without a counter."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options)
        from zeus.monitor import PowerMonitor

        self.monitor_class = PowerMonitor

    def open(self) -> None:
        self.monitor = self.monitor_class()
        while self.monitor.get_power() is None:
            time.sleep(0.01)
        self.start = time.time()

    def close(self) -> dict[str, Any]:
        end = time.time()
        time.sleep(0.3)  # its samples come through a queue
        energy = self.monitor.get_energy(self.start, end)
        self.monitor.stop()
        return {"start": self.start, "end": end, "joules": sum(energy.values()), "devices": energy}


class CarbonTracker(Tool):
    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options)
        from carbontracker import constants
        from carbontracker.tracker import CarbonTracker as Tracker

        self.tracker_class, self.pue = Tracker, constants.PUE_2023

    def _tracker(self, epochs: int, log_dir: str | None) -> Any:
        return self.tracker_class(
            epochs, epochs_before_pred=0, components="gpu", verbose=0, log_dir=log_dir, ignore_errors=True
        )

    def open(self) -> None:
        self.tracker = self._tracker(2, None)  # of two epochs, for it deletes itself after the last
        self.tracker.epoch_start()
        self.start = time.time()
        if self.options["mode"] == "window":
            deadline = time.time() + 10
            while time.time() < deadline and not self._has_reading():
                time.sleep(0.005)

    def _has_reading(self) -> bool:
        return any(power for component in self.tracker.tracker.components for power in component.power_usages)

    def close(self) -> dict[str, Any]:
        end = time.time()
        self.tracker.epoch_end()
        joules = float(self.tracker.tracker.total_energy_per_epoch().sum()) / self.pue * 3.6e6
        return {"start": self.start, "end": end, "joules": joules}

    def session(self, seconds: float) -> float:
        tracker = self._tracker(10**6, self.out)
        until = time.time() + seconds
        while time.time() < until:
            tracker.epoch_start()
            time.sleep(CHUNK_S)
            tracker.epoch_end()
        end = time.time()
        tracker.stop()
        return end

    def saved(self) -> dict[str, Any]:
        """From its logs, epoch by epoch: the prediction from the first epoch is not a measurement."""
        from carbontracker import parser

        joules = 0.0
        for file in glob.glob(os.path.join(self.out, "*carbontracker.log")):
            try:
                energy = parser.parse_logs(self.out, file, file)["gpu"]["avg_energy_usages (J)"]
            except Exception:  # a log of a killed process may not parse: then nothing is found in it
                continue
            joules += 0.0 if energy is None else float(energy.sum())
        return {"joules": joules}


TOOLS = {
    "hoofprint": Hoofprint,
    "codecarbon": CodeCarbon,
    "zeus": Zeus,
    "zeus_power": ZeusPower,
    "carbontracker": CarbonTracker,
}


def children_cpu_s(parent: int) -> float:
    """CPU seconds so far of the living child processes."""
    ticks = 0
    for path in glob.glob("/proc/[0-9]*/stat"):
        try:
            with open(path) as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def cpu_s() -> float:
    own = resource.getrusage(resource.RUSAGE_SELF)
    return own.ru_utime + own.ru_stime + children_cpu_s(os.getpid())


def resident_mb() -> float:
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def run(tool: Tool, options: dict[str, Any]) -> dict[str, Any]:
    mode, seconds = options["mode"], options.get("seconds", 0.0)
    if mode == "saved":
        return tool.saved()
    if mode == "session":
        print(f"BEGIN {time.time()!r}", flush=True)
        return {"end": tool.session(seconds)}
    cpu_before, called = cpu_s(), time.time()
    tool.open()
    result = {"first_reading_s": time.time() - called}
    if mode == "steady":
        time.sleep(options["warm_up"])
        warm_cpu_s, warm_s, warm_mb = cpu_s(), time.time(), resident_mb()
        time.sleep(seconds)
        per_s = (cpu_s() - warm_cpu_s) / (time.time() - warm_s)
        # what a tool does in the background after its start belongs to the start
        result["start_cpu_s"] = warm_cpu_s - cpu_before - per_s * (warm_s - called)
        result["cpu_s_per_hour"] = per_s * 3600
        result["resident_mb"], result["grown_mb"] = resident_mb(), resident_mb() - warm_mb
        tool.close()
        return result
    time.sleep(seconds)
    return result | tool.close()


def main() -> None:
    options = json.loads(sys.argv[1])
    began = time.perf_counter()
    tool: Tool | None = None
    result: dict[str, Any] = {}
    try:
        tool = TOOLS[options["tool"]](options)
    except BaseException as error:
        result = {"error": f"{type(error).__name__}: {error}"[:300]}
    import_s = time.perf_counter() - began
    print("ready", flush=True)
    time.sleep(float(sys.stdin.readline() or 0))
    if tool is not None:
        try:
            result = run(tool, options)
        except BaseException as error:  # what a tool raises is a result
            result = {"error": f"{type(error).__name__}: {error}"[:300]}
    print("RESULT " + json.dumps(result | {"import_s": import_s}), flush=True)
    os._exit(0)  # some tools leave threads behind that would keep the process


if __name__ == "__main__":
    main()
