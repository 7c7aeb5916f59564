"""`hoofprint plot`: a file of each form, and a message with exit code 2 for what cannot be drawn."""

import json
from pathlib import Path

import pytest
from figure_sample import copy_sample, declare, hoofprint


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return declare(copy_sample(tmp_path / "runs" / "one")).path


@pytest.mark.parametrize("form", ["svg", "png", "pdf"])
def test_a_run_by_name_or_folder_gives_the_same_file(
    form: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert hoofprint(monkeypatch, "plot", "one", "--figure", "power", "-o", f"a.{form}") == 0
    assert capsys.readouterr().out == f"a.{form}\n"
    assert hoofprint(monkeypatch, "plot", run, "--figure", "power", "-o", f"b.{form}") == 0
    assert Path(f"a.{form}").read_bytes() == Path(f"b.{form}").read_bytes()
    assert sorted(path.name for path in Path().iterdir()) == [f"a.{form}", f"b.{form}", "runs"]


def test_drawing_writes_nothing_into_the_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert hoofprint(monkeypatch, "plot", run, "--figure", "carbon-spent", "-o", "c.svg") == 0
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("one", "--figure", "powr", "-o", "a.svg"), "did you mean power"),
        (("one", "--figure", "power", "-o", "a.jpg"), "expected a name that ends in .svg, .png or .pdf"),
        (("one", "--figure", "power", "-o", "no/a.svg"), "there is no folder"),
        (("one", "--figure", "power"), "-o power.svg"),
        (("one", "-o", "a.svg"), "plot --list"),
        (("two", "--figure", "power", "-o", "a.svg"), "is not a run: it has no run.json"),
        (("--figure", "power", "-o", "a.svg"), "name its folder"),
        (("one", "--figure", "power", "--x", "tokens", "-o", "a.svg"), "--x is for --figure loss"),
        (("one", "--figure", "loss", "--x", "epochs", "-o", "a.svg"), "expected one of energy, tokens, flop, hours"),
        (("one", "--figure", "places", "--series", "FR", "-o", "a.svg"), "expected PLACE=FILE.csv"),
        (("one", "--figure", "places", "--series", "FR=no.csv", "-o", "a.svg"), "there is no file no.csv"),
        (("one", "--figure", "power", "--json", "-o", "a.svg"), "--json is for --list"),
    ],
)
def test_bad_input_says_what_to_do_and_leaves_no_file(
    arguments: tuple[str, ...],
    expected: str,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert hoofprint(monkeypatch, "plot", *arguments) == 2
    told = capsys.readouterr()
    assert expected in " ".join(told.err.split())
    assert told.out == ""
    assert [path.name for path in Path().iterdir()] == ["runs"]


def test_missing_data_is_an_error_and_no_empty_axes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy_sample(tmp_path / "bare").path
    for file in (run / "energy").iterdir():
        file.unlink()
    assert hoofprint(monkeypatch, "plot", run, "--figure", "power", "-o", tmp_path / "a.svg") == 2
    assert "--figure power of bare: no power readings" in capsys.readouterr().err
    assert not (tmp_path / "a.svg").exists()


def test_a_damaged_ledger_still_gives_a_figure_and_a_note(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = run / "energy" / "vm.ledger"
    whole = ledger.read_bytes()
    ledger.write_bytes(whole[: len(whole) - 40])
    assert hoofprint(monkeypatch, "plot", run, "--figure", "power", "-o", "a.svg") == 0
    assert "note: " in capsys.readouterr().err


def test_the_list_says_what_is_needed_and_of_a_run_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert hoofprint(monkeypatch, "plot", "--list", "--json") == 0
    rows = {row["figure"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["llama-paper"]["needs"] == "no run"
    assert "missing" not in rows["power"]
    bare = copy_sample(tmp_path / "bare").path
    assert hoofprint(monkeypatch, "plot", bare, "--list", "--json") == 0
    rows = {row["figure"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["power"]["missing"] is None
    assert "a PUE (energy.pue)" in rows["carbon-spent"]["missing"]
    assert hoofprint(monkeypatch, "plot", bare, "--list") == 0
    said = capsys.readouterr().out
    assert "gpu-heat" in said
    assert all(len(line) <= 80 for line in said.splitlines())


def test_places_takes_the_series_of_another_place(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [f"{1795687200 + 3600 * hour},{50 + hour}" for hour in range(30)]
    Path("fr.csv").write_text("\n".join(["start_unix_s,intensity_g_per_kwh", *rows]) + "\n")
    plain = ("plot", run, "--figure", "places", "-o")
    assert hoofprint(monkeypatch, *plain, "a.svg") == 0
    assert hoofprint(monkeypatch, *plain, "b.svg", "--series", "FR=fr.csv") == 0
    assert Path("a.svg").read_bytes() != Path("b.svg").read_bytes()
