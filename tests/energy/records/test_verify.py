"""Verify: what is right passes, and one changed byte anywhere is found and named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from energy_fakes import FakeSensor, meter_fake, reading
from record_fakes import ACCOUNTING, START, make_run

from energy.factors import hardware, tables
from energy.ledger import frames as ledger
from energy.ledger import readings
from energy.ledger.readings import tick_dtype
from energy.records import verify
from energy.records.record import ALGORITHM, hash_of, hash_of_text, read_entries, write_record
from energy.records.verify import Verification, verify_run
from energy.runs import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    made = make_run(tmp_path / "r")
    write_record(made)
    return made


def faults(run: RunFolder) -> list[str]:
    return [fault for check in verify_run(run).checks for fault in check.faults]


def failed(result: Verification) -> list[str]:
    return [check.name for check in result.checks if check.ok is False]


def flip(path: Path, at: float) -> None:
    """Change one byte, at a share of the file's length."""
    data = bytearray(path.read_bytes())
    place = min(int(at * len(data)), len(data) - 1)
    data[place] ^= 1
    path.write_bytes(bytes(data))


def test_what_was_written_verifies(run: RunFolder) -> None:
    result = verify_run(run)
    assert result.ok and result.implausible == [], failed(result)
    assert [check for check in result.checks if check.ok] and result.run == "r"
    json.dumps(result.as_json())


def test_a_copy_verifies(run: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "copy")
    assert verify_run(RunFolder(tmp_path / "copy")).ok


@pytest.mark.parametrize("at", [0.0, 0.3, 0.6, 0.999])
@pytest.mark.parametrize(
    "name",
    ["energy/n1.ledger", "energy/n1.seconds", "energy/n1.raw", "metrics/rank-0.jsonl", "experiment.yaml"],
)
def test_a_changed_byte_in_a_source_is_named(run: RunFolder, name: str, at: float) -> None:
    flip(run.path / name, at)
    result = verify_run(run)
    assert not result.ok
    assert any(fault.startswith(f"{name}: changed") for check in result.checks for fault in check.faults)


@pytest.mark.parametrize("at", [step / 40 for step in range(40)])
def test_any_changed_byte_in_the_record_is_found(run: RunFolder, at: float) -> None:
    flip(run.path / "footprint.json", at)
    try:
        assert not verify_run(run).ok
        assert any("footprint.json" in fault for fault in faults(run))
    except ValueError as error:  # the byte was in the name of its schema
        assert "schema" in str(error)


@pytest.mark.parametrize("at", [step / 20 for step in range(20)])
def test_any_changed_byte_in_the_history_is_found(run: RunFolder, at: float) -> None:
    flip(run.path / "records.jsonl", at)
    assert any("records.jsonl" in fault for fault in faults(run))


@pytest.mark.parametrize(
    "old, new, named",
    [
        ('"energy_it_kwh": 0', '"energy_it_kwh": 9', "energy.energy_it_kwh is 9"),
        ('"intensity_g_per_kwh": 385.0', '"intensity_g_per_kwh": 384.0', "carbon.intensity_g_per_kwh is 384.0"),
        ('"uuid": "GPU-1"', '"uuid": "GPU-9"', "GPU-9"),
        ('"value": 385.0', '"value": 38.50', "assumptions[intensity_g_per_kwh]"),
    ],
)
def test_a_changed_field_is_named_with_both_values(run: RunFolder, old: str, new: str, named: str) -> None:
    path = run.path / "footprint.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    assert any(named in fault for fault in faults(run)), faults(run)


def test_a_changed_factor_is_named_in_every_place(run: RunFolder) -> None:
    accounting = run.read_run()["accounting"]
    accounting["intensity_g_per_kwh"]["value"] = 38.5
    run.update_run(accounting=accounting)
    found = faults(run)
    assert "run.json: accounting changed since the record was written" in found
    assert any("assumptions[intensity_g_per_kwh].value is 385.0, its sources give 38.5" in fault for fault in found)


def test_a_changed_section_of_the_spec_is_named(run: RunFolder) -> None:
    path = run.path / "experiment.yaml"
    path.write_text(path.read_text().replace("pue: 1.1", "pue: 1.0"))
    assert any("experiment.yaml" in fault and "section energy" in fault for fault in faults(run))


def test_damage_in_a_ledger_is_named_with_its_byte(run: RunFolder) -> None:
    flip(run.path / "energy/n1.ledger", 0.9)
    assert any("n1.ledger: byte" in fault for fault in faults(run))


def test_files_that_went_or_came_are_named(run: RunFolder) -> None:
    (run.path / "energy/n1.seconds").unlink()
    (run.path / "metrics/rank-1.jsonl").write_text("{}\n")
    found = faults(run)
    assert "energy/n1.seconds: missing" in found
    assert "metrics/rank-1.jsonl: was not there when the record was written" in found


