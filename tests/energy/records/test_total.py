"""A project's total: by purpose, each joule once, what is missing named."""

import fcntl
import json
import time
from pathlib import Path
from typing import Any

import pytest
from energy_fakes import FakeSensor, meter_fake, reading
from record_fakes import START, make_run

from energy.carbon.formula import preset
from energy.factors import read_table
from energy.records.record import write_record
from energy.records.total import Entry, clusters, overlaps, project_total, read_runs, roll_up
from energy.runs import LOCK
from energy.schemas import schema_faults


def entry(name: str, purpose: str = "final", status: str = "completed", **figures: Any) -> Entry:
    return Entry(name, Path(name), status, purpose, has_record=True, **figures)


def test_llamas_declared_development_is_339_percent_of_its_final_runs() -> None:
    assumed = preset("llama_paper")
    rows = {row["model"]: row for row in read_table("llama_table15")}

    def facility_kwh(hours: str) -> float:
        return float(hours) * assumed["gpu_power_w"] / 1000 * assumed["pue"]

    final = [
        entry(name, energy_facility_kwh=facility_kwh(row["gpu_hours"]), gpu_hours=float(row["gpu_hours"]))
        for name, row in rows.items()
        if name.startswith("LLaMA-")
    ]
    assert len(final) == 4
    declared_kwh = 1000 * float(next(row for name, row in rows.items() if name.startswith("all"))["printed_mwh"])
    rest_kwh = declared_kwh - sum(run.energy_facility_kwh or 0.0 for run in final)
    total = roll_up([*final, entry("the rest", "development", energy_facility_kwh=rest_kwh)])
    assert total["total_to_final"]["energy_facility_kwh"] == pytest.approx(3.39, abs=0.005)
    assert total["total"]["energy_facility_kwh"] == pytest.approx(declared_kwh)


def test_purposes_and_what_is_not_known() -> None:
    total = roll_up(
        [
            entry("a", energy_it_kwh=2.0, energy_facility_kwh=2.2, carbon_tco2eq=1.0),
            entry("b", "development", energy_it_kwh=3.0),
            entry("c", status="failed", energy_it_kwh=1.0, energy_facility_kwh=1.1, carbon_tco2eq=0.5),
            entry("d", "evaluation", energy_it_kwh=0.5, energy_facility_kwh=0.6),
            Entry("e", Path("e"), "running", "final"),
        ]
    )
    assert list(total["by_purpose"]) == ["final", "development", "failed", "evaluation"]
    assert total["by_purpose"]["failed"]["energy_it_kwh"] == 1.0
    assert total["total"]["energy_it_kwh"] == 6.5 and total["total"]["energy_it_kwh_unknown_runs"] == 1
    assert total["total"]["carbon_tco2eq"] == 1.5 and total["total"]["carbon_tco2eq_unknown_runs"] == 3
    assert total["total"]["embodied_tco2eq"] is None and total["total"]["embodied_tco2eq_unknown_runs"] == 5
    assert total["by_purpose"]["development"]["energy_facility_kwh"] is None  # not zero
    named = {gap["what"]: gap["runs"] for gap in total["missing"]}
    assert named["no record: nothing of them is in the total"] == ["e"]
    assert named["no PUE: facility energy and carbon not known"] == ["b"]
    assert named["no grid intensity: carbon not known"] == ["d"]
    assert total["total_to_final"]["energy_it_kwh"] == pytest.approx(3.25)


def test_runs_that_metered_the_same_devices_at_once_count_each_joule_once(tmp_path: Path) -> None:
    for name, start in (("a", START), ("b", START + 65), ("apart", START + 1000)):
        write_record(make_run(tmp_path / name, start=start))
    write_record(make_run(tmp_path / "elsewhere", start=START, uuid="other"))
    runs, total = project_total(tmp_path)
    assert [e.name for e in runs.entries] == ["a", "elsewhere", "b", "apart"]
    alone_kwh = runs.entries[0].energy_it_kwh
    assert alone_kwh is not None
    overlap = total["overlap"]
    # b began 65 s into the 129 s of a: 64 s of all its devices were seen twice.
    assert overlap["energy_it_kwh"] == pytest.approx(64 * 360 / 3.6e6, rel=0.02)
    assert overlap["carbon_tco2eq"] == pytest.approx(overlap["energy_it_kwh"] * 1.1 * 385 / 1e6)
    assert total["total"]["energy_it_kwh"] == pytest.approx(4 * alone_kwh - overlap["energy_it_kwh"])


