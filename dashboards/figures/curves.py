"""Energy and power over time, as the figures draw them, from an account's series of power."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

MEASURED = ("counter", "integrated")
MAX_BANDS = 6
Series = tuple[np.ndarray, np.ndarray]


def cumulative_j(series: Series, at: np.ndarray) -> np.ndarray:
    """Joules drawn up to each moment; a reading is the mean power since the one before."""
    times, power = (np.asarray(each, dtype=float) for each in series)
    if len(times) < 2:
        return np.zeros(len(at))
    mean = np.nan_to_num(power[1:], nan=0.0)  # a missing reading draws nothing here; the account books its gap
    total = np.concatenate([[0.0], np.cumsum(mean * np.diff(times))])
    return np.interp(at, times, total)


def energy_at(account: Any, times: np.ndarray, methods: tuple[str, ...] | None = None) -> np.ndarray:
    """Joules of the devices booked up to each moment, the end agreeing with the account's totals.

    methods: only of devices that were read in one of these ways.
    """
    spent = np.zeros(len(times))
    booked = {device.uuid: device for device in account.devices}
    for uuid, at, power in account.power:
        device = booked.get(uuid)
        if len(at) < 2 or (methods is not None and (device is None or device.method not in methods)):
            continue
        whole = float(cumulative_j((at, power), np.array([at[-1]]))[0])
        energy_j = whole if device is None else device.energy_j
        spent += cumulative_j((at, power), times) * (energy_j / whole if whole else 0.0)
    return spent


def power_series(account: Any) -> dict[str, Series]:
    """{uuid: (unix s, W)} of every device with more than one reading."""
    return {
        uuid: (np.asarray(t, dtype=float), np.asarray(p, dtype=float)) for uuid, t, p in account.power if len(t) > 1
    }


def bands(account: Any) -> list[tuple[str, str, list[str]]]:
    """(label, method class, uuids): one a device while few, else one a node, else one a kind."""
    drawn = {uuid for uuid, _, _ in account.power}
    devices = [device for device in account.devices if device.uuid in drawn]
    nodes = {device.node for device in devices}
    many = len(nodes) > 1
    same = {device.name for device in devices if sum(d.name == device.name for d in devices) > 1}

    def short(d: Any) -> str:
        return str(d.name).partition(" (")[0]

    def by_device(d: Any) -> str:
        return f"{short(d)} {str(d.uuid)[-4:]}" if d.name in same else short(d)

    groupings: tuple[Callable[[Any], str], ...] = (
        by_device,
        (lambda d: f"{d.node} {d.kind.upper()}") if many else short,
        lambda d: d.kind.upper(),
    )
    found: dict[tuple[str, str], list[str]] = {}
    for label in groupings:
        found = {}
        for device in devices:
            kind = "measured" if device.method in MEASURED else device.method
            found.setdefault((label(device), kind), []).append(device.uuid)
        if len(found) <= MAX_BANDS:
            break
    order = sorted(found.items(), key=lambda item: item[0][1] != "measured")
    return [(label + (f" × {len(ids)}" if len(ids) > 1 else ""), kind, ids) for (label, kind), ids in order]
