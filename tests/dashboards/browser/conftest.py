"""One Chromium for all tests here, a page for each, and a folder with every kind of run that the pages show."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from figure_sample import copy_sample, declare
from live_document import live_document
from playwright.sync_api import Browser, BrowserContext, expect, sync_playwright
from server_fakes import START, Client, recorded, serve

from browser.runs import EVIL, spiked
from browser.watched import WIDE, Watched
from dashboards.report import write_report
from energy.records.record import FILE_NAME, write_record

expect.set_options(timeout=15_000)  # pages ask every second or two, and a busy machine takes its time
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no Chromium for the browser tests: apt-get install chromium")
    with sync_playwright() as playwright:
        # As root Chromium has no sandbox of its own; it only ever sees the pages of these tests.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield browser
        browser.close()


@pytest.fixture
def servers() -> Iterator[ExitStack]:
    """Servers of one test. They end after its pages (`watch`), which ask until they are closed."""
    with ExitStack() as servers:
        yield servers


@pytest.fixture
def watch(browser: Browser, servers: ExitStack) -> Iterator[Callable[..., Watched]]:
    """Opens pages of a server; afterwards none may have logged an error, lacked an answer or asked elsewhere."""
    contexts: list[BrowserContext] = []
    watched: list[Watched] = []

    def open_page(client: Client, width: int = WIDE, dark: bool = False) -> Watched:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light", accept_downloads=True
        )
        contexts.append(context)
        address = f"http://{client.host}:{client.port}"
        seen = Watched(context.new_page(), address)
        seen.page.set_default_timeout(15_000)
        seen.page.on("console", lambda m: seen.console.append(m.text) if m.type == "error" else None)
        seen.page.on("pageerror", lambda error: seen.console.append(str(error)))
        seen.page.on("request", lambda r: None if r.url.startswith(address) else seen.foreign.append(r.url))
        seen.page.on("requestfailed", seen.on_failed)
        seen.page.on("response", lambda r: seen.failed.append(f"{r.url} {r.status}") if r.status >= 400 else None)
        watched.append(seen)
        return seen

    yield open_page
    for context in contexts:
        context.close()
    assert [fault for seen in watched for fault in seen.faults()] == []


@pytest.fixture(scope="package")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A real run, a failed one, one of hours with a spike, a live one, one with a script for a name, and damage."""
    runs = tmp_path_factory.mktemp("runs")
    real = declare(copy_sample(runs / "llama-h200"))
    write_record(real)
    write_report(real)
    write_record(spiked(runs / "spike"))
    recorded(runs / "failed", start=START + 1000, uuid="B", status="failed", error=f"CUDA error {EVIL}")
    recorded(runs / EVIL, start=START + 2000, uuid="C", purpose=EVIL)
    for number in range(12):
        recorded(runs / f"sweep-{number:02d}", start=START + 9000 + number, uuid=f"S{number}", purpose="development")
    now = recorded(runs / "now", start=time.time() - 130, uuid="L", status="running", ended_unix_s=None)
    (now.path / FILE_NAME).unlink()
    (now.path / "live.json").write_text(json.dumps(live_document(time.time() + 3600)))
    (runs / "torn").mkdir()
    (runs / "torn" / "run.json").write_text('{"run_id": ')
    (runs / "foreign").mkdir()
    lock = os.open(now.path / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    yield runs
    os.close(lock)


@pytest.fixture(scope="package")
def client(runs: Path) -> Iterator[Client]:
    with serve(runs) as client:
        yield client
