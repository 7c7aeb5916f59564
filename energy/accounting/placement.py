"""Which of the metered nodes and GPUs were a run's own, where others use the cluster too.

Every node is metered from the beginning, because nobody knows yet where the ranks will run. Once it is known each meter
notes in its ledger how many ranks its node has had. Of a cluster that is shared, a stretch on a node that had none is
left out of the run, what a node used before its first rank (a run may wait for hours until others leave it), and every
GPU that no rank held: what that is, and how much, the account says. Where nothing was noted, or the cluster is the
run's own, all counts.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from energy.accounting.curves import curve_of
from energy.ledger.readings import Session
from energy.runs import RunFolder

RANKS = "ranks"
IN_TURNS = (
    "the run waited for room on a shared cluster, or went on with other GPUs than before: within a command each GPU "
    "that a rank held at some time is counted from its node's first rank to the end, also while others may have had it"
)


def ranks_event(ranks: int, *, shared: bool, on_gpus: bool, from_monotonic_s: float | None = None) -> dict[str, Any]:
    """What a meter notes: how many ranks its node has had so far, whether others may use the cluster, and whether the
    ranks train on GPUs. from_monotonic_s: by the meter's clock, when the node became the run's, if it was others'."""
    note = {"event": RANKS, "ranks": ranks, "shared": shared, "on_gpus": on_gpus}
    return note if from_monotonic_s is None else note | {"from_monotonic_s": from_monotonic_s}


def gpus_held(run: RunFolder) -> tuple[set[str], bool]:
    """UUIDs of the GPUs that the ranks held, as in `RunFolder.devices_used`; and whether others may have had some of
    them in between: attempts held different ones, or waited for room."""
    held = run.devices_by_attempt()
    try:
        attempts = run.read_run().get("attempts") or []
    except (OSError, ValueError):  # whoever makes a record of the run names it
        attempts = []
    since = min(held, default=1)  # what was waited for before that, nobody of the run held
    numbers = [int(each.get("attempt") or 1) for each in attempts if each.get("waited_s")]
    waited = len(attempts) > since and any(number >= since for number in numbers)
    return set().union(*held.values()), waited or len({frozenset(uuids) for uuids in held.values()}) > 1


def own_stretches(sessions: list[Session], ledger: str, warnings: list[str], in_turns: bool = False) -> list[Session]:
    """The stretches in which the node was the run's; what is left out is added to the warnings, and what was not.
    in_turns: others may have had GPUs of the run in between."""
    own, others_j, others_s = [], [], []
    for session in sessions:
        noted, (begun, end) = _noted(session), session.span()
        if noted is None or not noted["shared"] or noted["ranks"] > 0:
            own.append(session)
            if not was_others(session):
                continue
            begun, end = float(session.times()[0]), begun
        others_s.append(end - begun)
        others_j += [curve_of(k, session).between(-math.inf, end).energy_j for k in range(len(session.sensors))]
    if in_turns and any((note := _noted(session)) and note["shared"] and note["on_gpus"] for session in own):
        warnings.append(IN_TURNS)
    if others_s:
        warnings.append(
            f"{ledger}: no rank of this run was on that node of a shared cluster for {math.fsum(others_s):.0f} s: the "
            f"{math.fsum(others_j):.0f} J that its devices used meanwhile are not in the total"
        )
    return own


def is_others(about: dict[str, Any], sessions: Collection[Session], used: Collection[str]) -> bool:
    """Whether a GPU of a shared node belonged to nobody in the run: `used` are the UUIDs that its ranks held, empty
    where they did not say."""
    noted = [note for session in sessions if (note := _noted(session)) is not None and note["shared"]]
    if about["kind"] != "gpu" or not noted or about["uuid"] in used:
        return False
    return bool(used) or not any(note["on_gpus"] for note in noted)


def was_others(session: Session) -> bool:
    """Whether the node was others' until the first rank of this stretch."""
    return any(event.get("event") == RANKS and "from_monotonic_s" in event for event in session.events)


def _noted(session: Session) -> dict[str, Any] | None:
    """The newest note of a stretch."""
    return next((event for event in reversed(session.events) if event.get("event") == RANKS), None)
