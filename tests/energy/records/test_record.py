"""The record: its schema, the hashes of its sources, its history, and the same bytes from the same files."""

import copy
import errno
import fcntl
import json
import math
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from energy_fakes import ROOT, FakeSensor, meter_fake, write_phases
from record_fakes import ACCOUNTING, START, make_run

from energy.carbon.series import IntensitySeries
from energy.factors import pue
from energy.records import record as records
from energy.records import turns
from energy.records.record import canonical, compute_record, hash_of_file, kept_file, read_entries, write_record
from energy.records.verify import verify_run
from energy.runs import SERIES, RunFolder, write_json
from energy.schemas import record_schema, require_known, schema_faults


def entries(folder: Path) -> list[dict[str, Any]]:
    found, faults = read_entries(folder)
    assert not faults
    return found


def test_the_schema_is_one_and_a_record_fits_it(tmp_path: Path) -> None:
    from jsonschema import Draft202012Validator

    Draft202012Validator.check_schema(record_schema())
    record = write_record(make_run(tmp_path / "r"))
    assert schema_faults(json.loads(canonical(record))) == []


@pytest.mark.parametrize(
    "section, key",
    [
        ("energy", "energy_it_kwh"), ("energy", "energy_facility_kwh"), ("carbon", "carbon_tco2eq"),
        ("embodied", "carbon_tco2eq"), ("water", "on_site_l"), ("time", "duration_s"), ("time", "gpu_hours"),
        ("compute", "compute_flop"), ("uncertainty", "energy_it_kwh"), ("quality", "gap_s"),
        ("sci", "score_g_per_million_tokens"), ("chain", "files"), ("run", "status"), ("data", "tokens_trained"),
    ],
)  # fmt: skip
def test_a_missing_key_and_a_wrong_type_fail_and_are_named(tmp_path: Path, section: str, key: str) -> None:
    record = json.loads(canonical(write_record(make_run(tmp_path / "r"))))
    without, wrong = copy.deepcopy(record), copy.deepcopy(record)
    del without[section][key]
    wrong[section][key] = ["1.5"]
    assert any(fault.startswith(section) and key in fault for fault in schema_faults(without))
    assert any(fault.startswith(f"{section}.{key}") for fault in schema_faults(wrong))


@pytest.mark.parametrize("value", ["1.5", -1.0, True])
def test_energy_is_a_number_of_at_least_zero_or_null(tmp_path: Path, value: Any) -> None:
    record = json.loads(canonical(write_record(make_run(tmp_path / "r"))))
    record["energy"]["energy_it_kwh"] = value
    assert schema_faults(record)
    record["energy"]["energy_it_kwh"] = None
    assert schema_faults(record) == []


def test_a_unit_in_a_key_that_the_schema_does_not_name_still_wants_a_number(tmp_path: Path) -> None:
    record = json.loads(canonical(write_record(make_run(tmp_path / "r"))))
    record["carbon"]["carbon_market_tco2eq"] = 1.5
    assert schema_faults(record) == []
    record["carbon"]["carbon_market_tco2eq"] = "1.5 t"
    assert any("carbon_market_tco2eq" in fault for fault in schema_faults(record))


def test_a_newer_schema_is_refused() -> None:
    require_known({"schema": "hoofprint/footprint/1"})
    with pytest.raises(ValueError, match="newer version"):
        require_known({"schema": "hoofprint/footprint/2"})
    with pytest.raises(ValueError, match="not a record"):
        require_known({"schema": "codecarbon"})


def test_all_sources_are_hashed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    chain = write_record(run)["chain"]
    assert set(chain["files"]) == {
        "energy/n1.ledger", "energy/n1.raw", "energy/n1.seconds", "experiment.yaml", "metrics/rank-0.jsonl",
    }  # fmt: skip
    for name, about in chain["files"].items():
        assert hash_of_file(run.path / name) == (about["sha256"], about["bytes"])
    assert {"accounting", "attempts", "model", "status"} <= set(chain["run"])
    assert set(chain["factors"]) == {"pue", "intensity_g_per_kwh", "device_rated_power_w", "peak_flops"}
    assert set(chain["spec"]) == {"name", "model", "energy"}


