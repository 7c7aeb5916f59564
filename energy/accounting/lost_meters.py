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
    last one which held a GPU of that node; a warning for each node. One that the run had left before may go.

    windows: (attempt, start, end in unix s) of all nodes. held: UUIDs of the GPUs that each attempt held. fine:
    all files were read. Meters of a
    run end together, in order or with a killed driver; only a node, or its meter, ends before the others.
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
        uuids = {device.uuid for device, _ in devices}
        longest_s, since = 0.0, 0.0
        for device, session in devices:
            end, attempt = session.span()[1], int(session.ticks["attempt"][-1])
            its = [number for number in ends if uuids & held.get(number, set())]
            its += [] if held.get(attempt) else [attempt]  # where nobody says who held what
            until = max((ends[number] for number in its if number >= attempt), default=end)
            if not session.ended and until - end > (COVERED_S if fine else COARSE_S):
                device.gap_s += until - end
                longest_s, since = max((longest_s, since), (until - end, end))
        if longest_s:
            at = datetime.fromtimestamp(since, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
            warnings.append(
                f"{node}: its meter was lost at {at}: what this node used in the {longest_s:.0f} s from then until the "
                "run went on without it, or ended, is missing, not zero"
            )
    return warnings
