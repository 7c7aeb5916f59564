"""Pages that are shown before all is read: they say what is missing, and fill it in by themselves."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from figure_sample import copy_sample
from playwright.sync_api import expect
from server_fakes import START, recorded, serve

from browser.watched import NARROW, Watched
from dashboards.server import catalog, power_store, steps
from energy.records import total
from energy.records.record import write_record


def test_a_comparison_of_large_runs_is_there_before_its_curves(
    watch: Callable[..., Watched], servers: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, nats in (("first", 0.0), ("other", 0.5)):
        run = copy_sample(tmp_path / name)
        rows = [row | {"validation_loss": row["validation_loss"] - nats} if "validation_loss" in row else row
                for row in run.events()]  # fmt: skip
        run.metrics_file(0).write_text("".join(json.dumps(row) + "\n" for row in rows))
        write_record(run)
    monkeypatch.setattr(power_store, "LARGE_BYTES", 0)
    monkeypatch.setattr(steps, "LARGE_BYTES", 0)
    go_on, sample = threading.Event(), steps.Metrics.sample

    def slowly(*given: Any) -> None:
        assert go_on.wait(60)
        sample(*given)

    monkeypatch.setattr(steps.Metrics, "sample", slowly)
    client = servers.enter_context(serve(tmp_path))
    servers.callback(go_on.set)
    page = watch(client).go("/compare?run=first&run=other")
    reading, verdict = page.locator("#later"), page.locator(".verdict")
    expect(reading).to_contain_text("Reading the curves of first, other")
    expect(page.locator("table").first).to_contain_text("IT energy")
    assert verdict.count() == 0
    page.screenshot(path=tmp_path / "reading.png")
    go_on.set()
    expect(verdict).to_contain_text("other reached validation loss")
    expect(reading).to_have_count(0)
    expect(page.locator("#loss-said")).to_contain_text("Last training loss")
    assert page.locator("#legend button").count() == 2
    page.reload()
    expect(verdict).to_contain_text("other reached validation loss")
    assert reading.count() == 0


def test_the_total_is_filled_in_by_itself(
    watch: Callable[..., Watched], servers: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "runs"
    for name, start in (("a", START), ("b", START + 65), ("c", START + 1000)):
        recorded(runs / name, start=start)
    read_all, look_on = threading.Event(), threading.Event()
    entry, first, taken = catalog.read_entry, total.first_devices, []

    def read(path: Path) -> catalog.Entry:
        taken.append(path)
        assert len(taken) == 1 or read_all.wait(60)
        return entry(path)

    monkeypatch.setattr(catalog, "read_entry", read)
    monkeypatch.setattr(catalog, "TOLD_EVERY_S", 0.0)
    monkeypatch.setattr(total, "first_devices", lambda path: look_on.wait(60) and first(path))
    client = servers.enter_context(serve(runs))
    for event in (read_all, look_on):
        servers.callback(event.set)
    page = watch(client, NARROW).go("/total")
    reading = page.locator(".reading")
    expect(reading).to_contain_text("2 folders are still being read")
    expect(page.locator("#sums")).to_contain_text("1 run, failed and development ones included.")
    page.get_by_role("link", name="CSV").focus()
    read_all.set()
    expect(reading).to_contain_text("(0 of 2 runs): until that is known it is in the sums twice")
    expect(page.locator("#sums")).to_contain_text("3 runs, failed and development ones included.")
    assert page.evaluate("document.activeElement.textContent") == "CSV", "who reads with the keyboard is not thrown out"
    over = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert over == 0
    look_on.set()
    expect(page.locator("tbody")).to_contain_text("metered twice")
    expect(reading).to_have_count(0)
    expect(page.locator("#sums")).to_contain_text("each joule once")
