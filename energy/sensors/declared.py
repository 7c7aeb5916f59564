"""What a node uses beyond its counters: a declared baseline, or the node's own power from a command or a file.

A baseline (fans, network, storage) is a constant that somebody states, and is marked `assumed`. A node's own power
comes from whatever its management controller offers (IPMI, Redfish): a command whose output, or a file whose content,
holds a number of watts. It is of the whole node and contains every other device of it.
"""

from __future__ import annotations

import fnmatch
import re
import shlex
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from energy.sensors import Reading, Sensor
from energy.sensors.command import output_of

# No part of a longer number: of "1,234 W" and "-5 W" nobody can tell what was meant.
_WATTS = re.compile(r"(?<![0-9.,-])([0-9]+(?:\.[0-9]+)?)\s*(k?)\s*(?:W\b|watts?\b)", re.IGNORECASE)
_REDFISH_KEY, _REDFISH = "PowerConsumedWatts", re.compile(r'"PowerConsumedWatts"\s*:\s*([0-9]+(?:\.[0-9]+)?)\s*[,}]')
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
PREFERRED = ("instantaneous", "current", "consumedwatts", "present")  # lines of ipmitool and Redfish that are meant
ASK_EVERY_S = 1.0  # after each answer
TIMEOUT_S = 10.0
OLD_S = 30.0  # a reading that is older than this is missing


class BaselineSensor:
    """A constant power of the node, as declared."""

    def __init__(self, node: str, power_w: float, source: str) -> None:
        if not power_w >= 0:
            raise ValueError(f"node baseline: expected watts of at least 0, got {power_w}")
        self._power_w = power_w
        self._about = {
            "uuid": f"baseline@{node}",
            "name": f"node baseline ({power_w:g} W assumed: {source})",
            "node": node,
            "kind": "baseline",
            "method": "assumed",
            "boundary": "node",
        }

    def describe(self) -> dict[str, Any]:
        return dict(self._about)

    def read(self) -> Reading:
        return Reading(power_w=self._power_w, covers_past=True)


class NodePowerSensor:
    """Whole-node power by a command (`ipmitool dcmi power reading`) or a file, asked on a thread every second.

    Management controllers answer in up to seconds, so the reading is the newest answer; an old one is missing.
    """

    def __init__(self, node: str, *, command: str | None = None, file: Path | None = None) -> None:
        if (command is None) == (file is None):
            raise ValueError("node power: give either a command or a file")
        self._command, self._file = command, file
        self._newest: tuple[float, float, float] | None = None  # W, unix s, monotonic s
        self._error = "no answer yet"
        self._thread_s = self._commands_s = 0.0
        source = command if command is not None else str(file)
        self._about = {
            "uuid": f"node@{node}",
            "name": f"node power by {source}",
            "node": node,
            "kind": "node",
            "method": "integrated",
            "boundary": "node",
        }
        threading.Thread(target=self._ask_on, name="node-power", daemon=True).start()

    def describe(self) -> dict[str, Any]:
        return dict(self._about)

    def read(self) -> Reading:
        """The newest power in W, with the moment of that answer: it stands until the next one, and where none came in
        half a minute it is missing from then on."""
        newest = self._newest
        if newest is None:
            return Reading(pending=True) if self._error == "no answer yet" else Reading(error=self._error)
        power_w, unix_s, monotonic_s = newest
        if time.monotonic() - monotonic_s > OLD_S:
            return Reading(error=f"no answer for {OLD_S:g} s: {self._error}")
        return Reading(power_w=power_w, power_unix_s=unix_s)

    def own_cpu_s(self) -> tuple[float, float]:
        return self._thread_s, self._commands_s

    def _ask_on(self) -> None:
        while True:
            try:
                self._newest = (parse_watts(self._ask()), time.time(), time.monotonic())
            except (OSError, ValueError, subprocess.SubprocessError) as error:
                self._error = f"{self._about['name']}: {error}"
            self._thread_s = time.thread_time()
            time.sleep(ASK_EVERY_S)

    def _ask(self) -> str:
        if self._file is not None:
            return self._file.read_text(encoding="utf-8")
        assert self._command is not None
        answer, cpu_s = output_of(shlex.split(self._command), TIMEOUT_S)
        self._commands_s += cpu_s
        return answer


def node_sensors(
    node: str,
    *,
    baseline_w: float | None = None,
    baselines_w: Mapping[str, float] | None = None,
    baseline_source: str = "declared",
    power_command: str | None = None,
    power_file: str | None = None,
) -> list[Sensor]:
    """The sensors that somebody declared for this node; none where nothing was.

    baselines_w: W by patterns of node names (`gpu-*`), of which the first that fits is this node's.
    """
    if baselines_w is not None:
        baseline_w = next((watts for name, watts in baselines_w.items() if fnmatch.fnmatchcase(node, name)), None)
    sensors: list[Sensor] = []
    if power_command is not None or power_file is not None:
        file = None if power_file is None else Path(power_file)
        sensors.append(NodePowerSensor(node, command=power_command, file=file))
    if baseline_w is not None:
        sensors.append(BaselineSensor(node, baseline_w, baseline_source))
    return sensors


def parse_watts(text: str) -> float:
    """The power in W that a controller's answer names. ValueError says what was found.

    A bare number is watts. Of several figures the one on a line that speaks of the present is meant.
    """
    bare = text.strip()
    if _NUMBER.fullmatch(bare):
        return float(bare)
    redfish = _REDFISH.search(bare)
    if redfish:
        return float(redfish[1])
    # What is there but holds no number (null) is not known: the other watts of an answer are capacities and limits.
    lines = [] if _REDFISH_KEY in bare else bare.splitlines()
    preferred = [line for line in lines if any(word in line.lower() for word in PREFERRED) and _is_of_power(line)]
    for line in preferred or lines:
        match = _WATTS.search(line)
        if match:
            return float(match[1]) * (1000.0 if match[2] else 1.0)
        if "watts" in line.lower() and (numbers := _NUMBER.findall(line)):  # Redfish JSON: "PowerConsumedWatts": 344
            return float(numbers[-1])
    raise ValueError(f"no watts in {bare[:80]!r}")


def _is_of_power(line: str) -> bool:
    """Not of a current in amperes, nor of a power supply that is present: `ipmitool sdr` lists them with the watts."""
    text = line.lower()
    return _WATTS.search(line) is not None or "watts" in text or ("power" in text and "supply" not in text)
