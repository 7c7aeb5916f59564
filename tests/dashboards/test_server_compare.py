"""The page that puts runs beside each other: right changes, what does not compare, and whatever an address may name."""

import csv
import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from figure_sample import copy_sample
from server_fakes import START, Client, recorded, serve

from dashboards.comparison import compare
from dashboards.figures import Source, catalogue
from dashboards.server import catalog as catalog_module
from dashboards.server import power_store, steps
from energy.records.record import FILE_NAME, write_record
from energy.runs import RunFolder

EVIL = '<img src=x onerror="alert(1)">'


def better(path: Path, nats: float = 0.5) -> RunFolder:
    """The sample run with a lower validation loss, another learning rate, and a spec that would like to be markup."""
    folder = copy_sample(path)
    rows = folder.events()
    for row in rows:
        if "validation_loss" in row:
            row["validation_loss"] -= nats
    folder.metrics_file(0).write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = (folder.path / "experiment.yaml").read_text()
    changed = re.sub(r"(peak_lr:) \S+", rf"\1 '{EVIL}'", spec)
    assert changed != spec
    (folder.path / "experiment.yaml").write_text(changed)
    return folder


@contextmanager
def taken_away(file: Path) -> Iterator[None]:
    file.rename(file.with_suffix(".away"))
    yield
    file.with_suffix(".away").rename(file)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    write_record(copy_sample(runs / "first"))
    write_record(better(runs / "other"))
    recorded(runs / "small")
    recorded(runs / f"={EVIL}".replace("/", ""), start=START + 2000, uuid="C", purpose=EVIL)
    recorded(runs / "unmetered", meter=False)
    for number in range(8):
        (runs / f"link-{number}").mkdir()
        shutil.copy(runs / "small" / "run.json", runs / f"link-{number}" / "run.json")
    newer = recorded(runs / "newer", start=START + 3000, uuid="D").path / FILE_NAME
    newer.write_text(newer.read_text().replace("hoofprint/footprint/1", "hoofprint/footprint/99"))
    half = recorded(runs / "half", start=START + 4000, uuid="E").path / FILE_NAME
    half.write_text(half.read_text()[:500])
    (runs / "torn").mkdir()
    (runs / "torn" / "run.json").write_text('{"run_id": ')
    recorded(runs.parent / "secret")
    (runs / "out").symlink_to(runs.parent / "secret")
    return runs


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[Client]:
    with serve(folder) as client:
        yield client


def address(*names: str, of: str = "") -> str:
    return f"/compare{of}?" + "&".join(f"run={quote(name, safe='')}" for name in names)


def test_the_page_says_what_the_command_says(client: Client, folder: Path) -> None:
    page = client.text(address("first", "other", "small"))
    found = compare([Source(RunFolder(folder / name)) for name in ("first", "other", "small")])
    for text in [*found.sentences(), *found.caveats()]:
        assert text in page
    assert found.sentences() and "other reached validation loss" in page
    for words in ("IT energy (Wh)", "train step", "startup", "training.<wbr>peak_lr"):
        assert words in page
    loss = found.differences(found.runs[1])["loss"]
    assert loss is not None and loss["relative"] is not None
    assert f"{100 * loss['relative']:+.3g} %".replace("-", "−") in page
    row = re.search(r'<tr><th scope="row">(?:Validation l|L)oss</th>(.*?)</tr>', page, re.DOTALL)
    assert row and row[1].count("≠") == 1, "only the run of another kind of loss does not compare"
    assert 'href="/compare?run=other&amp;run=first&amp;run=small"' in page  # held against another
    assert 'href="/compare?run=first&amp;run=small"' in page  # without one
    assert page.index("train step") < page.index("evaluation</th>")  # the largest phase on top


def test_curves_are_of_every_run_and_say_where_they_do_not_compare(client: Client) -> None:
    runs = client.ask(address("first", "other", "small", of="-steps.json")).json()["runs"]
    assert [run["name"] for run in runs] == ["first", "other", "small"]
    assert [run["loss_apart"] for run in runs] == [False, False, True]
    for run in runs:
        lengths = {len(run[key]) for key in ("kind", "step", "loss", "energy_kwh", "tokens", "compute_flop", "hours")}
        steps = [kwh for kwh, kind in zip(run["energy_kwh"], run["kind"], strict=True) if kind == "step"]
        assert len(lengths) == 1 and steps == sorted(steps) and steps[-1] > 0
    evaluated = [[x for x, kind in zip(run["loss"], run["kind"], strict=True) if kind == "evaluation"] for run in runs]
    assert evaluated[1] == pytest.approx([loss - 0.5 for loss in evaluated[0]]) and evaluated[0] and not evaluated[2]


