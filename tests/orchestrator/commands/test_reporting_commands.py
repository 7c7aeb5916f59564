"""`hoofprint report`, `verify` and `runs` as they are typed: screens, exit codes, files."""

import json
import stat
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from record_fakes import ACCOUNTING, START, make_run

from energy.records.record import read_entries, write_record
from energy.runs import RunFolder
from orchestrator.commands.listing import runs
from orchestrator.commands.reporting import FORMATS, report, verify


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return make_run(tmp_path / "runs" / "small")


def call(command: click.Command, *arguments: object) -> Result:
    """Exit code 2 stands for ValueError too, as orchestrator.cli makes it."""
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    if isinstance(result.exception, ValueError):
        result.exit_code = 2
    elif result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_without_a_format_all_is_written(run: RunFolder) -> None:
    result = call(report, run.path)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [str(run.path / "report.html"), str(run.path / "report.md")]
    assert (run.path / "footprint.json").exists()
    assert json.loads(call(report, run.path, "--json").stdout) == json.loads((run.path / "footprint.json").read_text())
    by_name = (run.path.name, "--runs", run.path.parent)
    assert call(report, *by_name).stdout == result.stdout
    assert call(verify, *by_name).stdout == call(verify, run.path).stdout != ""
    assert "hoofprint runs --runs DIR" in call(report, "nobody", "--runs", run.path.parent).output


@pytest.mark.parametrize("form", [form for form in FORMATS if form != "pdf"])
def test_each_format_on_stdout_and_in_a_file(run: RunFolder, tmp_path: Path, form: str) -> None:
    shown = call(report, run.path, "--format", form)
    assert shown.exit_code == 0 and shown.stdout.endswith("\n")
    output = tmp_path / f"out.{form}"
    assert call(report, run.path, "--format", form, "-o", output).exit_code == 0
    assert output.read_text() == shown.stdout
    assert shown.stdout.lower().startswith("<!doctype html") == (form == "html")
    assert len(read_entries(run.path)[0]) == 1


def test_a_measured_command_has_its_report_and_no_form_of_a_model(run: RunFolder) -> None:
    run.update_run(purpose="measure", kind="measure")
    assert call(report, run.path).exit_code == 0
    refused = call(report, run.path, "--format", "spdx")
    assert refused.exit_code == 2 and refused.stdout == ""


def test_pdf_needs_chromium_and_says_how_to_get_it(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = tmp_path / "bin"
    bare.mkdir()
    monkeypatch.setenv("PATH", str(bare))
    result = call(report, run.path, "--format", "pdf")
    assert result.exit_code == 2 and "apt install chromium" in result.output
    browser = bare / "chromium"
    browser.write_text(
        f"#!{sys.executable}\nimport sys\n"
        "out = next(a for a in sys.argv if a.startswith('--print-to-pdf='))\n"
        "assert sys.argv[-1].startswith('file://') and sys.argv[-1].endswith('report.html')\n"
        "open(out.partition('=')[2], 'w').write('%PDF')\n"
    )
    browser.chmod(browser.stat().st_mode | stat.S_IXUSR)
    result = call(report, run.path, "--format", "pdf", "-o", tmp_path / "a.pdf")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "a.pdf").read_text() == "%PDF"
    assert call(report, run.path, "--format", "pdf").stdout == f"{run.path / 'report.pdf'}\n"
    browser.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('no display')\n")
    result = call(report, run.path, "--format", "pdf", "-o", tmp_path / "b.pdf")
    assert result.exit_code == 1 and "no display" in result.output


def test_write_edits_a_model_card_and_names_kilograms(run: RunFolder, tmp_path: Path) -> None:
    write_record(run)
    tonnes = json.loads((run.path / "footprint.json").read_text())["carbon"]["carbon_tco2eq"]
    card = tmp_path / "README.md"
    card.write_bytes(f"---\r\nco2_eq_emissions:\r\n  emissions: {tonnes * 1e3:.12f}\r\n---\r\n# Ours\r\n".encode())
    result = call(report, run.path, "--write", card)
    assert result.exit_code == 0 and "those are kilograms" in result.stderr
    assert result.stdout.strip() == str(card)
    assert b"# Ours\r\n" in card.read_bytes() and b"Environmental Impact" in card.read_bytes()
    again = call(report, run.path, "--write", card, "--format", "huggingface")
    assert again.exit_code == 0 and again.stderr == ""


