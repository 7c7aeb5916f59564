"""The meter's figures as Ray's own metrics: the names of `metering.prometheus`, with the `ray_` that Ray puts before.

Ray exports them on every node's metrics port. Two of its habits matter here. A counter keeps the value of a dead actor
for the life of its node, and a restarted meter is a new series that begins at 0: sums over a run stay right. A gauge
that is not set again expires after two of its reports (by default every 10 s): so the power of a missing device goes,
and `publish` has to be called more often than that.
"""

from typing import Any

from ray.util.metrics import Counter, Gauge

from energy.metering import prometheus as exported


class RayMetrics:
    """Publishes one meter's figures. Made and called in the actor that meters; a call takes microseconds a device."""

    def __init__(self, node: str, run: str):
        labels, meter_labels = exported.LABELS, exported.METER_LABELS
        self._run, self._meter = run, {"run": run, "node": node}
        self._energy = Counter(exported.ENERGY.name, exported.ENERGY.help, labels)
        self._power = Gauge(exported.POWER.name, exported.POWER.help, labels)
        self._missing = Gauge(exported.MISSING.name, exported.MISSING.help, labels)
        self._cpu = Counter(exported.CPU.name, exported.CPU.help, meter_labels)
        self._readings = Counter(exported.READINGS.name, exported.READINGS.help, meter_labels)
        self._warnings = Gauge(exported.WARNINGS.name, exported.WARNINGS.help, meter_labels)
        self._told: dict[str, float] = {}

    def publish(self, meter_now: list[dict[str, Any]], meter_about: dict[str, Any] | None = None) -> None:
        """`Meter.now()`, and `Meter.describe()` where the meter's own overhead is to be shown too."""
        for entry in meter_now:
            shown = exported.device(entry, self._run)
            self._grow(self._energy, shown.labels["uuid"], shown.energy_j, shown.labels)
            self._missing.set(float(shown.missing), shown.labels)
            if shown.power_w is not None:
                self._power.set(shown.power_w, shown.labels)
        if meter_about is not None:
            overhead = meter_about["overhead"]
            self._grow(self._cpu, "cpu_s", overhead["cpu_s"], self._meter)
            self._grow(self._readings, "readings", overhead["readings"], self._meter)
            self._warnings.set(float(len(meter_about["warnings"])), self._meter)

    def _grow(self, counter: Counter, key: str, total: float, labels: dict[str, str]) -> None:
        """Add what came since the last call: Ray's counters take growth, and refuse none."""
        grown = total - self._told.get(key, 0.0)
        if grown > 0:
            counter.inc(grown, labels)
            self._told[key] = total
