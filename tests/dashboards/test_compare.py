"""Runs beside each other: the right differences, none between things that do not compare, and 80 columns."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from figure_sample import copy_sample, declare, hoofprint

from dashboards.comparison import OF_ENERGY, Comparison, compare
from dashboards.figures import Source
from energy.runs import RunFolder


def lower_loss(folder: RunFolder, nats: float) -> RunFolder:
    """The same run with better evaluations."""
    rows = folder.events()
    for row in rows:
        if "validation_loss" in row:
            row["validation_loss"] -= nats
    folder.metrics_file(0).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def first(tmp_path: Path) -> Source:
    return Source(copy_sample(tmp_path / "first"))


def compared(first: Source, other: RunFolder, **record: Any) -> Comparison:
    """The first run with another, of whose record some keys ('block.key') are set."""
    source = Source(other)
    for key, value in record.items():
        block, _, name = key.partition("__")
        source.record[block][name] = value
    return compare([first, source])


def test_differences_are_against_the_first(first: Source, tmp_path: Path) -> None:
    other = lower_loss(copy_sample(tmp_path / "other"), 0.5)
    found = compared(first, other, energy__energy_it_kwh=0.75 * first.record["energy"]["energy_it_kwh"])
    change = found.differences(found.runs[1])
    assert change["energy_it_kwh"]["relative"] == pytest.approx(-0.25)
    assert change["loss"]["absolute"] == pytest.approx(-0.5)
    assert change["mfu"] == {"absolute": 0.0, "relative": 0.0}
    assert change["carbon_tco2eq"] is None, "not known is no difference of zero"
    assert found.caveats() == []


def test_the_sentence_is_of_the_loss_that_both_reached(first: Source, tmp_path: Path) -> None:
    found = compared(first, lower_loss(copy_sample(tmp_path / "other"), 0.5))
    (sentence,) = found.sentences()
    before, after = found.runs[0].path[-1][0], found.runs[1].path[0][0]
    assert sentence.startswith("other reached validation loss 5.491 with ")
    assert f"{100 * (1 - after / before):.1f} % less energy than first" in sentence
    much_more = replace(found.runs[1], path=[(30 * before, 5.0)])
    (sentence,) = Comparison([found.runs[0], much_more]).sentences()
    assert "with 30.0 times the energy of first (" in sentence


@pytest.mark.parametrize(
    ("record", "figures", "why"),
    [
        ({"energy__boundary": "gpu"}, set(OF_ENERGY), "other boundaries: node against gpu"),
        ({"energy__devices": [{"node": "vm", "kind": "baseline", "samples": 9}]}, set(OF_ENERGY),
         "other boundaries: node against whole nodes"),
        ({"compute__flop_convention": "6ND: 6 x all parameters"}, {"mfu"}, "other FLOP conventions: PaLM against 6ND"),
        ({"data__validation_loss": None}, {"loss"}, "validation loss against training loss"),
        ({"run__partial": True, "run__trained_fraction": 0.61},
         {"energy_it_kwh", "energy_facility_kwh", "carbon_tco2eq", "gpu_hours"}, "61.0 % of its planned tokens"),
        ({"energy__share_measured": 0.0}, set(), "84.7 % against 0.0 %"),
    ],
)  # fmt: skip
def test_what_does_not_compare_has_no_difference_and_a_reason(
    record: dict[str, Any], figures: set[str], why: str, first: Source, tmp_path: Path
) -> None:
    found = compared(first, copy_sample(tmp_path / "other"), **record)
    assert found.blocked(found.runs[1]) == figures
    assert all(found.differences(found.runs[1])[key] is None for key in figures)
    assert len(found.caveats()) == 1
    assert why in found.caveats()[0]


def test_a_run_that_metered_no_device_has_no_other_boundary(first: Source, tmp_path: Path) -> None:
    found = compared(first, copy_sample(tmp_path / "other"), energy__boundary=None)
    assert found.caveats() == [] and found.blocked(found.runs[1]) == set()


def test_losses_of_other_tokenizers_or_other_data_do_not_compare(first: Source, tmp_path: Path) -> None:
    (first.run.path / "tokenizer.model").write_bytes(b"one")
    other = copy_sample(tmp_path / "other")
    (other.path / "tokenizer.model").write_bytes(b"another")
    found = compare([first, Source(other)])
    assert "other tokenizers" in found.caveats()[0]
    assert found.blocked(found.runs[1]) == {"loss", "joule_per_token"}
    assert found.sentences() == []
    both = compared(first, other, data__validation_loss=None)
    assert [text.partition(": ")[2].partition(" ")[0] for text in both.caveats()] == ["other", "validation"]
    (other.path / "tokenizer.model").write_bytes(b"one")
    data = other.read_run()["data"]
    other.update_run(data=data | {"validation_tokens": 7})
    found = compare([first, Source(other)])
    assert found.blocked(found.runs[1]) == {"loss"}
    assert "other validation sets" in found.caveats()[0]


def test_carbon_on_other_grounds_is_said(first: Source, tmp_path: Path) -> None:
    runs = [declare(copy_sample(tmp_path / name)) for name in ("a", "b")]
    sources = [Source(run) for run in runs]
    sources[1].record["energy"]["pue"] = 1.5
    assert compare(sources).caveats() == [
        "a and b: carbon on other grounds: PUE 1.1, a grid series against PUE 1.5, a grid series"
    ]
    sources[1].record["carbon"]["carbon_tco2eq"] = None
    assert compare(sources).caveats() == ["a and b: facility energy by other PUEs: 1.1 against 1.5"]
    sources[0].record["energy"]["energy_facility_kwh"] = None
    assert compare(sources).caveats() == []


def test_only_changed_keys_of_the_specs_are_told(first: Source, tmp_path: Path) -> None:
    other = copy_sample(tmp_path / "other")
    spec = (other.path / "experiment.yaml").read_text()
    (other.path / "experiment.yaml").write_text(spec.replace("seed: 1", "seed: 2").replace("name: sample", "name: x"))
    bare = copy_sample(tmp_path / "bare")
    (bare.path / "experiment.yaml").unlink()
    assert compare([first, Source(other), Source(bare)]).changed_keys() == {"seed": [1, 2, None]}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for number, name in enumerate(("a", "b", "a-run-with-a-rather-long-name-20261126", "d", "e")):
        lower_loss(copy_sample(tmp_path / "runs" / name), 0.1 * number)
    return tmp_path / "runs"


def test_the_screen_fits_80_columns_and_has_all_runs(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    names = sorted(path.name for path in runs.iterdir())
    assert hoofprint(monkeypatch, "compare", *names, "--runs", runs) == 0
    said = capsys.readouterr().out
    assert all(len(line) <= 80 for line in said.splitlines())
    assert said.count("validation loss  ") == 2, "two blocks, each with the first run"
    for expected in ("IT energy (Wh)", "4.86", "MFU", "56.1 %", "evaluation", "completed", "GPU-hours"):
        assert expected in said
    assert "\x1b" not in said


def test_json_is_one_document_and_the_figure_is_written_beside_it(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "p.svg"
    assert hoofprint(monkeypatch, "compare", runs / "a", runs / "b", "--json", "--figure", "-o", out) == 0
    told = capsys.readouterr()
    document = json.loads(told.out)
    assert [run["name"] for run in document["runs"]] == ["a", "b"]
    assert document["differences"][0]["loss"]["absolute"] < 0
    assert told.err == f"{out}\n"
    assert out.read_bytes().startswith(b"<?xml")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("a",), "two runs or more"),
        (("a", "a"), "a is named twice"),
        (("a", "zz"), "is not a run"),
        (("a", "b", "--figure", "power", "-o", "p.svg"), "there is pareto"),
        (("a", "b", "--figure"), "--figure needs -o"),
        (("a", "b", "-o", "p.gif"), "expected a name that ends in"),
    ],
)
def test_bad_input_says_what_to_do(
    arguments: tuple[str, ...],
    expected: str,
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(runs.parent)
    assert hoofprint(monkeypatch, "compare", *arguments) == 2
    assert expected in " ".join(capsys.readouterr().err.split())


def test_a_record_that_cannot_be_read_says_how_to_write_it_again(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs / "b" / "footprint.json").write_text("{")
    assert hoofprint(monkeypatch, "compare", runs / "a", runs / "b") == 2
    assert "write it again: hoofprint report" in capsys.readouterr().err