def test_downloads(client: Client, folder: Path) -> None:
    names = ("first", "other")
    found = compare([Source(RunFolder(folder / name)) for name in names])
    document = client.ask(address(*names, of=".json"))
    assert document.json() == json.loads(json.dumps(found.as_json())) | {"left_out": []}
    assert document.headers["Content-Disposition"] == 'attachment; filename="compare-first-other.json"'
    rows = list(csv.DictReader(io.StringIO(client.text(address(*names, of=".csv")))))
    change = found.differences(found.runs[1])["loss"]
    assert change is not None
    assert float(rows[1]["loss_change_percent"]) == pytest.approx(100 * (change["relative"] or 0.0))
    assert rows[0]["loss_change_percent"] == "" and float(rows[0]["energy_it_kwh"]) > 0
    for form, begins in (("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")):
        answer = client.ask(address(*names, of=f".{form}"))
        assert answer.status == 200 and answer.body.startswith(begins)
        assert answer.headers["Content-Disposition"].endswith(f'first-other.{form}"')
    report = client.ask(address(*names, of=".html"))
    assert report.headers["Content-Disposition"].endswith('"compare-first-other.html"')
    assert "sandbox" in report.headers["Content-Security-Policy"] and "<script" not in report.text
    assert '<svg role="img"' in report.text and f"{found.sentences()[0]}." in report.text
    none = client.ask(address("first", "unmetered", of=".svg"))
    assert none.status == 404 and "needs two runs or more that have both" in none.text


def test_what_is_not_there_or_broken_is_named_and_the_rest_is_shown(client: Client) -> None:
    page = client.text(address("first", "none", "newer", "half", "torn", "out", "other"))
    for words in ("There is no run “none”", "newer: its files are not understood", "written by a newer version",
                  "half: its files are not understood (footprint.json: not JSON", "torn: cannot be read",
                  "out: a link that leads out of the runs folder"):  # fmt: skip
        assert words in page
    assert "other reached validation loss" in page and page.count('<th scope="col" class="n">') == 2
    assert len(client.ask(address("first", "none", "other", of=".json")).json()["left_out"]) == 1
    alone = client.ask(address("first", "none"))
    assert alone.status == 404 and "There is no run “none”" in alone.text and "the list" in alone.text
    assert client.ask(address("none", "first", of=".csv")).status == 404


def test_two_to_eight_runs(client: Client) -> None:
    assert "Pick 2 to 8 runs" in client.text("/compare")
    assert "One run alone" in client.text(address("first", "first", "first"))
    assert client.text(address("first", "other", "first")).count('<th scope="col" class="n">') == 2
    many = client.ask(address(*(f"link-{number}" for number in range(8)), "small"))
    assert many.status == 400 and "9 runs are too many" in many.text
    assert client.ask(address(*(f"link-{number}" for number in range(8)), "small", of=".json")).status == 400
    assert client.ask(address(*(f"link-{number}" for number in range(8)))).status == 200
    assert client.ask("/compare.exe?run=first&run=other").status == 404
    assert client.ask("/compare/more").status == 404


@pytest.mark.parametrize(
    "name",
    ["../secret", "..", "/etc", "first/../../secret", "first\0", "out", "%2e%2e/secret", "\udcff", "first/energy"],
)
def test_no_name_leaves_the_runs_folder(client: Client, name: str) -> None:
    named = quote(name.encode("utf-8", "surrogateescape"), safe="")
    for of in ("", ".json", ".csv", ".html", ".svg", "-steps.json"):
        answer = client.ask(f"/compare{of}?run=first&run={named}")
        assert answer.status == 404
        assert b"root:" not in answer.body and b'"run_id"' not in answer.body


def test_nothing_of_a_run_or_an_address_is_markup(client: Client) -> None:
    evil = f"={EVIL}"
    for path in (
        address("first", "other", evil),
        address(evil, "first"),
        address("first", EVIL),
        f"/compare?{quote(EVIL)}",
    ):
        answer = client.ask(path)
        assert b"<img" not in answer.body and b'onerror="' not in answer.body
        assert b" style=" not in answer.body and b"<style" not in answer.body
        assert not re.search(rb"<script(?! src=\"/static/)", answer.body)
        assert "unsafe" not in answer.headers["Content-Security-Policy"]
    assert "&lt;img" in client.text(address("first", "other"))  # of the spec
    assert b"<img" not in client.ask(address("first", "other", evil, of=".html")).body
    rows = list(csv.DictReader(io.StringIO(client.text(address("first", evil, of=".csv")))))
    assert rows[1]["run"].startswith("'=")  # no formula for a spreadsheet
    assert re.fullmatch(r'attachment; filename="[A-Za-z0-9._-]+"',
                        client.ask(address("first", evil, of=".csv")).headers["Content-Disposition"])  # fmt: skip


