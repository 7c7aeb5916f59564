"""Every address of the dashboard over real HTTP: what is shown, what is missing, and what is kept out."""

import csv
import fcntl
import io
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from live_document import live_document
from server_fakes import START, Client, recorded, serve

from energy.carbon.series import IntensitySeries
from energy.records.record import FILE_NAME
from energy.runs import SERIES, RunFolder, write_json

EVIL = '<img src=x onerror="alert(1)">'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    recorded(runs / "good")
    recorded(runs / "failed", start=START + 1000, uuid="B", status="failed", error=f"CUDA error {EVIL}")
    recorded(runs / f"={EVIL}".replace("/", ""), start=START + 2000, uuid="C", purpose=EVIL)
    (runs / "good" / "report.html").write_text("<script>alert(1)</script><p>report</p>")
    (runs / "foreign").mkdir()
    (runs / "torn").mkdir()
    (runs / "torn" / "run.json").write_text('{"run_id": ')
    (runs / "a-file").write_text("not a folder")
    newer = recorded(runs / "newer", start=START + 3000, uuid="D").path / FILE_NAME
    newer.write_text(newer.read_text().replace("hoofprint/footprint/1", "hoofprint/footprint/99"))
    odd = recorded(runs / "odd", start=START + 4000, uuid="E").path / FILE_NAME
    record = json.loads(odd.read_text())
    record["energy"]["energy_it_kwh"], record["carbon"]["carbon_tco2eq"] = "much", float("nan")
    odd.write_text(json.dumps(record))
    (runs.parent / "secret").mkdir(exist_ok=True)
    recorded(runs.parent / "secret" / "run")
    (runs / "link").symlink_to(runs.parent / "secret" / "run")
    (runs / "failed" / "report.md").symlink_to(runs.parent / "secret" / "run" / "run.json")
    return runs


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[Client]:
    with serve(folder) as client:
        yield client


def test_the_list_has_what_is_good_and_names_what_is_not(client: Client) -> None:
    page = client.text("/")
    for name in ("good", "failed", "newer", "odd"):
        assert f'href="/run/{name}/"' in page
    assert "foreign: not a run, it has no run.json" in page
    assert "torn: cannot be read (run.json: not JSON" in page
    assert "written by a newer version" in page
    assert "not a number in its files: energy_it_kwh, carbon_tco2eq" in page
    assert "link: a link that leads out of the runs folder" in page
    assert "a-file" not in page


def test_filter_sort_and_order_are_in_the_address(client: Client) -> None:
    def names(query: str) -> list[str]:
        return re.findall(r'<th scope="row"><a href="/run/([^"]*)/"', client.text(f"/list{query}"))

    assert names("?q=FAIL") == ["failed"]
    assert names("?q=final+newer") == ["newer"]
    assert names("?q=nothing-like-it") == []
    assert names("?sort=name&q=final") == ["failed", "good", "newer", "odd"]
    assert names("?sort=name&q=final&order=down") == ["odd", "newer", "good", "failed"]
    started = names("?sort=started")
    assert started.index("newer") < started.index("failed") < started.index("good")
    assert names("?sort=started&order=up")[0] == "good"
    assert names("?sort=energy")[-1] == "odd"  # not known comes last either way
    assert names("?sort=energy&order=up")[-1] == "odd"
    assert names("?sort=nonsense&page=-3&order=%00") == started
    page = client.text("/?q=fail&sort=name")
    assert 'value="fail"' in page and "q=fail&amp;sort=name&amp;order=down" in page