def test_a_run_that_went_on_is_told_from_one_that_was_changed(run: RunFolder) -> None:
    times = [START + 200.0 + t for t in range(10)]
    sensor = FakeSensor("GPU-1", [reading(100.0 * t, 100.0) for t in range(200, 210)])
    meter_fake(run, [sensor], times, attempt=2)
    assert any(fault.startswith("energy/n1.ledger: grew") for fault in faults(run))
    write_record(run)
    assert verify_run(run).ok


def test_a_run_that_crashed_and_went_on_verifies(tmp_path: Path) -> None:
    """What the crash tore stands in the record: it is no secret, and no fault of the record."""
    made = make_run(tmp_path / "r", meter=False)
    for attempt, start in ((1, 0), (2, 40)):
        sensor = FakeSensor("GPU-1", [reading(100.0 * t, 100.0) for t in range(start, start + 20)])
        times = [START + start + t for t in range(20)]
        meter_fake(made, [sensor], times, attempt=attempt, stop=attempt == 2)
        if attempt == 1:
            with open(made.path / "energy/n1.ledger", "ab") as file:
                file.write(b"HPM torn")
    record = write_record(made)
    assert record["quality"]["damaged"]
    result = verify_run(made)
    assert result.ok, [fault for check in result.checks for fault in check.faults]
    assert any("1 damage that the record names" in check.note for check in result.checks)


def test_finer_files_that_were_too_large_for_the_account_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path, fine: bool = True) -> Any:
        assert not fine
        return readings.read_sessions(path, fine=False)

    monkeypatch.setattr(readings, "FINEST_BYTES", 0)
    monkeypatch.setattr(verify, "read_sessions", read)
    made = make_run(tmp_path / "r", meter=False)
    counts = [*range(70), *range(70)]  # it began anew between two minutes
    sensor = FakeSensor("GPU-1", [reading(100.0 * count, 100.0) for count in counts])
    meter_fake(made, [sensor], [START + t for t in range(len(counts))])
    with open(made.path / "energy/n1.seconds", "ab") as file:
        file.write(b"HPM torn")
    assert write_record(made)["quality"]["damaged"] == []
    result = verify_run(made)
    assert result.ok, faults(made)
    assert any("too large together" in check.note for check in result.checks)


