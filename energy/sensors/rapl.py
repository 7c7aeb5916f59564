"""CPU packages and memory through RAPL's counters in the Linux powercap tree (Intel, and AMD since Zen).

Only `package-*` and `dram` zones are read: core and uncore lie inside the package, psys overlaps everything,
and the `intel-rapl-mmio` zones show the same packages a second time.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from energy.sensors import Reading, Sensor

WRAP_POWER_W = 1000.0  # above what one CPU package draws: bounds how soon its counter can wrap twice
_ZONE = re.compile(r"(?:intel|amd)-rapl:(\d+)(?::\d+)?$")


class RaplSensor:
    """One zone. The counter wraps at `max_energy_range_uj` (minutes to hours); reading unwraps it.

    Where it was not read for so long that it may have wrapped more than once, it is said to have begun anew: what was
    used meanwhile is unknown. It stays right but for whole ranges, for the meter that comes after a crash.
    """

    def __init__(
        self,
        zone: Path,
        uuid: str,
        name: str,
        kind: str,
        node: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._zone = zone
        self._clock = clock
        self._range_uj = int((zone / "max_energy_range_uj").read_text())
        if self._range_uj <= 0:  # some virtual machines show zones without a counter: its energy would be a silent zero
            raise ValueError(f"max_energy_range_uj is {self._range_uj}: the zone has no counter")
        self._last: tuple[int, float] | None = None
        self._wrapped_uj = 0
        self._about = {
            "uuid": uuid,
            "name": name,
            "node": node,
            "kind": kind,
            "method": "counter",
            "boundary": "node",
            "range_mj": self._range_uj // 1000,
        }

    def describe(self) -> dict[str, Any]:
        return dict(self._about)

    def read(self) -> Reading:
        """Unwrapped counter in mJ, and the mean power in W since the previous reading (None at the first)."""
        raw_uj, now_s = int((self._zone / "energy_uj").read_text()), self._clock()
        power_w, begun_anew = None, False
        if self._last is not None:
            last_uj, last_s = self._last
            if (now_s - last_s) * WRAP_POWER_W * 1e6 >= self._range_uj:
                begun_anew = True
            else:
                if raw_uj < last_uj:
                    self._wrapped_uj += self._range_uj
                if now_s > last_s:
                    power_w = (raw_uj - last_uj) % self._range_uj / 1e6 / (now_s - last_s)
        self._last = (raw_uj, now_s)
        energy_mj = (self._wrapped_uj + raw_uj) // 1000
        return Reading(energy_mj=energy_mj, power_w=power_w, covers_past=True, begun_anew=begun_anew)


def find(node: str, powercap: Path) -> tuple[list[Sensor], list[str]]:
    """Readable package and dram zones under `powercap`; what is unreadable is a warning with what to do."""
    sensors: list[Sensor] = []
    warnings: list[str] = []
    if not powercap.is_dir():
        return [], [f"{powercap} does not exist: no CPU counters (virtual machines and containers often hide them)"]
    for zone in sorted(powercap.iterdir()):
        match = _ZONE.match(zone.name)
        if match is None:
            continue
        try:
            label = (zone / "name").read_text().strip()
            kind = "dram" if label == "dram" else "cpu" if label.startswith("package") else None
            if kind is None:
                continue
            device = f"dram-{match[1]}" if kind == "dram" else f"cpu-{label}"
            sensor = RaplSensor(zone, f"{device}@{node}", f"RAPL {device}", kind, node)
            (zone / "energy_uj").read_text()
        except PermissionError:
            warnings.append(
                f"{zone}/energy_uj is not readable: run `sudo chmod a+r {zone}/energy_uj`, or meter as root"
            )
            continue
        except (OSError, ValueError) as error:
            warnings.append(f"{zone} is not measured: {error}")
            continue
        sensors.append(sensor)
    if not sensors and not warnings:
        warnings.append(f"no package zone in {powercap}: `sudo modprobe intel_rapl_msr` where the CPU has RAPL")
    return sensors, warnings