def test_written_again_it_is_the_same_and_has_no_new_entry(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    first = write_record(run)
    text = (run.path / "footprint.json").read_bytes()
    assert first["chain"]["previous_sha256"] is None
    assert write_record(run) == first and write_record(run, "for nothing") == first
    assert (run.path / "footprint.json").read_bytes() == text
    assert [entry["reason"] for entry in entries(run.path)] == ["first record"]
    (run.path / "footprint.json").unlink()
    write_record(run)
    assert (run.path / "footprint.json").read_bytes() == text and len(entries(run.path)) == 1


def test_a_correction_is_a_new_entry_with_a_reason_and_the_hash_of_the_one_before(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    write_record(run)
    accounting = run.read_run()["accounting"]
    accounting["pue"]["value"] = 1.2
    run.update_run(accounting=accounting)
    record = write_record(run, "the operator corrected its PUE")
    first, second = entries(run.path)
    assert record["chain"]["previous_sha256"] == first["record_sha256"] == second["previous_sha256"]
    assert second["reason"] == "the operator corrected its PUE"
    assert "energy.pue: 1.1, now 1.2" in second["changed"]
    accounting["pue"]["value"] = 1.3
    run.update_run(accounting=accounting)
    write_record(run)
    assert entries(run.path)[2]["reason"] == "recomputed; changed: run.json: accounting"
    accounting["pue"]["value"] = 1.1
    run.update_run(accounting=accounting)
    write_record(run)  # as the first was, but with another one before it
    assert len(entries(run.path)) == 4


def test_a_record_that_was_tampered_with_is_replaced_and_the_entry_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    write_record(run)
    run.update_run(status="stopped")
    path = run.path / "footprint.json"
    path.write_text(path.read_text().replace("385.0", "85.0"))
    write_record(run)
    second = entries(run.path)[1]
    assert second["reason"].endswith("changed: run.json: status; the footprint.json that lay here had been changed")
    assert second["replaced_sha256"] == hash_of_file(kept_file(run.path, second["replaced_sha256"]))[0]


def test_a_changed_record_whose_sources_did_not_change_is_entered_too(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    write_record(run)
    path = run.path / "footprint.json"
    forged = path.read_text().replace('"energy_it_kwh": 0', '"energy_it_kwh": 9')
    path.write_text(forged)
    record = write_record(run)
    first, second = entries(run.path)
    assert second["reason"] == "computed again; the footprint.json that lay here had been changed"
    assert any(text.startswith("energy.energy_it_kwh: 9") for text in second["changed"])
    assert kept_file(run.path, second["replaced_sha256"]).read_text() == forged
    assert record["chain"]["previous_sha256"] == first["record_sha256"]


def test_of_a_record_cut_in_half_it_is_not_said_what_has_changed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    write_record(run)
    path = run.path / "footprint.json"
    path.write_text(path.read_text()[:500])
    run.update_run(status="failed")
    write_record(run)
    assert "cannot be read" in entries(run.path)[1]["reason"] and "changed: " not in entries(run.path)[1]["reason"]


def test_a_newer_record_is_left_as_it_is(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    write_record(run)
    path = run.path / "footprint.json"
    newer = path.read_text().replace("hoofprint/footprint/1", "hoofprint/footprint/2")
    path.write_text(newer)
    with pytest.raises(ValueError, match="left as it is"):
        write_record(run)
    assert path.read_text() == newer and len(entries(run.path)) == 1


@pytest.mark.parametrize("record_is_there", [True, False])
def test_without_its_sources_a_record_is_replaced_only_for_a_reason(tmp_path: Path, record_is_there: bool) -> None:
    run = make_run(tmp_path / "r")
    path = run.path / "footprint.json"
    write_record(run)
    text = path.read_text()
    shutil.rmtree(run.energy_dir)
    if not record_is_there:
        path.unlink()
    with pytest.raises(ValueError, match=r"energy/n1\.ledger, .* are missing.*--reason"):
        write_record(run)
    assert path.exists() == record_is_there and len(entries(run.path)) == 1
    record = write_record(run, "the disk was lost")
    second = entries(run.path)[1]
    assert record["energy"]["energy_it_kwh"] is None
    assert second["missing_sources"] == ["energy/n1.ledger", "energy/n1.raw", "energy/n1.seconds"]
    if record_is_there:
        assert kept_file(run.path, second["previous_sha256"]).read_text() == text
    else:
        assert second["replaced_sha256"] is None
    assert write_record(run) == record  # the files that are gone are told once


@pytest.mark.parametrize("has_locks", [True, False])
def test_two_that_write_a_record_at_once_go_on_from_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_locks: bool
) -> None:
    """`hoofprint report` while the run's driver writes its own: two entries after the same one fork the chain."""
    run, compute = make_run(tmp_path / "r"), records.compute_record
    others: list[threading.Thread] = []

    def meanwhile(folder: RunFolder, previous: str | None = None) -> dict[str, Any]:
        record = compute(folder, previous)
        if not others:
            others.append(threading.Thread(target=write_record, args=(folder,)))
            folder.update_run(status="stopped")  # so that the other has something to enter
            others[0].start()
            others[0].join(0.3)
        return record

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    if not has_locks:
        monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(records, "compute_record", meanwhile)
    write_record(run)
    others[0].join()
    assert len(entries(run.path)) == 2 and verify_run(run).ok


def test_a_writer_that_hangs_is_named_and_in_a_folder_that_cannot_be_written_nobody_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, mode: str) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    run = make_run(tmp_path / "r")
    first = write_record(run)
    monkeypatch.setattr(turns, "PATIENCE_S", 0.0)
    with turns.alone(run.path / "records.jsonl"):
        with pytest.raises(OSError, match="another process has been writing the record"):
            write_record(run)
        monkeypatch.setattr(turns, "open", refuse, raising=False)
        assert write_record(run) == first


@pytest.mark.parametrize("before", [0, 2])
def test_a_record_whose_entry_a_crash_cut_off_is_entered_and_not_called_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    run = make_run(tmp_path / "r")
    for number in range(before + 1):
        if number == before:
            monkeypatch.setattr(records, "_append", lambda *about: None)
        run.update_run(error=f"number {number}")
        write_record(run)
    monkeypatch.undo()
    told = " ".join(fault for check in verify_run(run).checks for fault in check.faults)
    assert "report" in told and "changed" not in told and ("was cut off" in told) == (before > 0)
    text = (run.path / "footprint.json").read_text()
    write_record(run)
    assert verify_run(run).ok and len(entries(run.path)) == before + 1
    if before:
        assert (run.path / "footprint.json").read_text() == text
        last = entries(run.path)[-1]
        assert last["reason"] == "recomputed; changed: run.json: error; the writing of its entry had been cut off"
        assert last["changed"] == [f'run.error: "number {before - 1}", now "number {before}"']
        assert last["replaced_sha256"] == last["previous_sha256"]


def test_no_place_of_a_machine_is_in_the_record(tmp_path: Path) -> None:
    skipped = ["/home/someone/text/a/x.txt: not UTF-8 at byte 7", "/home/someone/text/b.txt: empty"]
    sources = [{"name": "s", "skipped_files": skipped}, {"name": "t", "skipped_files": ["/x.txt: empty"]}]
    record = write_record(make_run(tmp_path / "r", data={"sources": [*sources, {"name": "u"}]}))
    first, second, third = record["data"]["sources"]
    assert first["skipped_files"] == ["a/x.txt: not UTF-8 at byte 7", "b.txt: empty"] and first["skipped_count"] == 2
    assert second["skipped_files"] == ["x.txt: empty"] and third["skipped_count"] == 0
    assert "/home" not in canonical(record)


def test_a_torn_history_is_named_and_gone_on_with(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    write_record(run)
    with open(run.path / "records.jsonl", "a") as file:
        file.write('{"record_sha256": "torn')
    run.update_run(status="stopped")
    write_record(run)
    found, faults = read_entries(run.path)
    assert len(found) == 2 and len(faults) == 1 and "line 2" in faults[0]


def test_a_changed_reason_breaks_the_seal(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    write_record(run)
    path = run.path / "records.jsonl"
    path.write_text(path.read_text().replace("first record", "best record"))
    assert "changed after it was written" in read_entries(run.path)[1][0]


COMPUTE = (
    "import sys; from energy.records.record import *; print(canonical(compute_record(RunFolder(sys.argv[1]))), end='')"
)
WRITE = "import sys; from energy.records.record import *; write_record(RunFolder(sys.argv[1]))"
ELSEWHERE = {
    "hash seed": ([], {"PYTHONHASHSEED": "7"}),
    "time zone": ([], {"TZ": "Asia/Kathmandu"}),
    # The locale's own encoding: text that is read or written without a stated one would fail or differ.
    "locale": ([], {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
    "without asserts": (["-O"], {}),
    "one thread": ([], {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}),
}


@pytest.mark.parametrize("where", ELSEWHERE)
def test_account_and_record_have_the_same_bytes_elsewhere(tmp_path: Path, where: str) -> None:
    """Another process, folder and current folder, and another hash seed, time zone, locale or optimisation."""
    run = make_run(
        tmp_path / "r", name="tokens für Größe α", accounting=ACCOUNTING | {"pue": pue()["aws fleet 2025"].as_dict()}
    )
    starts = tuple(START - START % 3600 + 3600 * hour for hour in range(3))
    series = IntensitySeries(starts, tuple(start + 3600 for start in starts), (100.1, 57.3, 311.7), "the operator’s")
    write_json(run.path / SERIES, asdict(series))
    copied = tmp_path / "another place" / "r"
    shutil.copytree(run.path, copied)
    text = canonical(write_record(run))
    assert (run.path / "footprint.json").read_bytes() == text.encode()
    arguments, changed = ELSEWHERE[where]
    subprocess.run(
        [sys.executable, *arguments, "-c", WRITE, str(copied)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **changed}, cwd=tmp_path, check=True,
    )  # fmt: skip
    assert hash_of_file(copied / "footprint.json") == hash_of_file(run.path / "footprint.json")


def test_a_run_without_a_ledger_still_has_a_record(tmp_path: Path) -> None:
    record = write_record(make_run(tmp_path / "r", meter=False))
    assert record["energy"]["energy_it_kwh"] is None
    assert any("nothing was metered" in text for text in record["quality"]["warnings"])
    assert schema_faults(json.loads(canonical(record))) == []


def test_where_nothing_could_be_read_no_part_of_it_is_known_either(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", meter=False)
    meter_fake(run, [FakeSensor("GPU-1", [OSError("fell off")] * 130)], [START + t for t in range(130)])
    energy = write_record(run)["energy"]
    assert energy["energy_it_kwh"] is None and energy["phases"] and energy["attempts"]
    unknown = ("energy_kwh", "standard_error_kwh", "share")
    assert {part.get(key) for part in energy["phases"] + energy["attempts"] for key in unknown} == {None}
    assert verify_run(run).ok, verify_run(run)
    path = run.path / "footprint.json"
    path.write_text(path.read_text().replace('"energy_kwh": null', '"energy_kwh": 0.0'))
    faults = [check.faults for check in verify_run(run).checks if check.name == "devices, phases and attempts sum up"]
    assert "footprint.json: energy.phases[startup] has 0.0 kWh" in faults[0]


def test_the_record_does_not_write_into_the_ledgers_folder(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    before = {path.name: path.stat().st_mtime_ns for path in run.energy_dir.iterdir()}
    compute_record(run)
    write_record(run)
    assert {path.name: path.stat().st_mtime_ns for path in run.energy_dir.iterdir()} == before


@pytest.mark.parametrize("kernel", ["Haswell", "Nehalem", "SkylakeX"])
def test_regression_gives_the_same_digits_on_every_processor(tmp_path: Path, kernel: str) -> None:
    """OpenBLAS takes other kernels on other processors, and their sums differ in the last digits."""
    run = make_run(tmp_path / "r")
    spans, at = [], START + 10.0
    while at < START + 115:
        for name, seconds in (("train_step", 0.7 + 0.3 * math.sin(at)), ("data_wait", 0.4 + 0.2 * math.cos(2 * at))):
            spans.append((name, at, at + seconds))
            at += seconds
    run.metrics_file(0).unlink()
    write_phases(run, spans)
    record = compute_record(run)
    assert any(phase["method"] == "regression" for phase in record["energy"]["phases"])
    environment = {**os.environ, "OPENBLAS_CORETYPE": kernel, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", COMPUTE, str(run.path)], capture_output=True, env=environment, check=True
    )
    assert done.stdout.decode() == canonical(record)