def test_nothing_from_the_disk_or_the_address_is_markup(client: Client, folder: Path) -> None:
    evil = quote(f"={EVIL}", safe="")
    for path in ("/", f"/?q={quote(EVIL)}", f"/run/{evil}/", f"/run/{evil}/state", "/run/failed/", "/total",
                 f"/run/{quote(EVIL, safe='')}/", f"/run/failed/{evil}"):  # fmt: skip
        answer = client.ask(path)
        assert answer.status in (200, 404), path
        assert b"<img" not in answer.body and b'onerror="' not in answer.body, path
        assert b" style=" not in answer.body and b"<style" not in answer.body  # the policy would not let them through
        assert not re.search(rb"<script(?! src=\"/static/)", answer.body), path
    assert "&lt;img" in client.text("/run/failed/")


def test_pages_may_only_show(client: Client) -> None:
    for path in ("/", "/total", "/run/good/", "/nothing", "/static/run.js", "/run/good/power.json"):
        headers = client.ask(path).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
    for name in ("style.css", "run.js", "chart.js", "list.js", "theme.js", "icon.svg"):
        answer = client.ask(f"/static/{name}")
        assert answer.status == 200
        assert not re.search(r"(?:https?:)?//[a-z0-9]+\.", answer.text.replace("http://www.w3.org/2000/svg", ""))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "MADEUP"])
def test_only_get_and_head(client: Client, method: str) -> None:
    answer = client.ask("/", method, b"q=1" if method == "POST" else None)
    assert answer.status == 405
    assert answer.headers["Allow"] == "GET, HEAD"
    assert client.ask("//x]", method).status == 405  # no address at all


def test_head_has_the_headers_and_no_body(client: Client) -> None:
    whole, head = client.ask("/run/good/power.csv"), client.ask("/run/good/power.csv", "HEAD")
    assert head.status == 200 and head.body == b""
    assert head.headers["Content-Length"] == str(len(whole.body)) == whole.headers["Content-Length"]


def test_what_did_not_change_is_not_sent_again(client: Client) -> None:
    first = client.ask("/run/good/state")
    again = client.ask("/run/good/state", If_None_Match=first.headers["ETag"])
    assert again.status == 304 and again.body == b""
    assert client.ask("/run/failed/state", If_None_Match=first.headers["ETag"]).status == 200
    packed = client.ask("/", Accept_Encoding="gzip")
    assert packed.headers["Content-Encoding"] == "gzip" and packed.body[:2] == b"\x1f\x8b"


@pytest.mark.parametrize(
    "path",
    [
        "/../../../etc/passwd", "/static/../app.py",
        "/static/..%2fapp.py", "/static/%2e%2e/app.py", "/static//etc/passwd",
        "/run/../secret/run/", "/run/..%2Fsecret%2Frun/", "/run/%2e%2e/", "/run/./",
        "/run/good/../../secret/run/run.json",
        "/run/good/..%2f..%2fsecret%2frun%2frun.json", "/run/good/run.json", "/run/good/energy/n1.ledger", "/run/link/",
        "/run/link/footprint.json", "/run/good%00/", "/run//", "/run/%ff%fe/",
        "/run/good/experiment.yaml", "//etc/passwd",
        "/run/failed/report.md",  # a link that leads out of the run
    ],
)  # fmt: skip
def test_no_path_leaves_the_runs_folder(client: Client, path: str) -> None:
    answer = client.ask(path)
    assert answer.status == 404
    assert b"root:" not in answer.body and b'"run_id"' not in answer.body and b"import" not in answer.body


def test_the_page_of_a_run_with_its_record(client: Client) -> None:
    page = client.text("/run/good/")
    record = client.ask("/run/good/footprint.json").json()
    assert record["schema"] == "hoofprint/footprint/1"
    for words in ("IT energy", "Carbon", "Energy per token", "train step", "startup", "GPU-1"):
        assert words in page
    for link in ("report.html", "footprint.json", "power.csv", "steps.csv"):
        assert f'href="/run/good/{link}"' in page
    assert "report.md" not in page  # it has none


