"""Calls into a driver that may never return: each on a thread of its own, which is left behind where it hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Asked(Generic[T]):
    """A call that is under way, begun when this was made."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._value: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._ask, name="asks-a-driver", daemon=True)
        self._thread.start()

    @property
    def is_answered(self) -> bool:
        return not self._thread.is_alive()

    def answer(self, until_s: float = float("-inf")) -> T:
        """What the call gave or raised. TimeoutError where it has not come by a monotonic time in s."""
        self._thread.join(max(0.0, until_s - time.monotonic()))
        if not self.is_answered:
            raise TimeoutError("it does not answer")
        if self._error is not None:
            raise self._error
        return self._value

    def _ask(self) -> None:
        try:
            self._value = self._call()
        except BaseException as error:  # raised again where the answer is wanted
            self._error = error


def within(limit_s: float, call: Callable[[], T]) -> T:
    """What `call` gives or raises. TimeoutError where it takes longer than `limit_s`."""
    return Asked(call).answer(time.monotonic() + limit_s)
