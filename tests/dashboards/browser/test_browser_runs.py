"""What people do with the pages: filter, sort, pick, zoom, share a link, use only the keyboard, take files along."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, Route, expect
from server_fakes import START, Client, serve

from browser.proxy import before
from browser.runs import EVIL, HOURS_S, SPIKE_S, SPIKE_W
from browser.watched import Watched, until

COLUMN = """([canvas, from, to]) => {
  // of the chart's pixel columns between two shares of its width: the rows that have the colour of the first node
  const colour = getComputedStyle(document.documentElement).getPropertyValue("--s0").trim();
  const [r, g, b] = [1, 3, 5].map((k) => parseInt(colour.slice(k, k + 2), 16));
  const left = Math.round(from * canvas.width);
  const width = Math.max(1, Math.round(to * canvas.width) - left);
  const { data } = canvas.getContext("2d").getImageData(left, 0, width, canvas.height);
  let most = 0;
  for (let x = 0; x < width; x++) {
    let rows = 0;
    for (let y = 0; y < canvas.height; y++) {
      const at = 4 * (y * width + x);
      if (Math.abs(data[at] - r) + Math.abs(data[at + 1] - g) + Math.abs(data[at + 2] - b) < 12) rows++;
    }
    most = Math.max(most, rows / canvas.height);
  }
  return most;
}"""


def names(page: Page) -> list[str]:
    return [text.strip() for text in page.locator("#list tbody th a").all_text_contents()]


def saved(page: Page, link: Locator, tmp_path: Path) -> tuple[str, bytes]:
    """The name and the bytes of what a link gives as a file."""
    with page.expect_download() as coming:
        link.click()
    path = tmp_path / coming.value.suggested_filename
    coming.value.save_as(path)
    return path.name, path.read_bytes()


def test_the_list_is_filtered_sorted_and_picked_from(watch: Callable[..., Watched], client: Client) -> None:
    page = watch(client).go("/")
    assert len(names(page)) == 17 and "No runs yet" not in page.content()
    page.keyboard.press("/")
    page.keyboard.type("SWEEP devel", delay=5)
    expect(page.locator(".count")).to_contain_text("12 runs of 17")
    assert all(name.startswith("sweep-") for name in names(page))
    page.get_by_role("link", name="Run", exact=True).click()
    page.wait_for_url("**/?q=SWEEP+devel&sort=name*")
    assert names(page) == [f"sweep-{number:02d}" for number in range(12)]
    page.reload()
    assert page.locator("#q").input_value() == "SWEEP devel" and names(page)[0] == "sweep-00"
    page.get_by_role("link", name="Run").filter(has_text="↑").click()
    page.wait_for_url("**order=down*")
    assert names(page)[0] == "sweep-11"
    page.get_by_role("link", name="sweep-07").click()
    assert page.locator("h1").inner_text() == "sweep-07"
    page.go_back()
    assert names(page)[0] == "sweep-11"
    page.locator("#q").fill("no such thing")
    expect(page.locator("#list")).to_contain_text("No run has “no such thing”")


def test_all_can_be_reached_with_the_keyboard(watch: Callable[..., Watched], client: Client) -> None:
    page = watch(client).go("/")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.textContent.trim() || document.activeElement.id"))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", f"one cannot see where one is: {reached[-1]}"
        if reached[-1] == "llama-h200":
            break
    assert {"hoofprint", "Runs", "Total", "Dark", "q", "CSV", "JSON", "Status", "now", "llama-h200"} <= set(reached)
    page.keyboard.press("/")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("j")
    page.keyboard.press("k")
    first = page.evaluate("document.activeElement.textContent")
    assert first == names(page)[0]
    page.keyboard.press("Enter")
    page.wait_for_url("**/run/*/")
    chart = page.locator("#power")
    chart.focus()
    until(page, "document.getElementById('power-said').textContent.includes('mean')")
    page.keyboard.press("+")
    page.wait_for_url("**from=*")
    page.keyboard.press("0")
    until(page, "!location.search.includes('from')")


def test_a_second_in_hours_is_seen_and_can_be_looked_at(watch: Callable[..., Watched], client: Client) -> None:
    page = watch(client).go("/run/spike/")
    said = page.locator("#power-said")
    expect(said).to_contain_text(f"highest second {SPIKE_W:.0f} W")
    canvas = page.locator("#power canvas")
    box = canvas.bounding_box()
    assert box is not None
    inner = box["width"] - 70 - 14

    def at(second: float, first: float = 0.0, last: float = float(HOURS_S)) -> float:
        return box["x"] + 70 + inner * (second - first) / (last - first)

    def node_height(near: float) -> float:
        share = (near - box["x"]) / box["width"]
        return page.evaluate(COLUMN, [canvas.element_handle(), share - 0.01, share + 0.01])

    flat = node_height(at(SPIKE_S))
    assert 0.25 < flat < 0.5  # the mean of a stretch of it hides the second
    middle = box["y"] + 120
    found: list[dict[str, Any]] = []
    page.on("response", lambda answer: found.append(answer.json()) if "power.json" in answer.url else None)
    page.mouse.move(at(SPIKE_S - 60), middle)
    page.mouse.down()
    page.mouse.move(at(SPIKE_S), middle)
    page.mouse.move(at(SPIKE_S + 60), middle)
    with page.expect_response("**/power.json?*from=*"):
        page.mouse.up()
    page.wait_for_url("**from=*")
    until(page, "document.getElementById('power-said').textContent.includes('lowest')")
    first, last = found[-1]["edges_unix_s"][0] - START, found[-1]["edges_unix_s"][-1] - START
    assert first < SPIKE_S < last and last - first == pytest.approx(120, abs=25)
    assert found[-1]["step_s"] <= 1.0 and max(found[-1]["nodes"]["n1"]) == pytest.approx(SPIKE_W, rel=0.02)
    page.mouse.move(at(SPIKE_S + 0.5, first, last), middle)
    expect(said).to_contain_text("690 W (")
    page.mouse.move(5, 5)
    assert node_height(at(SPIKE_S + 0.5, first, last)) > 1.9 * flat
    address = page.url
    page.reload()
    expect(said).to_contain_text("mean")
    assert page.url == address
    assert found[-1]["edges_unix_s"][0] - START == pytest.approx(first, abs=0.2)
    assert "from=" in (page.locator("#power-csv").get_attribute("href") or "")
    page.get_by_role("button", name="Whole run").click()
    until(page, "!location.search && power.edges_unix_s.at(-1) - power.edges_unix_s[0] > 9000")
    # Where half of the time is not known it is not 0 W in the mean, and nothing is known where there is none of it.
    page.evaluate("power.energy_kwh = power.energy_kwh.map((kwh) => kwh / 2)")
    page.evaluate("power.nodes.n1 = power.nodes.n1.map((w, k) => (k % 2 ? w : null))")
    page.evaluate("drawPower(), sayPower(null)")
    expect(said).to_contain_text("mean 30")
    page.evaluate("power.nodes.n1.fill(null), drawPower(), sayPower(null)")
    expect(said).to_contain_text("mean not known")
    expect(page.locator("#energy-said")).to_have_text("not known in what is shown")
    page.evaluate("power.energy_kwh.fill(null), drawPower()")
    expect(page.locator("#energy-said")).to_have_text("")


def test_a_late_answer_of_an_earlier_zoom_is_not_drawn(watch: Callable[..., Watched], client: Client) -> None:
    page = watch(client).go("/run/spike/")
    expect(page.locator("#power-said")).to_contain_text("mean")
    held: list[Route] = []
    page.route("**/power.json?*from=*", lambda route: held.append(route))
    page.locator("#power").focus()
    page.keyboard.press("+")
    until(page, "location.search.includes('from')")
    for _ in range(200):
        if not held:
            page.wait_for_timeout(20)
    with page.expect_response("**/power.json?*"):
        page.keyboard.press("0")
    until(page, "!location.search")
    with page.expect_response("**/power.json?*from=*") as late:
        held[0].continue_()
    late.value.finished()
    page.wait_for_timeout(200)
    assert page.evaluate("power.edges_unix_s.at(-1) - power.edges_unix_s[0] > 9000"), "the whole run, as one asked last"


def test_loss_is_shown_against_what_one_chooses(watch: Callable[..., Watched], client: Client) -> None:
    page = watch(client).go("/run/llama-h200/")
    said = page.locator("#loss-said")
    expect(said).to_contain_text("Wh")
    expect(page.locator("#power-said")).to_contain_text("; above it startup, compile, checkpoint, evaluation")
    page.get_by_label("against").select_option("tokens")
    expect(said).to_contain_text("tokens")
    page.reload()
    expect(said).to_contain_text("tokens")
    assert page.url.endswith("?x=tokens")


def test_files_can_be_taken_along(watch: Callable[..., Watched], client: Client, tmp_path: Path) -> None:
    page = watch(client).go("/?q=sweep")
    name, content = saved(page, page.get_by_role("link", name="CSV"), tmp_path)
    assert name == "runs.csv" and len(list(csv.DictReader(io.StringIO(content.decode())))) == 12
    name, content = saved(page, page.get_by_role("link", name="JSON"), tmp_path)
    assert name == "runs.json" and len(json.loads(content)["runs"]) == 12
    page.goto(page.url.partition("?")[0] + "run/llama-h200/")
    name, content = saved(page, page.get_by_role("link", name="report.html"), tmp_path)
    assert name == "llama-h200-report.html" and b"<svg" in content
    name, content = saved(page, page.get_by_role("link", name="footprint.json"), tmp_path)
    assert json.loads(content)["run"]["run_id"] == "sample"
    name, content = saved(page, page.get_by_role("link", name="power.csv"), tmp_path)
    rows = list(csv.DictReader(io.StringIO(content.decode())))
    assert name == "llama-h200-power.csv" and len(rows) > 60 and float(rows[30]["power_w vm"]) > 100
    name, content = saved(page, page.get_by_role("link", name="steps.csv"), tmp_path)
    assert len(list(csv.DictReader(io.StringIO(content.decode())))) >= 40
    page.get_by_text("Figures for print").click()
    name, content = saved(page, page.get_by_role("link", name="power as PDF"), tmp_path)
    assert name == "llama-h200-power.pdf" and content.startswith(b"%PDF")
    page.get_by_role("link", name="Report", exact=True).click()
    assert page.url.endswith("report.html") and page.locator("h1").count() == 1


def test_runs_are_picked_and_compared(watch: Callable[..., Watched], client: Client, tmp_path: Path) -> None:
    page = watch(client).go("/?q=sweep&sort=name")
    compare = page.get_by_role("button", name="Compare")
    assert compare.is_hidden()
    page.get_by_label("Pick sweep-02").check()
    assert compare.is_disabled()
    page.locator("#q").fill("llama")
    expect(page.locator(".count")).to_contain_text("1 run of 17")
    page.get_by_role("link", name="llama-h200").focus()
    page.keyboard.press("x")  # what was picked before stays picked
    expect(page.locator("#picked")).to_have_text("sweep-02, llama-h200")
    compare.click()
    page.wait_for_url("**/compare?run=sweep-02&run=llama-h200")
    until(page, "document.getElementById('loss-said').textContent.includes('loss')")
    assert page.locator("thead th").filter(has_text="sweep-02").count() >= 1
    name, content = saved(page, page.get_by_role("link", name="Figure (SVG)"), tmp_path)
    assert name.endswith(".svg") and content.startswith(b"<?xml") and b"sweep-02" in content
    name, content = saved(page, page.get_by_role("link", name="Report"), tmp_path)
    assert name == "compare-sweep-02-llama-h200.html" and content.startswith(b"<!doctype html>")
    name, content = saved(page, page.get_by_role("link", name="CSV"), tmp_path)
    assert [row["run"] for row in csv.DictReader(io.StringIO(content.decode()))] == ["sweep-02", "llama-h200"]


@pytest.mark.parametrize("strip", [False, True], ids=["whole", "stripped"])
def test_all_of_it_works_behind_a_proxy(
    watch: Callable[..., Watched], servers: ExitStack, runs: Path, tmp_path: Path, strip: bool
) -> None:
    prefix = "/team/energy"
    behind = servers.enter_context(serve(runs, prefix=prefix))
    proxy, client = servers.enter_context(before(behind, prefix, strip))
    page = watch(client).go(f"{prefix}/?q=sweep&sort=name")
    page.locator("#q").fill("llama")
    expect(page.locator(".count")).to_contain_text("1 run of 17")
    page.get_by_role("link", name="llama-h200").click()
    said = page.locator("#power-said")
    expect(said).to_contain_text("mean")
    page.locator("#power").focus()
    page.keyboard.press("+")
    page.wait_for_url("**from=*")
    page.reload()
    expect(said).to_contain_text("mean")
    page.get_by_text("Figures for print").click()
    name, _ = saved(page, page.get_by_role("link", name="phases as SVG"), tmp_path)
    assert name == "llama-h200-phases.svg"
    for place, what in (("Total", "Project total"), ("Cluster", "Cluster"), ("Compare", "Compare")):
        page.get_by_role("link", name=place, exact=True).click()
        expect(page.locator("h1")).to_have_text(what)
    page.goto(f"http://{client.host}:{client.port}{prefix}/compare?run=sweep-02&run=llama-h200")
    expect(page.locator("#loss-said")).to_contain_text("loss")
    page.get_by_role("link", name="sweep-02", exact=True).click()
    expect(said).to_contain_text("mean")
    assert proxy.strayed == []


def test_a_script_in_a_name_is_only_text(watch: Callable[..., Watched], client: Client) -> None:
    seen = watch(client)
    page = seen.go("/")
    page.get_by_role("link", name=EVIL).click()
    assert page.locator("h1").inner_text() == EVIL
    assert page.locator("main img").count() == 0 and page.title() == f"{EVIL} · hoofprint"
    until(page, "document.getElementById('power-said').textContent.includes('mean')")
    seen.go("/?q=" + "%3Cimg%20src%3Dx%3E%22'")
    assert page.locator("#q").input_value() == "<img src=x>\"'" and page.locator("main img").count() == 0
    expect(page.locator("#list")).to_contain_text("No run has “<img src=x>\"'”")
    seen.go("/total")
    assert page.locator("main img").count() == 0 and page.locator("tbody").inner_text().count("onerror") == 1


def test_the_colours_that_one_chose_stay(watch: Callable[..., Watched], client: Client) -> None:
    page = watch(client).go("/")
    page.get_by_role("button", name="Dark colours").click()
    expect(page.locator("body")).to_have_css("background-color", "rgb(18, 23, 28)")
    page.get_by_role("link", name="Total").click()
    expect(page.locator("h1")).to_have_text("Project total")
    expect(page.locator("body")).to_have_css("background-color", "rgb(18, 23, 28)")
