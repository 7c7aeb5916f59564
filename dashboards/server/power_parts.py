"""What of a node's power is the run's, as the account has it: its own sensor or its parts, without what is others', and
what counters tell of the time between a crash and the restart."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from energy.accounting.curves import curve_of, gap_between
from energy.accounting.placement import is_others, was_others
from energy.accounting.uncertainty import MEASURED
from energy.accounting.whole_node import incredible
from energy.ledger.readings import Session


class Places(NamedTuple):
    """Of the devices of a stretch: the run's own, the GPUs of a shared node that are not, and sensors of the node."""

    own: list[int]
    others: list[int]
    whole: list[int]


class Read(NamedTuple):
    """What was read while a node's own sensor was: J by that, of others' GPUs, and measured of the run's own parts."""

    known_s: float = 0.0
    sensor_j: float = 0.0
    others_j: float = 0.0
    own_j: float = 0.0

    def plus(self, more: Read) -> Read:
        return Read(*(a + b for a, b in zip(self, more, strict=True)))

    @property
    def is_believed(self) -> bool | None:
        """Whether the sensor counts; None where nothing was read."""
        if not self.known_s:
            return None
        parts = [("counter", True, self.others_j), ("counter", False, self.own_j)]
        return incredible(self.sensor_j, parts) is None


def places_of(session: Session, used: Collection[str]) -> Places:
    """used: UUIDs of the GPUs that the run's ranks held."""
    found = Places([], [], [])
    for k, about in enumerate(session.sensors):
        others = is_others(about, [session], used)
        (found.whole if about["kind"] == "node" else found.others if others else found.own).append(k)
    return found


def is_measured(session: Session, place: int) -> bool:
    """Whether a part is measured: by its share of a GPU's energy a MIG instance is not."""
    about = session.sensors[place]
    return about["method"] in MEASURED and float(about.get("share", 1.0)) >= 1.0


def gap_j(old: Session, new: Session, used: Collection[str]) -> float:
    """J of the run's devices from the end of a stretch that was killed to the start of the next, by their counters."""
    start, end = old.span()[1], new.span()[0]
    if old.ended or was_others(new) or end <= start:
        return 0.0
    places = {about["uuid"]: place for place, about in enumerate(old.sensors)}
    total_j = 0.0
    for place in places_of(new, used).own:
        about = new.sensors[place]
        if about["uuid"] not in places:
            continue
        before, after = curve_of(places[about["uuid"]], old), curve_of(place, new)
        booked_j = gap_between(old, before, new, after, about).energy_j
        if booked_j > 0:  # and what its curves have beyond the ends of the stretches, where they meet the gap
            late_j = before.energy_j - np.interp(start, before.time_unix_s, before.cumulative_j)
            early_j = np.interp(end, after.time_unix_s, after.cumulative_j) - after.cumulative_j[0]
            total_j += booked_j + float(late_j + early_j)
    return total_j