def seal(run: RunFolder, record: dict[str, Any]) -> list[str]:
    """The checks that fail of a record which is put in the place of the run's, with hashes that fit."""
    text = json.dumps(record, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
    (run.path / "footprint.json").write_text(text)
    entry = read_entries(run.path)[0][0] | {f"record_{ALGORITHM}": hash_of_text(text)}
    entry["entry_sha256"] = hash_of({key: value for key, value in entry.items() if key != "entry_sha256"})
    (run.path / "records.jsonl").write_text(json.dumps(entry, sort_keys=True) + "\n")
    return failed(verify_run(run))


def test_a_record_from_before_a_key_was_added_verifies(run: RunFolder) -> None:
    record = json.loads((run.path / "footprint.json").read_text())
    del record["compute"]["mean_devices"], record["compute"]["quantities"]["mean_devices"]
    for device in record["energy"]["devices"]:
        assert device.pop("metered_s") == pytest.approx(129)
    record["quality"]["warnings"].append("implausible: less than idle: of the time of all attempts")
    record["quality"]["warnings"].append("no grid intensity was given, as it was said then")
    assert seal(run, record) == []
    del record["carbon"]["carbon_market_tco2eq"]  # that one was there from the first
    assert seal(run, record) == ["computed again, every field is the same"]


def test_a_forged_record_with_new_hashes_still_differs_from_the_ledger(run: RunFolder) -> None:
    """Whoever changes a figure and seals everything anew is found by computing it again."""
    record = json.loads((run.path / "footprint.json").read_text())
    record["energy"]["energy_it_kwh"] /= 2
    names = seal(run, record)
    assert "computed again, every field is the same" in names and "devices, phases and attempts sum up" in names


def test_a_table_that_was_altered_is_named_and_one_that_went_up_by_a_version_is_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "the tables of factors are unaltered"
    shutil.copytree(tables.FOLDER, tmp_path / "factors")
    monkeypatch.setattr(tables, "FOLDER", tmp_path / "factors")
    path = tmp_path / "factors/embodied.csv"
    honest = path.read_text()
    monkeypatch.setattr(hardware, "match_accelerator", lambda _: hardware.accelerators()[2])
    path.write_text(honest.replace("127.6,150,319.3", "127.6,130,319.3"))
    made = make_run(tmp_path / "r")
    write_record(made)
    assert failed(verify_run(made)) == [name]
    assert faults(made) == ["table embodied: altered here, it is not the one that versions.csv names"]

    path.write_text(honest)
    assert failed(verify_run(made)) == [name, "computed again, every field is the same"]
    assert "table embodied: altered when the record was computed, its version 2 is another" in faults(made)
    write_record(made)
    assert verify_run(made).ok and read_entries(made.path)[0][-1]["reason"] == "recomputed; changed: table embodied"

    path.write_text(honest.replace("127.6,150,319.3", "127.6,160,319.3"))
    tables.write_versions()
    result = verify_run(made)
    assert failed(result) == ["computed again, every field is the same"]
    assert all(fault.endswith("computed from: embodied (version 2 then, 3 now)") for fault in faults(made))
    path.write_text(honest + "\n")
    tables.write_versions()  # no figure of this record rests on what is new
    assert any("another one by now: embodied (version 2 then, 4 now)" in c.note for c in verify_run(made).checks)
    assert verify_run(made).ok


def test_implausible_and_tampered_are_told_apart(tmp_path: Path) -> None:
    """A record that says itself what cannot be believed of it verifies, with a doubt; if it keeps that back, not."""
    odd = make_run(tmp_path / "odd", accounting=ACCOUNTING | {"pue": {"value": 9.0, "source": "spec"}})
    write_record(odd)
    honest = verify_run(odd)
    assert honest.ok and len(honest.implausible) == 1 and "PUE of 9" in honest.implausible[0]
    told = honest.as_json()
    assert (told["ok"], told["plausible"], told["implausible"]) == (True, False, honest.implausible)

    path = odd.path / "footprint.json"
    record = json.loads(path.read_text())
    record["quality"]["warnings"] = [text for text in record["quality"]["warnings"] if "PUE of 9" not in text]
    path.write_text(json.dumps(record, sort_keys=True, indent=2) + "\n")
    silent = verify_run(odd)
    assert not silent.ok and silent.implausible == []
    assert "its figures are plausible, or it says that they are not" in failed(silent)


def edit_ticks(path: Path, kind: bytes, change: Callable[[np.ndarray], None]) -> None:
    """Rewrite a ledger file with changed rows and right checksums, as somebody who knows the format would."""
    out = b""
    for frame in ledger.frames(path.read_bytes(), []):
        payload = frame.payload
        if frame.kind == kind:
            table = np.frombuffer(payload, tick_dtype(3)).copy()
            change(table)
            payload = table.tobytes()
        out += ledger.encode(frame.kind, payload)
    path.write_bytes(out)


def test_a_curve_that_leaves_its_counter_is_found_even_with_right_checksums(run: RunFolder) -> None:
    def halve(table: np.ndarray) -> None:
        table["rows"]["energy_mj"][:, 0] //= 2

    edit_ticks(run.path / "energy/n1.raw", ledger.RAW, halve)
    write_record(run, "forged")
    result = verify_run(run)
    assert failed(result) == ["the curves grow as the counters do"]
    assert any("GPU-1" in fault and "its counter grew by" in fault for fault in faults(run))


def test_a_reset_is_no_disagreement(tmp_path: Path) -> None:
    made = make_run(tmp_path / "r", meter=False)
    counts = [*range(0, 50), *range(0, 50)]
    sensor = FakeSensor("GPU-1", [reading(100.0 * count, 100.0) for count in counts])
    meter_fake(made, [sensor], [START + t for t in range(len(counts))])
    write_record(made)
    assert "the curves grow as the counters do" not in failed(verify_run(made))


def test_what_cannot_be_verified_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no run\.json"):
        verify_run(RunFolder(tmp_path))
    bare = make_run(tmp_path / "bare", meter=False)
    with pytest.raises(ValueError, match="hoofprint report"):
        verify_run(bare)
    write_record(bare)
    with pytest.raises(ValueError, match="no ledger"):
        verify_run(bare)


def test_a_newer_record_is_refused(run: RunFolder) -> None:
    path = run.path / "footprint.json"
    path.write_text(path.read_text().replace("hoofprint/footprint/1", "hoofprint/footprint/2"))
    with pytest.raises(ValueError, match="newer version"):
        verify_run(run)


@pytest.mark.parametrize("text", ["", "[]", "{", "\ufeff{}", '{"schema": "hoofprint/footprint/1", "chain": []}'])
def test_a_file_that_is_no_record_is_a_finding_and_no_crash(run: RunFolder, text: str) -> None:
    (run.path / "footprint.json").write_text(text, encoding="utf-8")
    assert not verify_run(run).ok


def test_a_record_without_hashes_says_so(run: RunFolder) -> None:
    path = run.path / "footprint.json"
    record = json.loads(path.read_text())
    del record["chain"]
    path.write_text(json.dumps(record))
    (run.path / "records.jsonl").unlink()
    assert any("names no sources" in fault for fault in faults(run))
    write_record(run)
    assert verify_run(run).ok
    assert read_entries(run.path)[0][0]["reason"].endswith("had no entry")


def test_a_record_that_was_replaced_is_kept_and_looked_at(run: RunFolder) -> None:
    before = (run.path / "footprint.json").read_bytes()
    run.update_run(status="stopped")
    write_record(run)
    (kept,) = (run.path / "records").iterdir()
    assert kept.read_bytes() == before and verify_run(run).ok
    flip(kept, 0.5)
    assert faults(run) == [f"records/{kept.name}: changed after it was kept"]
    kept.unlink()
    assert faults(run) == [f"records/{kept.name}: missing, a record that was replaced"]