def test_a_run_is_read_again_when_its_files_change_and_only_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog_module, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(catalog_module, "REST", 0)
    monkeypatch.setattr("dashboards.server.sides.REST", 0)
    import dashboards.comparison

    read: list[str] = []
    original = dashboards.comparison.read_compared

    def reading(source: Source) -> Any:
        read.append(source.run.path.name)
        return original(source)

    monkeypatch.setattr(dashboards.comparison, "read_compared", reading)
    for number, name in enumerate(("one", "two")):
        recorded(tmp_path / name, start=START + 1000 * number, uuid=name)
    with serve(tmp_path) as client:
        for _ in range(3):
            assert client.ask(address("one", "two")).status == 200
        assert sorted(read) == ["one", "two"]
        metrics = RunFolder(tmp_path / "two").metrics_file(0)
        with open(metrics, "a") as file:
            file.write('{"event": "step", "attempt": 1, "step": 11, "lo')  # it is being written
        assert client.ask(address("one", "two")).status == 200
        assert sorted(read) == ["one", "two", "two"]
        (tmp_path / "two" / "experiment.yaml").write_text("name: small\nmodel:\n  size: huge\n")
        assert "huge" in client.text(address("one", "two"))
        shutil.rmtree(tmp_path / "two")
        gone = client.ask(address("one", "two"))
        assert gone.status == 404 and "There is no run “two”" in gone.text


def test_files_that_cannot_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate(("one", "two", "shut")):
        recorded(tmp_path / name, start=START + 1000 * number, uuid=name)
    stat = Path.stat

    def refuse(path: Path, **options: Any) -> os.stat_result:
        if path.name == "rank-0.jsonl" and "shut" in path.parts:  # also for root, whom a mode does not stop
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", refuse)
    with serve(tmp_path) as client:
        page = client.text(address("one", "shut", "two"))
    assert "shut: cannot be read (Permission denied: rank-0.jsonl)" in page and "train step" in page


def test_a_page_without_a_loss_has_no_chart_and_no_script_of_one(client: Client) -> None:
    page = client.text(address("link-0", "link-1"))
    assert "static/compare.js" not in page and '<section id="compare"' not in page and "Side by side" in page


def test_runs_are_picked_in_the_list(client: Client) -> None:
    page = client.text("/")
    assert '<form id="pick" action="/compare" method="get">' in page
    assert '<input type="checkbox" form="pick" name="run" value="first" aria-label="Pick first">' in page
    assert f'value="={EVIL}"'.replace("/", "") not in page and 'value="=&lt;img' in page


def test_runs_that_are_too_large_to_be_read_whole_are_compared(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = compare([Source(RunFolder(folder / name)) for name in ("first", "other")])
    monkeypatch.setattr(power_store, "LARGE_BYTES", 0)
    monkeypatch.setattr(steps, "LARGE_BYTES", 0)
    for name, module in (("read", power_store), ("account_run", catalogue)):
        monkeypatch.setattr(module, name, lambda *_, name=name: pytest.fail(f"{name} was called"))
    sampled, sample = [], steps.Metrics.sample
    monkeypatch.setattr(steps.Metrics, "sample", lambda *given: sampled.append(given[1]) or sample(*given))
    with serve(folder) as client:
        at_once = client.text(address("first", "other"))
        assert not sampled, "what the records say is shown before a curve is read"
        told = client.ask(address("first", "other", of="-steps.json")).json()
        page, found = client.text(address("first", "other")), client.ask(address("first", "other", of=".json")).json()
        figure = client.ask(address("first", "other", of=".svg"))
        assert len(sampled) == 2, "and the curves once"
    with serve(folder) as client:
        assert client.text(f"{address('first', 'other')}&whole=yes").replace("&amp;whole=yes", "") == page
    record = folder / "other" / FILE_NAME
    with serve(folder) as client, taken_away(record):
        page_without = client.text(address("first", "small", "other"))
    assert "other: it has no record yet, and is too large for one to be computed here: write it with" in page_without
    curves, sentences = told["runs"], told["sentences"]
    assert "Reading the curves of first, other …" in at_once and sentences[0] not in at_once
    assert "Reading the curves" not in page and f">{sentences[0]}.</p>" in page and sentences == found["sentences"]
    table = re.compile(r"<h2>Side by side</h2>.*", re.DOTALL)
    assert table.findall(at_once) == table.findall(page)
    assert "first, other: so large that the curve of each is drawn from some of its steps" in page
    assert [run["energy_it_kwh"] for run in found["runs"]] == [run.figures["energy_it_kwh"] for run in whole.runs]
    assert figure.status == 200 and len(found["sentences"]) == len(whole.sentences()) == 1
    for run, curve in zip(whole.runs, curves, strict=True):
        path = [(kwh, loss) for kind, kwh, loss in zip(curve["kind"], curve["energy_kwh"], curve["loss"], strict=True)
                if kind == "evaluation"]  # fmt: skip
        assert [loss for _, loss in path] == [loss for _, loss in run.path] and len(path) > 1
        assert [kwh for kwh, _ in path] == pytest.approx([kwh for kwh, _ in run.path], rel=0.15)
        assert curve["kind"].count("step") > 5
        assert None not in [tokens for kind, tokens in zip(curve["kind"], curve["tokens"], strict=True)
                            if kind == "evaluation"], "each with the step that it was after"  # fmt: skip
