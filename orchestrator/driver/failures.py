"""What made a training end before its time, and whether the same would happen again if it were started once more.

A process, a machine or a device that is gone says nothing about the training: it is started again, from its newest
checkpoint. An exception of the training itself (a loss that is not finite, a full disk, a device without memory) would
come again at the same step: it ends the run.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from energy.runs import RunFolder
from orchestrator.driver.endings import cause, is_echo, last_line
from orchestrator.ranks.watchdog import hang_of, process_of

# What CUDA says of a device that failed, and not of a program that does: another start may do better.
_BROKEN_DEVICE = re.compile(r"uncorrectable|unspecified launch failure|hardware error|Xid|NVLink", re.IGNORECASE)
# What Ray Train says of a worker that does not answer, for ten minutes: a watchdog speaks first where it can.
_SILENCE = "WorkerHealthCheckTimeoutError"
_WAITED = re.compile(r"hanging for ([\d.]+) seconds")


class TrainingLost(RuntimeError):
    """A training that is not started again; its message is all that a user needs."""


@dataclass(frozen=True)
class Failure:
    """Why an attempt ended, in one line, and whether another start may do better."""

    said: str
    transient: bool
    never_began: bool = False  # Ray Train waited in vain for workers: others have them, or it counts a lost machine

    @classmethod
    def of(cls, error: Exception, folder: RunFolder, attempt: int) -> "Failure":
        """error: what Ray Train raised. Of a hang the ranks' own watchdogs say more than Ray can."""
        hang = hang_of(folder, attempt)
        if hang is not None:
            return cls(hang, True)
        failures = getattr(error, "worker_failures", None) or {}
        dead = sorted(rank for rank, why in failures.items() if _is_death(why))
        if dead:
            memory = any("low on memory" in str(failures[rank]) for rank in dead)
            how = "killed by Ray, because the machine ran low on memory" if memory else "killed, or the machine is gone"
            was = "was" if len(dead) == 1 else "were"
            return cls(f"{_processes(dead, folder, attempt)} {was} {how}", True)
        silent = sorted(rank for rank, why in failures.items() if type(why).__name__ == _SILENCE)
        if silent:
            waited = _WAITED.search(str(failures[silent[0]]))
            long = f" for {float(waited[1]):.0f} s" if waited else ""
            did = f"did not answer Ray{long}: stopped, or on a machine that hangs"
            return cls(f"{_processes(silent, folder, attempt)} {did}", True)
        if not failures and _is_death(error):
            return cls("the controller of Ray Train was killed, or its machine is gone", True)
        told = getattr(error, "controller_failure", None)
        if type(told).__name__ == "WorkerGroupStartupTimeoutError":
            return cls("the cluster had no room for the workers", True, never_began=True)
        if type(told).__name__ == "WorkerGroupStartupFailedError" or _is_death(told):
            why = f" ({last_line(str(told))})" if "creation task" in str(told) else ""  # it raised something
            return cls(f"a worker was gone before the training began: killed, or its machine is lost{why}", True)
        said = cause(error)
        return cls(said, is_echo(said) or bool(_BROKEN_DEVICE.search(said)))


def _processes(ranks: Iterable[int], folder: RunFolder, attempt: int) -> str:
    places = {rank: process_of(folder, rank, attempt) for rank in ranks}
    named = [f"{rank} ({place})" if place else str(rank) for rank, place in places.items()]
    if len(named) == 1:
        return f"the process of rank {named[0]}"
    return f"the processes of ranks {', '.join(named)}"


def _is_death(error: Any) -> bool:
    """Whether Ray says that a process is gone, and not that it raised something."""
    from ray.exceptions import OutOfMemoryError, RayActorError  # the former: Ray ended it, to keep its machine alive

    return isinstance(getattr(error, "health_check_failure", error), (RayActorError, OutOfMemoryError))