def test_a_run_whose_record_is_newer_or_odd_still_has_its_page(client: Client) -> None:
    assert "written by a newer version" in client.text("/run/newer/").replace("\n", " ")
    assert client.ask("/run/newer/power.json").json()["edges_unix_s"]
    assert "cannot be shown" in client.text("/run/odd/")
    assert "CUDA error" in client.text("/run/failed/")


def test_a_report_can_do_nothing(client: Client) -> None:
    answer = client.ask("/run/good/report.html")
    assert answer.status == 200 and b"report" in answer.body
    policy = answer.headers["Content-Security-Policy"]
    assert "sandbox" in policy and "script-src" not in policy and "allow-scripts" not in policy
    assert answer.headers["Content-Disposition"] is None
    assert client.ask("/run/good/report.html?save").headers["Content-Disposition"].startswith("attachment")
    none = client.ask("/run/newer/report.html")
    assert none.status == 404 and b"hoofprint report newer" in none.body


def test_downloads_have_every_figure(client: Client) -> None:
    rows = list(csv.DictReader(io.StringIO(client.text("/runs.csv?sort=started&order=up"))))
    assert rows[0]["name"] == "good" and float(rows[0]["energy_it_kwh"]) > 0
    evil = next(row for row in rows if "img" in row["name"])
    assert evil["name"].startswith("'=")  # no formula for a spreadsheet
    document = client.ask("/runs.json?q=good").json()
    assert [run["name"] for run in document["runs"]] == ["good"] and len(document["left_out"]) == 3
    total = client.ask("/total.json").json()
    known = [run["energy_it_kwh"] for run in client.ask("/runs.json").json()["runs"]]
    assert total["total"]["energy_it_kwh"] == pytest.approx(sum(each for each in known if each is not None))
    parts = list(csv.DictReader(io.StringIO(client.text("/total.csv"))))
    assert parts[-1]["purpose"] == "total" and parts[-1]["energy_it_kwh_unknown_runs"] == "2"
    steps = list(csv.DictReader(io.StringIO(client.text("/run/good/steps.csv"))))
    assert [int(row["step"]) for row in steps] == list(range(1, 11))
    assert float(steps[0]["compute_flop"]) == 2048 * 11_010_048


def test_steps_know_the_energy_that_they_took(client: Client) -> None:
    found = client.ask("/run/good/steps.json").json()
    assert found["energy_kwh"] == sorted(found["energy_kwh"])
    # 100 W and 210 W by counters and 50 W by a model, from the start of the meter
    seconds = 10 + 11 * 10
    assert found["energy_kwh"][-1] == pytest.approx(360 * seconds / 3.6e6, rel=0.02)
    assert found["hours"][-1] == pytest.approx(seconds / 3600, abs=1e-5)


def test_the_grid_of_a_run_is_beside_its_power(tmp_path: Path) -> None:
    run = recorded(tmp_path / "run")
    (tmp_path / "run" / "grid").mkdir()
    series = IntensitySeries((START - 60, START + 60), (START + 60, START + 600), (300.0, 90.0), "made up")
    write_json(run.path / SERIES, asdict(series))
    with serve(tmp_path) as client:
        found = client.ask("/run/run/power.json").json()
        first, last = found["edges_unix_s"][0], found["edges_unix_s"][-1]
        assert found["grid"] == [[first, START + 60, 300.0], [START + 60, last, 90.0]]
        (run.path / SERIES).write_text("{}")
        found = client.ask("/run/run/power.json").json()
        said = "no grid is drawn, grid/series.json cannot be read: not a series of intensities ('start_unix_s')"
        assert (found["grid"], found["notes"]) == (None, [said])


def test_the_total_page(client: Client) -> None:
    report = client.ask("/total.html")
    assert report.headers["Content-Disposition"] == 'attachment; filename="total.html"' and "<h1>" in report.text
    assert "sandbox" in report.headers["Content-Security-Policy"] and "<script" not in report.text
    page = client.text("/total")
    assert "failed" in page and "final" in page and "no record" in page
    assert 'href="/run/newer/"' in page
    assert "the energy of the final ones" not in page, "of two runs it is not known"


