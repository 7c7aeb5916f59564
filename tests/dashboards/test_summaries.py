"""Reports of a project and of a comparison: one file each, offline, with what the terminal says of them, and on A4."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from figure_sample import copy_sample, declare, hoofprint

from dashboards.summaries import MOST_RUNS, total_html
from energy.human import human_energy
from energy.records.record import write_record
from energy.records.total import Entry, RunList, project_total, roll_up

A4_PT = (595, 842)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A final run, a development run an hour later without a PUE, a failed one an hour after that; 'x' is foreign."""
    for hour, (name, about) in enumerate(
        {"final": {"purpose": "final"}, "a <b>&": {"purpose": "development"}, "crash": {"status": "failed"}}.items()
    ):
        run = copy_sample(tmp_path / "runs" / name, **about)
        if name != "a <b>&":
            declare(run)
        write_record(run)
        record = json.loads((run.path / "footprint.json").read_text())
        for key in ("started_unix_s", "ended_unix_s"):  # so that they did not meter their GPU at once
            record["time"][key] += 3600 * hour
        (run.path / "footprint.json").write_text(json.dumps(record))
    (tmp_path / "runs" / "x").mkdir()
    return tmp_path / "runs"


class Cells(HTMLParser):
    """The rows of all tables as text; fails on a tag that is left open."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("meta", "br"):
            return
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td") and self.rows:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1] and {"th", "td"} & set(self.open):
            self.rows[-1][-1] += data


def markdown_rows(text: str) -> dict[str, list[str]]:
    """{first cell: the others} of all tables; fails where a row has other cells than its head."""
    found, width = {}, 0
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        assert not cells or not width or len(cells) == width, line
        width = len(cells)
        if cells:
            found[cells[0]] = cells[1:]
    return found


def require_offline(html: str) -> None:
    assert not re.search(r'(src|href)="(?!#)|url\((?!#)|@import|<script', html)
    assert len(html) < 2_000_000


def test_a_project_on_one_page(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "total.html"
    assert hoofprint(monkeypatch, "runs", "--runs", runs, "--total", "--format", "html", "-o", output) == 0
    assert capsys.readouterr().out == f"{output}\n"
    html = output.read_text()
    require_offline(html)
    rows = {row[0]: row for row in Cells(html).rows if row}
    _, total = project_total(runs)
    whole = human_energy(total["total"]["energy_it_kwh"])
    assert rows["total"][1:4] == ["3", f"{total['total']['gpu_hours']:.4f}", whole]
    assert rows["total"][4].endswith("+"), "one run has no PUE: at least"
    assert rows["failed"][1] == rows["development"][1] == "1"
    assert rows["development"][4:6] == ["–", "–"], "not known is not zero"
    assert {"final", "a <b>&", "crash"} <= set(rows)
    assert "left out: x: not a run, it has no run.json" in html
    assert "no PUE: facility energy and carbon not known: a &lt;b&gt;&amp;" in html
    assert hoofprint(monkeypatch, "runs", "--runs", runs, "--total", "--format", "markdown", "-o", output) == 0
    cells = markdown_rows(output.read_text())
    assert cells["**total**"] == rows["total"][1:]
    assert all(cells[name] == rows[name][1:] for name in ("failed", "development", "final", "a <b>&", "crash"))


def test_ten_thousand_runs_stay_under_two_megabytes_and_the_rest_is_counted() -> None:
    entries = [Entry(f"run-{n:05d}-of-a-long-sweep", Path("/none"), "completed", "development", 1.7e9, 1.7e9 + 60,
                     energy_it_kwh=float(n)) for n in range(10_000)]  # fmt: skip
    html = total_html(RunList(entries), roll_up(entries), "many")
    require_offline(html)
    listed = re.findall(r">(run-\d+)-of", html.partition("<h2>The runs</h2>")[2])
    assert listed == [f"run-{n:05d}" for n in range(9_999, 9_999 - MOST_RUNS, -1)], "those that took most"
    assert f"And {10_000 - MOST_RUNS} more" in html


def test_a_comparison_on_one_page_has_what_the_terminal_has(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "compare.html"
    names = ("final", "a <b>&", "crash")
    assert hoofprint(monkeypatch, "compare", *names, "--runs", runs, "--format", "html", "-o", output) == 0
    capsys.readouterr()
    assert hoofprint(monkeypatch, "compare", *names, "--runs", runs, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    html = output.read_text()
    require_offline(html)
    assert '<svg role="img"' in html and "<b>&" not in html
    rows = {row[0]: row for row in Cells(html).rows if row}
    assert rows["Validation loss"][1:] == ["5.491", "5.491 =", "5.491 ="]
    assert rows["Status"][3] == "failed, 100.0 % of its plan"
    record = json.loads((runs / "final" / "footprint.json").read_text())
    of_phases = {part["phase"]: part["energy_kwh"] for part in record["energy"]["phases"]}
    assert of_phases["train_step"] > 0 and rows["train step"][1].startswith(human_energy(of_phases["train_step"]))
    assert set(told["changed_keys"]) <= set(rows)
    assert all(f"{text}." in html for text in told["sentences"] if "<" not in text)
    assert hoofprint(monkeypatch, "compare", *names, "--runs", runs, "--format", "markdown", "-o", output) == 0
    text = output.read_text()
    cells = markdown_rows(text)
    assert cells["Validation loss"] == ["5.491", "5.491 (=)", "5.491 (=)"] and cells["Status"] == rows["Status"][1:]
    assert {key.strip("`") for key in cells} >= set(told["changed_keys"]) and cells["train step"][0] != "–"
    assert all(f"**{sentence}.**" in text for sentence in told["sentences"])
    assert "\n\n\n" not in text and all(line.count("|") in (0, 5) for line in text.splitlines())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("runs", "--format", "html", "-o", "a.html"), "--total --format html (or markdown, pdf) -o FILE"),
        (("runs", "--total", "--format", "html"), "--total --format html (or markdown, pdf) -o FILE"),
        (("runs", "--total", "--format", "html", "-o", "no/a.html"), "there is no folder"),
        (("runs", "--total", "--format", "html", "-o", "a.html", "--runs", "none"), "no such folder"),
        (("compare", "final", "crash", "--format", "html"), "--format html (or markdown, pdf) -o FILE"),
        (("compare", "final", "crash", "--format", "html", "--json", "-o", "a.html"), "and is alone"),
        (
            ("compare", "final", "crash", "--format", "svg", "-o", "a.svg"),
            "'svg' is not one of 'html', 'markdown', 'pdf'",
        ),
    ],
)
def test_bad_input_says_what_to_do_and_leaves_no_file(
    arguments: tuple[str, ...], expected: str, runs: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(runs.parent)
    assert hoofprint(monkeypatch, *arguments) == 2
    assert expected in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in runs.parent.iterdir()] == ["runs"]


def test_no_browser_is_said_before_anything_is_read(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(runs))
    output = runs.parent / "a.pdf"
    assert hoofprint(monkeypatch, "compare", "final", "nothing", "--runs", runs, "--format", "pdf", "-o", output) == 2
    assert "apt install chromium" in capsys.readouterr().err
    assert not output.exists()


def test_a_real_browser_prints_it_on_a4(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shutil.which("chromium"), "install it: apt install chromium"
    output = tmp_path / "compare.pdf"
    output.write_text("what lay there before")
    assert hoofprint(monkeypatch, "compare", "final", "crash", "--runs", runs, "--format", "pdf", "-o", output) == 0
    pdf = output.read_bytes()
    assert pdf.startswith(b"%PDF") and pdf.rstrip().endswith(b"%%EOF")
    boxes = {tuple(round(float(part)) for part in box.split()[2:]) for box in re.findall(rb"/MediaBox \[(.*?)\]", pdf)}
    assert boxes == {A4_PT}
    assert 1 <= len(re.findall(rb"/Type /Page\b", pdf)) <= 4
