"""What actors on many nodes were asked, with a time limit: one that fails or hangs is named, the others' stand."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Generic, TypeVar

import ray

from orchestrator.driver.endings import last_line

POLL_S = 0.25
LONGEST_REASON = 200  # characters of what went wrong on a node
Key = TypeVar("Key", bound=Hashable)


class Answers(Generic[Key]):
    """Results by key, and faults in words of those that have none.

    `died`: keys of those whose process or node is gone. `silent`: of those that have not answered in time.
    """

    def __init__(
        self, asked: Mapping[Key, Any], limit_s: float, tick: Callable[[int, int], None] = lambda done, of: None
    ):
        """asked: Ray's references by key. tick(answered, of): called while it waits."""
        self._waiting = {reference: key for key, reference in asked.items()}
        self._limit_s, self._until, self._tick = limit_s, time.monotonic() + limit_s, tick
        self._asked = len(asked)
        self.results: dict[Key, Any] = {}
        self.faults: dict[Key, str] = {}
        self.died: set[Key] = set()
        self.silent: set[Key] = set()

    def wait(self, longest_s: float | None = None) -> Answers[Key]:
        """Until all have answered, the limit is over, which then is their fault, or `longest_s` is, which is not.

        What has come by then counts, however long after the limit it is asked for.
        """
        until = self._until if longest_s is None else min(self._until, time.monotonic() + longest_s)
        self._tick(self._asked - len(self._waiting), self._asked)
        while self._waiting and (left := until - time.monotonic()) > 0:
            self._collect(1, min(POLL_S, left))
        if self._waiting:
            self._collect(len(self._waiting), 0.0)
        if time.monotonic() >= self._until:
            self.silent |= set(self._waiting.values())
            self.faults |= {key: f"no answer within {self._limit_s:g} s" for key in self._waiting.values()}
            self._waiting.clear()
        return self

    def _collect(self, most: int, timeout_s: float) -> None:
        ready, _ = ray.wait(list(self._waiting), num_returns=most, timeout=timeout_s)
        for reference in ready:
            self._take(self._waiting.pop(reference), reference)
        self._tick(self._asked - len(self._waiting), self._asked)

    def _take(self, key: Key, reference: Any) -> None:
        try:
            self.results[key] = ray.get(reference)
        except ray.exceptions.RayError as error:
            self.faults[key] = reason(error)
            if not isinstance(error, ray.exceptions.RayTaskError):  # which is an answer: what it raised
                self.died.add(key)


def reason(error: Exception) -> str:
    """What went wrong on a node, in one line."""
    said = last_line(str(error)) or repr(error)
    if isinstance(error, ray.exceptions.ActorDiedError) and "Error: " not in said:
        said = f"its process died: {said}"
    return textwrap.shorten(said, LONGEST_REASON, placeholder=" ...")
