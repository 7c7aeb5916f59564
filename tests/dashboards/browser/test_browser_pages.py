"""Each page in Chromium, light and dark, wide and narrow: nothing fails or leaves the machine, and all can read it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page
from server_fakes import Client

from browser.runs import EVIL
from browser.watched import NARROW, WIDE, Watched, until
from dashboards.comparison import compare
from dashboards.figures import Source
from dashboards.summaries import comparison_html, total_html
from energy.records.total import project_total
from energy.runs import RunFolder

PAGES = {
    "list": "/",
    "filtered": "/?q=sweep&sort=name&order=down",
    "run": "/run/llama-h200/",
    "live": "/run/now/",
    "script-name": f"/run/{quote(EVIL, safe='')}/",
    "total": "/total",
    "compare": "/compare?run=llama-h200&run=spike&run=failed",
    "cluster": "/cluster",
    "plan": "/plan",
}


def of_comparison(runs: Path) -> str:
    sources = [Source(RunFolder(runs / name)) for name in ("llama-h200", "spike", "failed")]
    return comparison_html(compare(sources), [source.record["energy"]["phases"] for source in sources])


REPORTS: dict[str, Callable[[Path], str]] = {
    "run": lambda runs: (runs / "llama-h200" / "report.html").read_text(encoding="utf-8"),
    "project": lambda runs: total_html(*project_total(runs), "The runs"),
    "comparison": of_comparison,
}


def serious(page: Page) -> list[str]:
    """What axe-core calls serious or critical, with the elements."""
    found: list[dict[str, Any]] = Axe().run(page).response["violations"]
    return [
        f"{each['id']}: {each['help']}: {[node['html'][:120] for node in each['nodes'][:3]]}"
        for each in found
        if each["impact"] in ("serious", "critical")
    ]


def drawn(page: Page) -> None:
    """Waits until the charts of a run are there."""
    until(page, "!document.getElementById('power-said')?.textContent.startsWith('Needs')")
    if page.locator("#now[data-live='1']").count() == 0:
        page.wait_for_load_state("networkidle")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_whole(watch: Callable[..., Watched], client: Client, tmp_path: Path, name: str, dark: bool) -> None:
    page = watch(client, WIDE, dark).go(PAGES[name])
    drawn(page)
    assert page.locator("h1").count() == 1
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(18, 23, 28)" if dark else "rgb(255, 255, 255)")
    for width in (WIDE, NARROW):
        page.set_viewport_size({"width": width, "height": 900})
        until(page, f"innerWidth === {width}")
        over = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert over == 0, f"{over} pixels wider than a screen of {width}"
        page.screenshot(path=tmp_path / f"{name}-{'dark' if dark else 'light'}-{width}.png", full_page=True)
        assert serious(page) == [], width


@pytest.mark.parametrize("of", ["run", "project", "comparison"])
def test_a_report_opens_from_the_disk(browser: Browser, runs: Path, tmp_path: Path, of: str) -> None:
    report = tmp_path / "report.html"
    report.write_text(REPORTS[of](runs), encoding="utf-8")
    asked: list[str] = []
    page = browser.new_page(viewport={"width": NARROW, "height": 900})
    try:
        page.on("request", lambda request: asked.append(request.url))
        page.goto(report.as_uri(), wait_until="load")
        assert asked == [report.as_uri()]
        assert page.locator("h1").count() == 1 and page.locator("svg").count() == (3 if of == "run" else 1)
        for width, scheme in ((NARROW, "light"), (WIDE, "dark")):
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
            over = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert over == 0, f"{over} pixels wider than a screen of {width}"
            page.screenshot(path=tmp_path / f"report-{of}-{scheme}-{width}.png", full_page=True)
            assert serious(page) == [], (width, scheme)
        page.emulate_media(color_scheme="light")
        printed = page.pdf(path=tmp_path / f"report-{of}.pdf", format="A4", print_background=True)
        assert printed.startswith(b"%PDF") and 20_000 < len(printed) < 2_000_000
        assert 1 <= printed.count(b"/Type /Page\n") <= 12
    finally:
        page.close()
