"""A Prometheus pull endpoint of a running meter: joules as counters, watts as gauges.

    endpoint = serve(meter, port=9400)      # http://127.0.0.1:9400/metrics

A scrape shows what the meter read last and reads nothing itself, so that scraping costs no sensor call. The counters
begin at zero with the meter; Prometheus' `increase` and `rate` know what to make of that.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

from energy.metering.meter import Meter
from energy.metering.readers import boot_id
from energy.run_version import program_version


class Name(NamedTuple):
    """A metric: its name without the suffix that its type adds, and what it is."""

    name: str
    help: str


LABELS = ("run", "node", "uuid", "name", "kind", "method")
METER_LABELS = ("run", "node")
ENERGY = Name("hoofprint_device_energy_joules", "Energy of the device since the meter started, in joules.")
POWER = Name("hoofprint_device_power_watts", "Power of the device as last read, in watts; absent while missing.")
MISSING = Name("hoofprint_device_missing", "1 while the device cannot be read, else 0.")
CPU = Name("hoofprint_meter_cpu_seconds", "CPU time that the meter's readings took, in seconds.")
READINGS = Name("hoofprint_meter_readings", "Readings of all devices that the meter took.")
WARNINGS = Name("hoofprint_meter_warnings", "Warnings that the meter has given so far.")
INFO = Name("hoofprint_meter", "What meters: hoofprint's version, the interval of readings, the boot of the machine.")


class Device(NamedTuple):
    """One device of `Meter.now()` as metrics have it: energy in J, power in W or None."""

    labels: dict[str, str]
    energy_j: float
    power_w: float | None
    missing: bool


def device(entry: dict[str, Any], run: str) -> Device:
    """An entry of `Meter.now()` with its labels. Of a GPU that is metered for a MIG instance, the instance's share."""
    share = float(entry.get("share", 1.0))
    method = entry["method"] if share == 1.0 else "assumed"
    labels = {"run": run, **{key: str(entry[key]) for key in LABELS[1:]}, "method": method}
    missing = entry["missing"] is not None
    power_w = None if missing or entry["power_w"] is None else entry["power_w"] * share
    return Device(labels, entry["energy_j"] * share, power_w, missing)


class MeterCollector:
    """Turns a meter's newest figures into metrics, at each scrape."""

    def __init__(self, meter: Meter, run: str = "") -> None:
        self._meter, self._run = meter, run

    def collect(self) -> Iterator[Metric]:
        energy = CounterMetricFamily(*ENERGY, labels=LABELS)
        power = GaugeMetricFamily(*POWER, labels=LABELS)
        missing = GaugeMetricFamily(*MISSING, labels=LABELS)
        for entry in self._meter.now():
            shown = device(entry, self._run)
            values = list(shown.labels.values())
            energy.add_metric(values, shown.energy_j)
            missing.add_metric(values, float(shown.missing))
            if shown.power_w is not None:
                power.add_metric(values, shown.power_w)
        yield from (energy, power, missing)
        yield from self._of_the_meter()

    def _of_the_meter(self) -> Iterator[Metric]:
        about = self._meter.describe()
        values = [self._run, about["node"]]
        cpu = CounterMetricFamily(*CPU, labels=METER_LABELS)
        cpu.add_metric(values, about["overhead"]["cpu_s"])
        readings = CounterMetricFamily(*READINGS, labels=METER_LABELS)
        readings.add_metric(values, about["overhead"]["readings"])
        warnings = GaugeMetricFamily(*WARNINGS, labels=METER_LABELS)
        warnings.add_metric(values, len(about["warnings"]))
        info = InfoMetricFamily(*INFO, labels=METER_LABELS)
        facts = {"version": program_version() or "unknown", "interval_s": f"{self._meter.interval_s:g}"}
        info.add_metric(values, facts | {"boot_id": boot_id() or ""})
        yield from (cpu, readings, warnings, info)


class Endpoint:
    """A server of metrics on a thread of its own. `close` ends it; it also ends with the process."""

    def __init__(self, server: Any, thread: Any, address: str) -> None:
        self._server, self._thread = server, thread
        self.port: int = server.server_port
        self.url = f"http://{f'[{address}]' if ':' in address else address}:{self.port}/metrics"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def serve(meter: Meter, port: int, address: str = "127.0.0.1", *, run: str = "") -> Endpoint:
    """Serve the meter's figures over HTTP, to this machine alone unless another `address` to listen on is given.

    Port 0 takes a free one. `run` is the value of the label of that name. ValueError when the port cannot be had.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(MeterCollector(meter, run))  # type: ignore[arg-type]
    try:
        server, thread = start_http_server(port, address, registry)
    except OSError as error:
        why = "is in use: take another" if error.errno == errno.EADDRINUSE else f"cannot be had ({error.strerror})"
        raise ValueError(f"the Prometheus port {port} on {address} {why}") from None
    except OverflowError:
        raise ValueError(f"the Prometheus port {port}: expected 0 to 65535") from None
    return Endpoint(server, thread, address)
