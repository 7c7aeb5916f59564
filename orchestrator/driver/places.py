"""The machines that Ray holds for the ranks of an attempt: the placement group that Ray Train asks it for."""

import time
from collections.abc import Callable
from typing import Any


class Places:
    """Of the attempt that is about to be started; what one before it still holds is given back."""

    def __init__(self) -> None:
        self.give_back()
        self._before = _groups()

    def give_back(self) -> None:
        """Also at an attempt's end. Ray Train (2.60) keeps the placement group of ranks that died while they were
        started: what frees it otherwise is told of it after the start. Nobody else could have these machines, nor would
        the next attempt, as long as the driver lives."""
        from ray.util import remove_placement_group
        from ray.util.placement_group import PlacementGroup, PlacementGroupID

        for place, state in _groups().items():
            if state != "REMOVED":
                remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(place)))

    def held(self) -> bool | None:
        """Whether Ray has room for the ranks; None while it was not asked for any."""
        states = [state for place, state in _groups().items() if place not in self._before]
        return "CREATED" in states if states else None


class Waiting:
    """Tells how long nobody held the workers of an attempt, look by look, while Ray finds no room for them.

    before: it has waited in vain before. Until Ray Train asks for room, it starts: waiting then, and else start-up.
    """

    def __init__(self, has_room: Callable[[], bool | None], waited: Callable[[float], None], before: bool):
        self._has_room, self._waited, self._before = has_room, waited, before
        self._since = time.monotonic() if before else None
        self._over = False

    def look(self) -> None:
        if self._over:
            return
        room, now = self._has_room(), time.monotonic()
        waits = room is False or (room is None and self._before)
        if waits and self._since is not None:
            self._waited(now - self._since)
        self._since = now if waits else None
        self._over = bool(room)


def _groups() -> dict[str, Any]:
    """{id: state} of this driver's placement groups, those that were given back included."""
    import ray
    from ray.util import placement_group_table

    job = ray.get_runtime_context().get_job_id()
    return {place: told["state"] for place, told in placement_group_table().items() if place.endswith(job)}
