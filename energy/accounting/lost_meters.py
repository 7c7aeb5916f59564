"""Meters that were lost while their run went on: from then on what their devices used is missing, and says so."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from energy.ledger.readings import COVERED_S, Session

if TYPE_CHECKING:
    from energy.accounting.account import DeviceEnergy

COARSE_S = 65.0  # where only rows a minute apart are read


def mark_lost(
    metered: Iterable[tuple[DeviceEnergy, Collection[Session]]],
    windows: Iterable[tuple[int, float, float]],
    held: Mapping[int, set[str]],
    fine: bool,
) -> list[str]:
    """Add to the devices' `gap_s` the time from their meter's loss to the end of the attempt that lost it, or of the
    last one which held a GPU of that node; a warning for each node. One that the run had left before may go. A warning
    also for each GPU that a later meter of its node did not find.

    windows: (attempt, start, end in unix s) of all nodes. held: UUIDs of the GPUs that each attempt held, where ranks
    told. fine: all files were read. Meters of a run end together, in order or with a killed driver; only a node, or its
    meter, ends before the others.
    """
    nodes: dict[str, list[tuple[DeviceEnergy, Session]]] = {}
    for device, sessions in metered:
        last = max(sessions, key=lambda session: session.span()[1])
        nodes.setdefault(last.header["node"], []).append((device, last))
    ends: dict[int, float] = {}
    for attempt, _, end in windows:
        ends[attempt] = max(end, ends.get(attempt, end))
    warnings = []
    for node, devices in sorted(nodes.items()):
        newest = max((session for _, session in devices), key=lambda session: session.span()[1])
        end, attempt = newest.span()[1], int(newest.ticks["attempt"][-1])
        uuids = {device.uuid for device, _ in devices}
        here = [number for number in ends if uuids & held.get(number, set())]
        left = attempt not in here and bool(held.get(attempt)) and any(number < attempt for number in here)
        until = max(
            (ends[number] for number in [*here, *([] if left else [attempt])] if number >= attempt), default=end
        )
        warnings += [
            f"{device.name} ({device.uuid}) was not on {node} any more when its meter was started again at "
            f"{_utc(newest.span()[0])}: what it used from then on, if it did, is missing"
            for device, session in devices
            if device.kind == "gpu" and session.span()[1] < newest.span()[0]
        ]
        if newest.ended or until - end <= (COVERED_S if fine else COARSE_S):
            continue
        for device, session in devices:
            if session.span()[1] == end:
                device.gap_s += until - end
        warnings.append(
            f"{node}: its meter was lost at {_utc(end)}: what this node used in the {until - end:.0f} s from then "
            "until the run went on without it, or ended, is missing, not zero"
        )
    return warnings


def _utc(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
