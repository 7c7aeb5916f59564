"""Runs that appear, go on, are half-written, break and go while somebody looks at them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from build import NoCompiler, build
from playwright.sync_api import Page, expect
from record_fakes import make_run
from server_fakes import recorded, serve

from browser.watched import Watched, until
from energy.records.record import FILE_NAME, write_record
from energy.runs import STOP_FILE

ROOT = Path(__file__).parents[3]
MANY = 100_000  # steps: more than are ever done
STEP = re.compile(r"step ([\d,]+) of 100,000")
GPUS = """gpu uuid=GPU-11111111-1111-1111-1111-111111111111 power=250
gpu uuid=GPU-22222222-2222-2222-2222-222222222222 power=350
"""


@pytest.fixture
def simulated(tmp_path: Path) -> dict[str, str]:
    """The environment of a command that finds two simulated GPUs."""
    try:
        library = build(tmp_path / "nvml")
    except NoCompiler as error:
        pytest.skip(str(error))
    (tmp_path / "gpus.txt").write_text(GPUS)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {"LD_LIBRARY_PATH": str(library), "NVML_SIM": str(tmp_path / "gpus.txt")}
    return environment | {"NVML_SIM_EPOCH": str(int(time.time())), "PYTHONPATH": str(ROOT)}


def its_page(page: Page, wait_s: float) -> None:
    """Opens the run that appears by itself, and sees its power."""
    link = page.get_by_role("link", name="goes-on")
    expect(link).to_be_visible(timeout=1000 * wait_s)
    link.click()
    expect(page.locator("#now")).to_contain_text("running", timeout=1000 * wait_s)
    expect(page.locator("#power-said")).to_contain_text(re.compile(r"mean [\d,]+ W"), timeout=1000 * wait_s)


def goes_on(page: Page) -> None:
    before = page.evaluate("power.energy_kwh[power.energy_kwh.length - 1]")  # by the chart, as it was last fetched
    until(page, f"power.energy_kwh[power.energy_kwh.length - 1] > {before} + 2e-4")
    assert 550 < page.evaluate("Math.max(...power.high_w)") < 700  # 250 and 350 W, and a modelled CPU


def it_ends(page: Page, status: str) -> None:
    """The page asks anew, by itself, and shows the record."""
    expect(page.locator("#now")).to_contain_text(status, timeout=20_000)
    expect(page.get_by_role("link", name="footprint.json")).to_be_visible()
    expect(page.locator("h2", has_text="Where the energy went")).to_be_visible()


def test_a_real_run_goes_on_while_it_is_shown(
    watch: Callable[..., Watched], servers: ExitStack, tmp_path: Path, simulated: dict[str, str]
) -> None:
    (tmp_path / "runs").mkdir()
    wait = f"import os, time\nwhile os.path.exists({str(tmp_path / 'go-on')!r}): time.sleep(0.1)"
    (tmp_path / "go-on").touch()
    command = [sys.executable, "-m", "orchestrator", "measure", "--runs", str(tmp_path / "runs"), "--name", "goes-on"]
    client = servers.enter_context(serve(tmp_path / "runs"))
    page = watch(client).go("/")
    expect(page.locator("#list")).to_contain_text("No runs yet")
    command += ["--quiet", "--", sys.executable, "-c", wait]
    process = subprocess.Popen(command, env=simulated, cwd=ROOT)
    try:
        its_page(page, 30)
        goes_on(page)
    finally:
        (tmp_path / "go-on").unlink()
        assert process.wait(60) == 0
    it_ends(page, "completed")


@pytest.mark.stress
def test_a_real_training_goes_on_while_it_is_shown(
    watch: Callable[..., Watched], servers: ExitStack, tmp_path: Path, simulated: dict[str, str]
) -> None:
    from tiny import write_spec  # brings torch along

    run = tmp_path / "runs" / "goes-on"
    run.parent.mkdir()
    spec = write_spec(tmp_path, steps=MANY)
    command = [sys.executable, "-m", "orchestrator", "run", str(spec), "--runs", str(run.parent), "--name", run.name]
    command += ["--set", f"training.checkpoint_every_steps={MANY}", "--set", "training.evaluate_every_steps=200"]
    client = servers.enter_context(serve(run.parent))
    with (tmp_path / "said.txt").open("w") as said:
        page = watch(client).go("/")
        process = subprocess.Popen(command, env=simulated, cwd=ROOT, stdout=said, stderr=said)
        try:
            its_page(page, 180)
            now = page.locator("#now")
            expect(now).to_contain_text(STEP, timeout=180_000)
            expect(page.locator("#loss-said")).not_to_be_empty(timeout=20_000)
            found = STEP.search(now.inner_text())
            assert found is not None
            goes_on(page)
            expect(now).not_to_contain_text(found[0])
            expect(now).to_contain_text(STEP)
        finally:
            if run.is_dir():
                (run / STOP_FILE).touch()
            else:
                process.terminate()
            code = process.wait(180)
        assert code in (0, 130), (tmp_path / "said.txt").read_text()
        it_ends(page, "stopped")


def test_a_folder_comes_half_written_breaks_and_goes(
    watch: Callable[..., Watched], servers: ExitStack, tmp_path: Path
) -> None:
    recorded(tmp_path / "runs" / "old")
    client = servers.enter_context(serve(tmp_path / "runs"))
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


def test_the_page_says_when_the_dashboard_is_gone(
    watch: Callable[..., Watched], servers: ExitStack, tmp_path: Path
) -> None:
    recorded(tmp_path / "one")
    client = servers.enter_context(serve(tmp_path))
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