def test_a_card_that_is_refused_is_left_alone(run: RunFolder, tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text("---\nbad: [\n---\n")
    assert call(report, run.path, "--write", card).exit_code == 2
    assert card.read_text() == "---\nbad: [\n---\n"
    assert call(report, run.path, "--write", tmp_path / "none.md").exit_code == 2
    card.write_bytes(b"\xff\xfe")
    assert call(report, run.path, "--write", card).exit_code == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("--format", "codecarbon"), ("-o", "x"), ("--format", "csv", "--json"), ("--format", "csv", "-o", "no/where/x"),
        ("--format", "csv", "--write", __file__), ("--write", __file__, "-o", "x"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_before_anything_is_written(run: RunFolder, arguments: tuple[str, ...]) -> None:
    assert call(report, run.path, *arguments).exit_code == 2
    assert not (run.path / "footprint.json").exists()


def test_a_correction_is_entered_with_its_reason(run: RunFolder) -> None:
    call(report, run.path)
    assert "nothing has changed" in call(report, run.path, "--reason", "to be sure").stderr
    accounting = run.read_run()["accounting"]
    accounting["pue"]["value"] = 1.2
    run.update_run(accounting=accounting)
    result = call(report, run.path, "--reason", "PUE corrected")
    assert "entry 2" in result.stderr
    assert [entry["reason"] for entry in read_entries(run.path)[0]] == ["first record", "PUE corrected"]
    assert call(verify, run.path).exit_code == 0


def test_a_folder_that_cannot_be_written_still_gives_its_exports(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_record(run)
    run.update_run(status="stopped")

    def refuse(path: Path, text: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("energy.records.record.replace_file", refuse)
    result = call(report, run.path, "--format", "json")
    assert result.exit_code == 0 and "cannot be written" in result.stderr
    assert json.loads(result.stdout)["run"]["status"] == "completed"


def test_a_run_without_a_ledger_says_so(tmp_path: Path) -> None:
    bare = make_run(tmp_path / "bare", meter=False)
    assert "no ledger" in call(report, bare.path).stderr
    result = call(verify, bare.path)
    assert result.exit_code == 2 and "no ledger" in str(result.exception)


def test_verify_fits_80_columns_and_names_what_is_wrong(run: RunFolder) -> None:
    write_record(run)
    good = call(verify, run.path)
    assert good.exit_code == 0 and good.stdout.splitlines()[-1] == "small: verified"
    assert good.stdout.count("✓") >= 8
    path = run.path / "footprint.json"
    path.write_text(path.read_text().replace('"tokens_trained": 20480.0', '"tokens_trained": 30480.0'))
    bad = call(verify, run.path)
    assert bad.exit_code == 1 and "data.tokens_trained" in bad.stdout and "✗" in bad.stdout
    assert max(len(line) for line in [*good.stdout.splitlines(), *bad.stdout.splitlines()]) <= 80
    document = json.loads(call(verify, run.path, "--json").stdout)
    assert document["ok"] is False and call(verify, run.path, "--json").exit_code == 1
    assert call(verify, run.path.parent).exit_code == 2


def test_verify_says_what_the_record_says_is_implausible(tmp_path: Path) -> None:
    odd = make_run(tmp_path / "odd", accounting=ACCOUNTING | {"pue": {"value": 9.0, "source": "spec"}})
    write_record(odd)
    told = call(verify, odd.path)
    assert told.exit_code == 0 and "PUE of 9" in told.stdout
    assert told.stdout.splitlines()[-1] == "odd: verified, but one figure is implausible, as the record says"
    assert max(map(len, told.stdout.splitlines())) <= 80


def test_the_list_of_runs(tmp_path: Path) -> None:
    for number, status in enumerate(("completed", "failed", "stopped")):
        name = f"llama-tiny-a-rather-long-name-{number}"
        write_record(make_run(tmp_path / name, start=START + 1000 * number, status=status))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    (tmp_path / "photos").mkdir()
    result = call(runs, "--runs", tmp_path, "--total")
    assert result.exit_code == 0, result.output
    assert "broken" in result.stderr and "photos: not a run" in result.stderr
    failed = next(line for line in result.stdout.splitlines() if " failed " in line)
    assert "12.9" in failed and "2025-06-15" in failed and " Wh " in result.stdout.splitlines()[0]
    assert "\x1b" not in result.stdout
    assert "no embodied figure" in result.stdout
    document = json.loads(call(runs, "--runs", tmp_path, "--total", "--json").stdout)
    assert [entry["status"] for entry in document["runs"]] == ["completed", "failed", "stopped"]
    assert document["total"]["total"]["runs"] == 3 and len(document["left_out"]) == 2
    assert "total" not in json.loads(call(runs, "--runs", tmp_path, "--json").stdout)


def test_no_runs_and_no_folder(tmp_path: Path) -> None:
    assert "no runs in" in call(runs, "--runs", tmp_path).stdout
    missing = call(runs, "--runs", tmp_path / "none")
    assert missing.exit_code == 2 and "no such folder" in str(missing.exception)