def test_a_page_that_is_not_there(client: Client) -> None:
    for path in ("/nothing", "/run/none/", "/run/good/nothing", "/static/none.js", "/list/more"):
        assert client.ask(path).status == 404
    assert "torn: cannot be read" in client.ask("/run/torn/").text
    assert client.ask(f"/?q={'x' * 5000}").status == 414


def test_numbers_that_are_none_are_not_taken(client: Client) -> None:
    whole = client.ask("/run/good/power.json").json()
    for query in ("from=nan", "to=inf", "points=x", "from=&to=", "points=-5", "points=1e9"):
        found = client.ask(f"/run/good/power.json?{query}").json()
        assert found["run"] == whole["run"] and len(found["edges_unix_s"]) > 1
    beyond = client.ask(f"/run/good/power.json?from={START + 1e6}&to={START + 2e6}").json()
    assert beyond["edges_unix_s"] == []


def test_an_empty_folder_says_how_to_make_a_run_and_finds_it_by_itself(tmp_path: Path) -> None:
    with serve(tmp_path) as client:
        page = client.text("/")
        assert "No runs yet" in page and "hoofprint run" in page and "hoofprint measure" in page
        assert client.ask("/total").status == 200
        assert client.ask("/runs.csv").status == 200 and client.ask("/total.json").status == 200
        recorded(tmp_path / "new")
        assert "/run/new/" in _once(client, "/list", "/run/new/")
        shutil.rmtree(tmp_path / "new")
        assert "No runs yet" in _once(client, "/list", "No runs yet")
        assert client.ask("/run/new/").status == 404
        shutil.rmtree(tmp_path)
        assert "cannot be read" in _once(client, "/list", "cannot be read")


def _once(client: Client, path: str, words: str) -> str:
    """The page once it says so; what is shown is at most a second old, and this waits for far longer."""
    until = time.monotonic() + 20
    while (page := client.text(path)) and words not in page and time.monotonic() < until:
        time.sleep(0.05)
    return page


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded(tmp_path / "good")
    recorded(tmp_path / "shut")
    stat = Path.stat

    def refuse(path: Path, **options: Any) -> os.stat_result:
        if path.parent.name == "shut":  # also for root, whom a mode does not stop
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", refuse)
    with serve(tmp_path) as client:
        page = client.text("/")
    assert "shut: cannot be read (Permission denied)" in page and "/run/good/" in page


def test_ledgers_that_may_not_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, scandir = recorded(tmp_path / "good"), os.scandir

    def refuse(path: Any) -> Any:
        if path == run.energy_dir:  # also for root, whom a mode does not stop
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with serve(tmp_path) as client:
        assert "IT energy" in client.text("/run/good/")
        refused = client.ask("/run/good/power.json")
        assert refused.status == 403 and "“good” cannot be read: Permission denied (energy)" in refused.text