def test_of_a_run_that_went_on_only_what_its_record_knew_can_be_metered_twice(tmp_path: Path) -> None:
    first = make_run(tmp_path / "a", status="running", ended_unix_s=None)
    write_record(first)
    write_record(make_run(tmp_path / "b", start=START + 65))
    before = project_total(tmp_path)[1]
    for start in (150, 400):  # a stretch that the other run has seen, with the gap before it, and one that it has not
        gpu = FakeSensor("GPU-1", [reading(100.0 * t, 100.0) for t in range(start, start + 60)])
        meter_fake(first, [gpu], [START + start + t for t in range(60)])
    assert before["overlap"]["energy_it_kwh"] == pytest.approx(64 * 360 / 3.6e6, rel=0.02)
    assert project_total(tmp_path)[1] == before


def test_of_facility_energy_only_the_runs_that_have_it_share_joules(tmp_path: Path) -> None:
    for name, start in (("a", START), ("b", START + 65), ("c", START + 65)):
        write_record(make_run(tmp_path / name, start=start))
    entries = read_runs(tmp_path).entries
    whole = overlaps(entries)
    shares = roll_up(entries)["total"]
    assert shares["share_measured"] == pytest.approx(1 - shares["share_modelled"])
    assert 0 < shares["share_modelled"] == pytest.approx(entries[0].shares["share_modelled"], rel=0.1)
    entries[2].energy_facility_kwh = entries[2].carbon_tco2eq = None  # it has no PUE: the sums leave it out
    found = overlaps(entries)
    assert found["energy_it_kwh"] == whole["energy_it_kwh"]
    pair = overlaps(entries[:2])
    assert found["energy_facility_kwh"] == pytest.approx(pair["energy_facility_kwh"])
    assert (
        found["carbon_tco2eq"] == pytest.approx(pair["carbon_tco2eq"])
        and pair["carbon_tco2eq"] < whole["carbon_tco2eq"]
    )
    entries[1].energy_facility_kwh = None
    assert "energy_facility_kwh" not in overlaps(entries)


def test_gpu_hours_and_embodied_carbon_of_a_measured_command_beside_a_training_count_once() -> None:
    def at(name: str, start_h: float, end_h: float, gpus: str, purpose: str = "measure", held: int = 4) -> Entry:
        told: dict[str, Any] = {
            "gpu_hours": held * (end_h - start_h),
            "embodied_tco2eq": 0.1 * held * (end_h - start_h),
        }
        both = frozenset(gpus)
        told |= {"start_unix_s": 3600 * start_h, "end_unix_s": 3600 * end_h}
        return entry(name, purpose, devices=both | {"cpu"}, gpus=both, **told)

    training = at("t", 0, 10, "abcd", "final")
    for others, hours in (
        ([at("m", 2, 5, "abcd")], 12.0),
        ([at("m", 8, 12, "abcd")], 8.0),  # the last two hours are its own
        ([at("m", 2, 5, "efgh")], 0.0),  # they share CPUs alone
        ([at("m", 2, 5, "abcdefgh", held=8)], 12.0),
        ([at("m", 2, 5, "abcd"), at("n", 4, 6, "abcd")], 20.0),
        ([at("m", 0, 10, "abcd"), at("n", 0, 10, "abcdefgh", held=8)], 80.0),  # e to h are the second's alone
        ([at("f", 0, 10, "abcd", "final"), at("n", 0, 10, "abcdefgh", held=8)], 40.0),
        ([at("f", 2, 5, "abcd", "final")], 0.0),  # each ran on what it held
    ):
        found = overlaps([training, *others])
        total = roll_up([training, *others], found)["total"]
        held = 40.0 + sum(other.gpu_hours or 0.0 for other in others) - hours
        assert (total["gpu_hours"], total["embodied_tco2eq"]) == pytest.approx((held, 0.1 * held)), others
    # A training on four of a node's GPUs that are all metered: the second command has four of its own.
    node = at("t", 0, 10, "abcdefgh", "final")
    three = [node, at("m", 0, 10, "abcd"), at("n", 0, 10, "abcdefgh", held=8)]
    assert roll_up(three, overlaps(three))["total"]["gpu_hours"] == pytest.approx(80.0)
    training.embodied_tco2eq = None  # the sum has the command's alone
    assert set(overlaps([training, at("m", 2, 5, "abcd")])) == {"gpu_hours"}


def test_only_runs_that_share_a_device_and_time_are_read_again() -> None:
    def at(name: str, start: float, end: float, *devices: str) -> Entry:
        return entry(name, start_unix_s=start, end_unix_s=end, devices=frozenset(devices))

    found = clusters(
        [at("a", 0, 10, "1"), at("b", 5, 15, "2"), at("c", 8, 30, "1", "2"), at("d", 31, 40, "1"), at("e", 5, 9, "3")]
    )
    assert [sorted(run.name for run in cluster) for cluster in found] == [["a", "b", "c"]]
    assert clusters([at("a", 0, 10, "1"), at("b", 10, 20, "1")]) == []


