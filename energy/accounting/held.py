"""What devices a run held and for how long: the device-hours of its record."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

Row = Mapping[str, Any]


class Held(NamedTuple):
    """Devices: GPUs where the run trained on GPUs, else CPU packages. by_attempt: of those attempts that noted it.

    on_gpus, devices and device_hours are None of a run that ended before it was known on what it would train.
    """

    on_gpus: bool | None
    devices: int | None
    by_attempt: Mapping[int, int]
    started_unix_s: float
    ended_unix_s: float
    device_hours: float | None

    @property
    def most_devices(self) -> int:
        return max(self.devices or 0, *self.by_attempt.values(), 0)

    @property
    def gpu_hours(self) -> float | None:
        return 0.0 if self.on_gpus is False else self.device_hours

    def as_time(self) -> dict[str, Any]:
        """The record's `time`."""
        return {
            "started_unix_s": self.started_unix_s,
            "ended_unix_s": self.ended_unix_s,
            "duration_s": max(0.0, self.ended_unix_s - self.started_unix_s),
            "gpu_hours": self.gpu_hours,
            "device_hours": self.device_hours,
        }


def held_by(run: Row, account: Any) -> Held:
    """What run.json and the account say of it; hours without those in which an attempt waited for its devices."""
    started, ended = _span(run, account)
    if run.get("device_type") is None:
        return Held(None, None, {}, started, ended, None)
    on_gpus = run["device_type"] == "cuda"
    devices = len(trained_on(run, account))
    if on_gpus:
        devices = int(run.get("world_size") or devices)
    else:
        devices = devices or len(run.get("hosts") or [])
    by_attempt = _devices_by_attempt(run) if on_gpus else {}
    hours = _device_hours(run, devices, by_attempt, started, ended)
    return Held(on_gpus, devices, by_attempt, started, ended, hours)


def trained_on(run: Row, account: Any) -> list[Any]:
    """The devices that carry the training: GPUs where it ran on GPUs, else CPU packages."""
    if run.get("device_type") is None:
        return []
    kind = "gpu" if run["device_type"] == "cuda" else "cpu"
    return [device for device in account.devices if device.kind == kind]


def _span(run: Row, account: Any) -> tuple[float, float]:
    """When the run began and ended, in unix s."""
    begun = [attempt["started_unix_s"] for attempt in run.get("attempts") or []]
    started = min(begun or [run.get("created_unix_s") or account.start_unix_s or 0.0])
    return started, run.get("ended_unix_s") or account.end_unix_s or started or 0.0


def _devices_by_attempt(run: Row) -> dict[int, int]:
    """How many GPUs each attempt held, where it was noted: a run may go on with more or fewer than it began with."""
    attempts = run.get("attempts") or []
    return {int(each["attempt"]): int(each["world_size"]) for each in attempts if each.get("world_size")}


def _device_hours(run: Row, devices: int, devices_of: Mapping[int, int], started: float, ended: float) -> float:
    """Hours that the attempts held their devices, all together; of a run without attempts those of the whole run."""
    attempts = run.get("attempts") or [{"started_unix_s": started, "ended_unix_s": ended}]
    held = [held_s(each, devices_of.get(int(each.get("attempt") or 0), devices), ended) for each in attempts]
    return math.fsum(held) / 3600


def held_s(attempt: Row, devices: int, until_unix_s: float) -> float:
    """Device-seconds of an attempt on so many devices, less those in which it waited for them.

    until_unix_s: the end of one that has none written down, because it runs or its driver was killed.
    """
    end = attempt.get("ended_unix_s") or until_unix_s
    return devices * max(0.0, end - attempt["started_unix_s"] - attempt.get("waited_s", 0.0))
