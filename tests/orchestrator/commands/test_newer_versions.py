"""A run folder that a newer hoofprint wrote: every command that would believe it refuses it, and changes nothing."""

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from record_fakes import make_run
from tiny import write_spec

from energy.ledger import frames
from energy.records.record import write_record
from energy.run_version import CHECKPOINT_SCHEMA, SPEC_VERSION, require_known
from model.config import LlamaConfig
from orchestrator.checkpoints.saved import write_manifest
from orchestrator.cli import main
from orchestrator.driver.run_lock import RunLock
from orchestrator.models.folder import FIRST, open_model_folder, write_model_file
from orchestrator.plan.earlier_runs import find_evidence
from orchestrator.spec.experiment import Experiment


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def newer_frame(run: Path) -> None:
    """The first frame is of a layout that is not known here."""
    path = run / "energy" / "n1.ledger"
    head = bytearray(path.read_bytes())
    payload = bytes(head[frames.HEAD.size : frames.HEAD.size + 40])
    checksum = frames.zlib.crc32(payload, frames.seed(frames.HEADER, 3))
    path.write_bytes(frames.HEAD.pack(frames.MAGIC, frames.HEADER, 3, len(payload), checksum) + payload)


def newer_header(run: Path) -> None:
    header = frames.encode(frames.HEADER, frames.encode_json({"schema": "hoofprint/ledger/3", "session": 0}))
    (run / "energy" / "n1.ledger").write_bytes(header)


NEWER: dict[str, tuple[Callable[[Path], None], str]] = {
    "run.json": (
        lambda run: replace(run / "run.json", '"hoofprint": "0.1.0"', '"hoofprint": "17.2.0"'),
        r"run\.json is of hoofprint 17\.2\.0; .*pip install 'hoofprint>=17\.2\.0'",
    ),
    "record": (
        lambda run: replace(run / "footprint.json", "hoofprint/footprint/1", "hoofprint/footprint/12"),
        "footprint.json has the schema hoofprint/footprint/12, and hoofprint/footprint/1 is known",
    ),
    "frame": (newer_frame, "energy/n1.ledger has the schema hoofprint/ledger/3, and hoofprint/ledger/2 is known"),
    "header": (newer_header, "energy/n1.ledger has the schema hoofprint/ledger/3, and hoofprint/ledger/2 is known"),
    "checkpoint": (
        lambda run: replace(
            run / "checkpoints" / "step-00000016" / "manifest.json", CHECKPOINT_SCHEMA, "hoofprint/checkpoint/2"
        ),
        "step-00000016/manifest.json has the schema hoofprint/checkpoint/2, and hoofprint/checkpoint/1 is known",
    ),
    "spec": (
        lambda run: (run / "experiment.yaml").write_text("spec_version: 2\nname: small\n") and None,
        "experiment.yaml has the spec_version 2, and 1 is known",
    ),
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = make_run(tmp_path / "runs" / "newer")
    write_record(folder)
    for step in (8, 16):
        checkpoint = folder.path / "checkpoints" / f"step-{step:08d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / ".metadata").touch()
        write_manifest(checkpoint, {})
    return folder.path


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("what", NEWER)
def test_what_a_newer_version_wrote_is_refused_and_left_as_it_is(
    what: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    require_known(run)
    spec = write_spec(tmp_path / "spec")
    make, said = NEWER[what]
    make(run)
    other = make_run(tmp_path / "runs" / "other", uuid="B").path
    before, config = files(run), LlamaConfig(dim=32, n_layers=2, n_heads=2, vocab_size=400)
    for command in (
        ["run", str(spec), "--resume", str(run)],
        ["report", str(run)],
        ["report", str(run), "--format", "csv"],
        ["verify", str(run)],
        ["readings", str(run)],
        ["generate", str(run), "--prompt", "x"],
        ["top", str(run), "--once"],
        ["status", str(run)],
        ["stop", str(run)],
        ["plot", str(run), "--figure", "power", "-o", str(tmp_path / "power.svg")],
        ["compare", str(other), str(run)],
    ):
        monkeypatch.setattr(sys, "argv", ["hoofprint", *command])
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr().err
        assert ended.value.code == 2, (command, told)
        assert re.search(f"was written by a newer version of hoofprint: .*{said}", told), (command, told)
        assert "nothing was changed" in told and "Traceback" not in told
    _, [skipped] = find_evidence(run.parent, config, 1, None, "n1", cpu=False)
    assert skipped.startswith("newer: ") and re.search(f"newer version of hoofprint: .*{said}", skipped)
    assert files(run) == before
    assert not (tmp_path / "power.svg").exists()


def test_one_that_runs_is_named_among_those_that_run_and_not_read(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replace(run / "run.json", '"status": "completed"', '"status": "running"')
    NEWER["run.json"][0](run)
    lock = RunLock(run)
    try:
        monkeypatch.setattr(sys, "argv", ["hoofprint", "status", "--runs", str(run.parent), "--json"])
        main()
    finally:
        lock.release()
    [seen] = json.loads(capsys.readouterr().out)["runs"]
    assert (seen["run"], seen["status"], seen["step"], seen["energy_it_kwh"]) == ("newer", "running", None, None)
    assert "was written by a newer version of hoofprint" in seen["doubt"] and seen["pid"] == os.getpid()


@pytest.mark.parametrize("what", NEWER)
def test_the_list_of_runs_names_it_and_shows_the_others(
    what: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    NEWER[what][0](run)
    write_record(make_run(run.parent / "other", uuid="B"))
    monkeypatch.setattr(sys, "argv", ["hoofprint", "runs", "--runs", str(run.parent), "--total", "--json"])
    main()
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    shown = {entry["name"]: entry for entry in document["runs"]}
    assert "newer version of hoofprint" in shown["newer"]["note"] and shown["newer"]["energy_it_kwh"] is None
    assert shown["other"]["energy_it_kwh"] > 0 and shown["other"]["note"] == ""
    [gap] = document["total"]["missing"][:1]
    assert gap == {"what": "no record: nothing of them is in the total", "runs": ["newer"]}
    assert document["total"]["total"]["energy_it_kwh"] == shown["other"]["energy_it_kwh"]


def test_imported_weights_of_a_newer_version_are_refused(tmp_path: Path) -> None:
    config = LlamaConfig(dim=32, n_layers=2, n_heads=2, vocab_size=400)
    write_model_file(tmp_path, config, {}, {})
    checkpoint = tmp_path / FIRST
    checkpoint.mkdir(parents=True)
    (checkpoint / ".metadata").touch()
    assert open_model_folder(tmp_path).config == config
    replace(tmp_path / "model.json", "hoofprint/model/1", "hoofprint/model/2")
    with pytest.raises(ValueError, match="model.json has the schema hoofprint/model/2, and hoofprint/model/1 is known"):
        open_model_folder(tmp_path)


@pytest.mark.parametrize("wrote", ["0.1.7", "0.1.0", "0.0.9", None, "unreleased"])
def test_versions_that_write_the_same_are_known(wrote: str | None, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.1.0")
    versions = {} if wrote is None else {"hoofprint": wrote}
    (run / "run.json").write_text(json.dumps({"versions": versions}))
    require_known(run)


def test_the_known_versions_are_those_that_are_written() -> None:
    assert Experiment.model_fields["spec_version"].annotation.__args__ == (SPEC_VERSION,)  # type: ignore[union-attr]
