"""Runs that appear, go on, are half-written, break and go while somebody looks at them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from build import NoCompiler, build
from playwright.sync_api import expect
from record_fakes import make_run
from server_fakes import recorded, serve

from browser.watched import Watched, until
from energy.records.record import FILE_NAME, write_record

ROOT = Path(__file__).parents[3]
GPUS = """gpu uuid=GPU-11111111-1111-1111-1111-111111111111 power=250
gpu uuid=GPU-22222222-2222-2222-2222-222222222222 power=350
"""


def test_a_real_run_goes_on_while_it_is_shown(watch: Callable[..., Watched], tmp_path: Path) -> None:
    try:
        library = build(tmp_path / "nvml")
    except NoCompiler as error:
        pytest.skip(str(error))
    (tmp_path / "gpus.txt").write_text(GPUS)
    (tmp_path / "runs").mkdir()
    go_on = tmp_path / "go-on"
    wait = f"import os, time\nwhile os.path.exists({str(go_on)!r}): time.sleep(0.1)"
    go_on.touch()
    environment = os.environ | {"LD_LIBRARY_PATH": str(library), "NVML_SIM": str(tmp_path / "gpus.txt")}
    environment |= {"NVML_SIM_EPOCH": str(int(time.time())), "PYTHONPATH": str(ROOT)}
    command = ["-m", "orchestrator", "measure", "--runs", str(tmp_path / "runs"), "--name", "goes-on", "--quiet"]
    with serve(tmp_path / "runs") as client:
        page = watch(client).go("/")
        expect(page.locator("#list")).to_contain_text("No runs yet")
        command = [sys.executable, *command, "--", sys.executable, "-c", wait]
        process = subprocess.Popen(command, env=environment, cwd=ROOT)
        try:
            link = page.get_by_role("link", name="goes-on")
            expect(link).to_be_visible(timeout=30_000)  # by itself
            link.click()
            said = page.locator("#power-said")
            expect(page.locator("#now")).to_contain_text("running")
            expect(said).to_contain_text(re.compile(r"mean [\d,]+ W"), timeout=20_000)

            def energy() -> float:
                """IT energy by the chart, in kWh: as it was last fetched."""
                return page.evaluate("power.energy_kwh[power.energy_kwh.length - 1]")

            before = energy()
            until(page, f"power.energy_kwh[power.energy_kwh.length - 1] > {before} + 2e-4")
            assert 550 < page.evaluate("Math.max(...power.high_w)") < 700  # 250 and 350 W, and a modelled CPU
        finally:
            go_on.unlink()
            assert process.wait(60) == 0
        # It ends: the page asks anew, by itself, and shows the record.
        expect(page.locator("#now")).to_contain_text("completed", timeout=20_000)
        expect(page.get_by_role("link", name="footprint.json")).to_be_visible()
        expect(page.locator("h2", has_text="Where the energy went")).to_be_visible()


def test_a_folder_comes_half_written_breaks_and_goes(watch: Callable[..., Watched], tmp_path: Path) -> None:
    recorded(tmp_path / "runs" / "old")
    with serve(tmp_path / "runs") as client:
        seen = watch(client)
        page = seen.go("/")
        left, rows = page.locator("details.left"), page.locator("#list tbody")
        expect(rows).to_contain_text("old")
        new = tmp_path / "runs" / "new"
        new.mkdir()
        (new / "run.json").write_text('{"run_id": "new", "stat')
        expect(left).to_contain_text("1 folder left out")
        left.locator("summary").click()
        expect(left).to_contain_text("new: cannot be read (run.json: not JSON")
        make_run(new)
        expect(rows).to_contain_text("no record")
        write_record(make_run(tmp_path / "made"))
        shutil.copy(tmp_path / "made" / FILE_NAME, new)
        page.get_by_role("link", name="new").click()
        expect(page.locator("#power-said")).to_contain_text("mean")
        # Its record breaks while it is shown: the rest stays, and it is named.
        (new / FILE_NAME).write_text('{"schema": ')
        page.reload()
        expect(page.locator("main")).to_contain_text(f"{FILE_NAME} cannot be shown")
        expect(page.locator("#power-said")).to_contain_text("mean")
        for path in new.rglob("*.ledger"):
            path.write_bytes(b"\0" * 5000)
        page.reload()
        expect(page.locator("#power-notes")).to_contain_text("n1.ledger: byte 0: torn")
        assert seen.faults() == []
        shutil.rmtree(new)
        page.evaluate("refreshState().catch(trouble)")  # an ended run asks only every 10 s
        expect(page.locator("#trouble")).to_contain_text("folder is gone")
        assert page.locator("h1").inner_text() == "new"
        page.get_by_role("link", name="Runs").click()
        expect(rows).not_to_contain_text("new")
        seen.forgive()  # the browser logs the 404 of what is gone


def test_the_page_says_when_the_dashboard_is_gone(watch: Callable[..., Watched], tmp_path: Path) -> None:
    recorded(tmp_path / "one")
    with serve(tmp_path) as client:
        for path, what in (("/", "#list"), ("/run/one/", "h1")):
            seen = watch(client)
            page = seen.go(path)
            if what == "h1":
                expect(page.locator("#power-said")).to_contain_text("mean")
            page.context.set_offline(True)
            ask = "refreshState().catch(trouble)" if what == "h1" else "load()"  # else an ended run waits for 10 s
            page.evaluate(ask)
            expect(page.locator("#trouble")).to_contain_text("No answer from the dashboard")
            expect(page.locator(what)).to_contain_text("one")
            page.context.set_offline(False)
            page.evaluate(ask)
            expect(page.locator("#trouble")).to_be_hidden()
            seen.forgive()
