"""Loads a page in headless Chromium with nothing in its cache, and says when what was painted, and what it took."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from playwright.sync_api import Browser, CDPSession, Page, sync_playwright

# Asks at every frame whether what is looked for is there, in the page itself: a question from outside takes longer.
WATCH = """
window.__shown = {};
window.__asked = %s;
const look = () => {
  for (const [name, test] of Object.entries(window.__asked)) {
    if (name in window.__shown) continue;
    try { if (document.body && test()) window.__shown[name] = performance.now() / 1000; } catch {}
  }
  requestAnimationFrame(look);
};
requestAnimationFrame(look);
"""
DONE = "Object.keys(window.__asked).every((name) => name in window.__shown)"
PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"


@dataclass
class Load:
    """first_s: first contentful paint; shown_s: when what was looked for was there, if within the limit."""

    first_s: float | None
    shown_s: dict[str, float]
    kb: float
    requests: int
    foreign: list[str]

    def as_json(self) -> dict[str, Any]:
        return self.__dict__.copy()


@contextmanager
def chromium() -> Iterator[Browser]:
    """SystemExit where there is none."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        raise SystemExit("no Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield browser
        browser.close()


def load(browser: Browser, address: str, shown: dict[str, str], limit_s: float = 60.0, picture: str = "") -> Load:
    """A load in a new profile. shown: JavaScript expressions that are true once what one came for is drawn."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    try:
        page = context.new_page()
        sizes: list[float] = []
        asked: list[str] = []
        session = context.new_cdp_session(page)
        session.send("Network.enable")
        session.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
        page.on("request", lambda request: asked.append(request.url))
        tests = ", ".join(f"{json.dumps(name)}: () => ({test})" for name, test in shown.items())
        page.add_init_script(WATCH % f"{{{tests}}}")
        page.goto(address, wait_until="commit", timeout=limit_s * 1000)
        _until(page, DONE, limit_s)  # what does not come has no time: the row says so
        times = page.evaluate("window.__shown")
        first_ms = page.evaluate(PAINT)
        if picture:
            page.screenshot(path=picture)
        host = "/".join(address.split("/")[:3])
        foreign = sorted({each.split("/")[2] for each in asked if not each.startswith((host, "data:", "blob:"))})
        return Load(None if first_ms is None else first_ms / 1000, times, sum(sizes) / 1000, len(asked), foreign)
    finally:
        context.close()


def busy_share(browser: Browser, address: str, shown: str, seconds: float) -> float:
    """The share of its main thread that a page takes while it is open, once it has settled."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    try:
        page = context.new_page()
        page.goto(address)
        if not _until(page, shown, 60.0):
            raise RuntimeError(f"{address}: never there: {shown}")
        session = context.new_cdp_session(page)
        session.send("Performance.enable")
        page.wait_for_timeout(3000)
        before, began = _task_s(session), time.monotonic()
        page.wait_for_timeout(seconds * 1000)
        return (_task_s(session) - before) / (time.monotonic() - began)
    finally:
        context.close()


def _until(page: Page, expression: str, limit_s: float) -> bool:
    """Playwright's own way evaluates text in the page, which the policy of a strict page forbids."""
    end = time.monotonic() + limit_s
    while not page.evaluate(f"!!({expression})"):
        if time.monotonic() > end:
            return False
        page.wait_for_timeout(50)
    return True


def _task_s(session: CDPSession) -> float:
    metrics = session.send("Performance.getMetrics")["metrics"]
    return next(each["value"] for each in metrics if each["name"] == "TaskDuration")