def test_runs_in_two_containers_have_their_machine_s_cpus_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run, times = make_run(tmp_path / name, meter=False), [START + t for t in range(131)]
        cpu = FakeSensor(f"cpu@{name}", [reading(36.0 * t, 36.0) for t in range(131)], kind="cpu")
        meter_fake(run, [cpu], times, node=name, machine="m")
        write_record(run)
    _, told = project_total(tmp_path)
    assert told["overlap"]["energy_it_kwh"] == pytest.approx(130 * 36 / 3.6e6)
    assert told["total"]["energy_it_kwh"] == pytest.approx(130 * 36 / 3.6e6)
    assert told["total"]["share_measured"] == 1 and told["total"]["boundaries"] == {"gpu": 2}


def test_hours_of_a_run_that_ended_before_it_had_devices_are_not_known(tmp_path: Path) -> None:
    write_record(make_run(tmp_path / "whole"))
    failed = {"status": "failed", "purpose": "development", "device_type": None, "world_size": 64}
    record = write_record(make_run(tmp_path / "no-ray", meter=False, **failed))
    assert schema_faults(json.loads(json.dumps(record))) == []
    _, total = project_total(tmp_path)
    assert total["total"]["gpu_hours_unknown_runs"] == 1 and total["by_purpose"]["failed"]["gpu_hours"] is None
    assert total["total"]["gpu_hours"] == total["by_purpose"]["final"]["gpu_hours"] == pytest.approx(2 * 130 / 3600)


def test_broken_and_foreign_folders_are_named(tmp_path: Path) -> None:
    write_record(make_run(tmp_path / "good"))
    make_run(tmp_path / "no-record")
    for name, text in (("torn", "{"), ("list", "[]"), ("odd", '{"created_unix_s": "soon"}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(text)
    (tmp_path / "photos").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    newer = write_record(make_run(tmp_path / "newer")) | {"schema": "hoofprint/footprint/9"}
    (tmp_path / "newer" / "footprint.json").write_text(json.dumps(newer))
    runs = read_runs(tmp_path)
    notes = {run.name: run.note for run in runs.entries}
    assert notes["good"] == "" and notes["no-record"] == "no record"
    assert "newer version" in notes["newer"]
    assert len(runs.left_out) == 4
    assert any(text.startswith("photos: not a run") for text in runs.left_out)
    with pytest.raises(ValueError, match="no such folder"):
        read_runs(tmp_path / "nowhere")


def test_a_thousand_runs_are_listed_quickly(tmp_path: Path) -> None:
    first = make_run(tmp_path / "run-0")
    write_record(first)
    run, record = (first.path / "run.json").read_text(), (first.path / "footprint.json").read_text()
    for number in range(1, 1000):
        folder = tmp_path / f"run-{number}"
        folder.mkdir()
        (folder / "run.json").write_text(run)
        (folder / "footprint.json").write_text(record)
    began = time.process_time()
    assert len(read_runs(tmp_path).entries) == 1000
    assert time.process_time() - began < 5


def test_a_run_whose_lock_nobody_holds_was_lost_and_is_booked_as_failed(tmp_path: Path) -> None:
    for name in ("alive", "killed", "completed"):
        status = "completed" if name == "completed" else "running"
        run = make_run(tmp_path / name, start=START, uuid=name, status=status)
        write_record(run)
        (run.path / LOCK).touch()
    with open(tmp_path / "alive" / LOCK) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        runs, total = project_total(tmp_path)
    found = {run.name: run for run in runs.entries}
    assert {name: run.status for name, run in found.items()} == {
        "alive": "running", "killed": "lost", "completed": "completed"
    }  # fmt: skip
    assert found["killed"].group == "failed" and "hoofprint report" in found["killed"].note
    assert total["by_purpose"]["failed"]["runs"] == 1 and total["by_purpose"]["final"]["runs"] == 2
    assert {gap["what"][:13]: gap["runs"] for gap in total["missing"]}["still running"] == ["alive"]


@pytest.mark.parametrize("odd", [f'{{"created_unix_s": 1{"0" * 400}}}', "[" * 20_000])
def test_a_run_that_no_program_wrote_is_left_out_by_name(odd: str, tmp_path: Path) -> None:
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "run.json").write_text(odd)
    found = read_runs(tmp_path)
    assert found.entries == [] and [text.partition(": ")[0] for text in found.left_out] == ["odd"]
