"""Pages as a real browser shows them."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pictures import Picture
from playwright.sync_api import Browser, Page, sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def opened() -> Iterator[Browser]:
    """A browser that is installed; ends the program with how to get one where there is none."""
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        sys.exit("the pages are shown by Chromium, and none is on the PATH: apt install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def dashboard(folder: Path, env: Mapping[str, str]) -> Iterator[str]:
    """Address of a dashboard over the runs of `folder`."""
    command = ["hoofprint", "dashboard", "--runs", "runs", "--port", "0"]
    process = subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        found = re.search(r"http://\S+", said)
        if found is None:
            raise RuntimeError(f"the dashboard did not say where it is: {said!r}")
        yield found.group().rstrip("/")
    finally:
        process.terminate()
        process.wait()


def photograph(browser: Browser, picture: Picture, address: str) -> bytes:
    """A PNG of a page after its charts are drawn. RuntimeError where it logs an error or is not there."""
    context = browser.new_context(viewport={"width": picture.width, "height": picture.height},
                                  color_scheme="dark" if picture.dark else "light")  # fmt: skip
    try:
        page: Page = context.new_page()
        faults: list[str] = []
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        answer = page.goto(address, wait_until="load")
        if answer is not None and answer.status >= 400:
            raise RuntimeError(f"{picture.name}: {address} answers {answer.status}")
        page.wait_for_timeout(1500)
        high = math.ceil(page.evaluate("document.querySelector('main').getBoundingClientRect().bottom")) + 24
        seen = {"x": 0, "y": 0, "width": picture.width, "height": min(high, picture.height)}
        png = page.screenshot(clip=seen, full_page=True)
        if faults:
            raise RuntimeError(f"{picture.name}: {'; '.join(faults)}")
        return png
    finally:
        context.close()