def test_a_live_run_changes_on_its_page(tmp_path: Path) -> None:
    run = recorded(tmp_path / "now", status="running", ended_unix_s=None)
    (run.path / FILE_NAME).unlink()
    lock = os.open(run.path / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        with serve(tmp_path) as client:
            assert "No figures of a training yet" in client.text("/run/now/state")
            for step in (7, 8):
                (run.path / "live.json").write_text(json.dumps(live_document(time.time(), step)))
                page = client.text("/run/now/state")
                assert f"step {step} of 900" in page and 'data-live="1"' in page
                assert "6,200 W" in page and "412" in page and "not read: GPU is lost" in page
                assert "2.40 kWh of 3.00 kWh" in page and "rank 5 waits for data" in page
            assert "step 8 of 900" in _once(client, "/list", "step 8 of 900")
            over = client.ask("/run/now/power.json").json()
            assert over["forecast"]["energy_it_kwh"] == 2.55 and over["events"][0]["text"] == "checkpoint at step 750"
            assert over["limits"] == [{"kwh": pytest.approx(3.0 / 1.09), "text": "limit 3.00 kWh of facility energy"}]
            assert over["lanes"].keys() == {"startup"}
            run.update_run(status="completed")
            ended = client.ask("/run/now/power.json").json()
            assert ended["forecast"] is None and ended["events"] == over["events"] and ended["limits"] == over["limits"]
            run.update_run(status="running")
            (run.path / "live.json").write_text(json.dumps(live_document(time.time(), 8) | {"schema": 99}))
            assert "schema 99" in client.text("/run/now/state")
            (run.path / "live.json").write_text(json.dumps({"schema": 1, "updated_unix_s": time.time()}))
            assert "not understood" in client.text("/run/now/state")
            assert client.ask("/run/now/power.json").status == 200
    finally:
        os.close(lock)


def test_files_of_another_shape_are_named_and_harm_no_other_page(tmp_path: Path) -> None:
    recorded(tmp_path / "good")
    for name, document in {
        "attempts": {"attempts": "none", "created_unix_s": START},
        "time": {"created_unix_s": "yesterday"},
        "model": {"created_unix_s": START, "model": [1], "status": ["odd"], "purpose": {"a": 1}, "name": 7},
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps({"run_id": name, **document}))
        (tmp_path / name / "live.json").write_text("[]")
        shutil.copytree(tmp_path / "good" / "metrics", tmp_path / name / "metrics")
    with serve(tmp_path) as client:
        page = client.text("/")
        assert "time: cannot be read" in page and "/run/good/" in page
        assert client.ask("/total").status == 200
        for name in ("attempts", "model"):
            for what in ("", "state", "power.json", "steps.json", "steps.csv"):
                answer = client.ask(f"/run/{name}/{what}")
                assert answer.status in (200, 422), (name, what, answer.body)
                assert answer.status == 200 or b"not understood" in answer.body


def test_a_run_whose_process_is_gone_is_lost(tmp_path: Path) -> None:
    recorded(tmp_path / "gone", status="running", ended_unix_s=None)
    with serve(tmp_path) as client:
        assert "its process ended without a word" in client.text("/run/gone/")
        assert 's-lost">lost' in client.text("/")


def test_a_thousand_runs_are_one_short_page(tmp_path: Path) -> None:
    model = recorded(tmp_path / "run-0000")
    files = {name: (model.path / name).read_bytes() for name in ("run.json", FILE_NAME)}
    for number in range(1, 1000):
        path = tmp_path / f"run-{number:04}"
        path.mkdir()
        for name, content in files.items():
            (path / name).write_bytes(content)
    with serve(tmp_path) as client:
        assert len(client.ask("/runs.json").json()["runs"]) == 1000  # waits for all of them
        page = client.ask("/")
        assert page.text.count('<th scope="row">') == 500 and "1000 runs, page 1 of 2" in page.text
        assert len(page.body) < 400_000
        rest = client.text("/?page=2")
        assert rest.count('<th scope="row">') == 500 and "run-0000" in page.text + rest
        assert client.text("/?page=77").count('<th scope="row">') == 500  # the last one


def test_a_run_is_not_read_again_until_its_files_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dashboards.server import catalog

    run = recorded(tmp_path / "one")
    read: list[str] = []
    entry = catalog.read_entry
    monkeypatch.setattr(catalog, "read_entry", lambda path: read.append(path.name) or entry(path))
    monkeypatch.setattr(catalog, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(catalog, "REST", 0)
    runs = catalog.Catalog(tmp_path)
    version = runs.listing().version
    assert runs.listing().version == version and read == ["one"]
    RunFolder(run.path).update_run(purpose="development")
    listing = runs.listing()
    assert read == ["one", "one"] and listing.entries[0].purpose == "development" and listing.version == version + 1
