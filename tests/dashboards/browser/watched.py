"""A page that is watched: what it logged, what it lacked, and whom else it asked."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from playwright.sync_api import Page, Request

WIDE, NARROW = 1280, 390


@dataclass
class Watched:
    """A page, and everything that it did and should not have."""

    page: Page
    address: str
    console: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    def go(self, path: str) -> Page:
        self.page.goto(self.address + path, wait_until="load")
        return self.page

    def on_failed(self, request: Request) -> None:
        """What is still under way when a page is left is no failure."""
        if "ABORTED" not in (request.failure or ""):
            self.failed.append(f"{request.url} {request.failure}")

    def faults(self) -> list[str]:
        return [*self.console, *self.failed, *self.foreign]

    def forgive(self) -> None:
        """What went wrong so far was meant to."""
        self.console.clear()
        self.failed.clear()


def until(page: Page, expression: str, limit_s: float = 20.0) -> None:
    """Waits until JavaScript says so. Playwright's own way evaluates text in the page, which our policy forbids."""
    end = time.monotonic() + limit_s
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"in {limit_s:.0f} s never: {expression}"
        page.wait_for_timeout(40)
