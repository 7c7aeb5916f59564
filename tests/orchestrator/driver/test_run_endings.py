"""However a run ends, run.json says so, the report is there, and a name is not blocked by a run that never was."""

import json
from pathlib import Path
from typing import Any

import pytest
from driven import start as start

from energy.carbon.providers import ElectricityMaps, ProviderError
from energy.carbon.series import IntensitySeries
from energy.records.record import write_record
from energy.runs import SERIES, STOP_FILE, RunFolder
from orchestrator.driver import run as driver
from orchestrator.driver.attempts import settle_if_dead
from orchestrator.driver.training import metered
from orchestrator.screens.run import RunScreen
from orchestrator.spec.file import BadInput


def fails(error: BaseException) -> Any:
    def training(*_: Any) -> bool:
        raise error

    return training


@pytest.mark.parametrize(
    ("training", "status", "code"),
    [
        (lambda *_: True, "completed", 0),
        (lambda *_: False, "stopped", 130),
        (fails(KeyboardInterrupt()), "stopped", 130),
        (fails(SystemExit(15)), "stopped", 130),
        (fails(RuntimeError("Ray could not be started")), "failed", 1),
        (fails(TimeoutError("no meter answers")), "failed", 1),
    ],
    ids=["completed", "stopped", "interrupted", "SIGTERM while Ray starts", "no Ray", "no meter"],
)
def test_every_end_is_written_down(
    training: Any, status: str, code: int, start: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, ended = start(training)
    run = folder.read_run()
    assert (run["status"], run["attempts"][0]["status"], ended) == (status, status, code)
    assert run["ended_unix_s"] == pytest.approx(run["attempts"][0]["ended_unix_s"], abs=60)
    assert json.loads((folder.path / "footprint.json").read_text())["run"]["status"] == status
    assert (folder.path / "report.html").exists()
    assert not (folder.path / ".reserve").exists()
    said = capfd.readouterr().err
    assert ("--resume" in said) == (status != "completed")
    assert (str(run["error"]) in said) == (status == "failed")
    assert "Traceback" not in said


def test_bad_input_found_late_leaves_no_folder(start: Any, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="more GPUs"):
        start(fails(BadInput("more GPUs than the cluster has")))
    assert list((tmp_path / "runs").iterdir()) == []


def files_of(folder: RunFolder) -> dict[str, bytes]:
    """Every file of a run but the lock and Ray's log, which each start opens."""
    files = (path for path in folder.path.rglob("*") if path.is_file() and path.name not in (".lock", "ray.log"))
    return {path.relative_to(folder.path).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("first", ["grid_series", None])
def test_a_refused_resume_leaves_the_run_as_it_was(first: str | None, start: Any, tmp_path: Path) -> None:
    def declared(g_per_kwh: int) -> str:
        file = tmp_path / f"{g_per_kwh}.csv"
        file.write_text(f"time,g_per_kwh\n2024-03-01T00:00Z,{g_per_kwh}\n2024-03-01T01:00Z,{g_per_kwh}\n")
        return f"energy.grid_series={file}"

    folder, _ = start(lambda *_: False, *([declared(400)] if first else []))
    before = files_of(folder)
    assert ("grid/series.json" in before) == bool(first)
    for changed in (declared(50), "cluster.workers=8"):  # another series, and none any more
        with pytest.raises(BadInput, match="more GPUs"):
            start(fails(BadInput("more GPUs than the cluster has")), changed, resume=folder.path)
        assert files_of(folder) == before
    (tmp_path / "50.csv").write_text("time,g_per_kwh\n2024-03-01T00:00Z,-1\n")
    with pytest.raises(ValueError, match="50.csv"):
        start(lambda *_: True, f"energy.grid_series={tmp_path / '50.csv'}", resume=folder.path)
    assert files_of(folder) == before
    _, code = start(lambda *_: True, resume=folder.path)
    assert code == 0
    assert [attempt["status"] for attempt in folder.read_run()["attempts"]] == ["stopped", "completed"]


class Killed(BaseException):
    """After which nothing of the driver runs but what gives its folder back."""


def test_a_lost_run_says_that_its_grid_was_not_asked_for(
    start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, answers = RunFolder(tmp_path / "runs" / "one"), [50.0]

    def series(self: ElectricityMaps, zone: str, first_s: float, last_s: float) -> IntensitySeries:
        if not answers:
            raise ProviderError("no answer")
        return IntensitySeries((first_s - 1,), (last_s + 1,), (answers.pop(),), self.source(zone))

    def said_of_lost(*spec: str, resume: Path | None = None) -> str:
        with pytest.raises(Killed):
            start(fails(Killed()), *spec, resume=resume)
        assert settle_if_dead(folder)
        return "\n".join(write_record(folder)["quality"]["warnings"])

    monkeypatch.setattr(ElectricityMaps, "series", series)
    said = said_of_lost("energy.grid_zone=FR")
    assert "zone FR by the hour are asked for when an attempt ends" in said and "no constant was declared" in said
    assert "no grid intensity by the hour is here, and no constant" in said and "intensity was given" not in said
    spec = ("energy.grid_zone=FR", "energy.grid=FR")
    start(lambda *_: False, *spec, resume=folder.path)
    kept = (folder.path / SERIES).read_bytes()
    assert folder.read_run()["grid_notes"] == []
    said = said_of_lost(*spec, resume=folder.path)
    assert "for hours without one stands the declared" in said and "no grid intensity" not in said
    start(lambda *_: False, *spec, resume=folder.path)
    failed, stands = folder.read_run()["grid_notes"]
    assert failed.startswith("no answer; fell back on the declared") and "an earlier attempt was given" in stands
    assert (folder.path / SERIES).read_bytes() == kept
    with pytest.raises(Killed):
        start(fails(Killed()), "energy.grid_zone=DE", resume=folder.path)
    assert not (folder.path / SERIES).exists()


def test_a_stop_that_comes_while_a_resumed_run_settles_is_for_this_command(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = start(fails(RuntimeError("lost")))
    stop = folder.path / STOP_FILE
    stop.touch()  # of the command before, which did not come to it

    def settling(*_: Any) -> None:
        assert not stop.exists()
        stop.touch()

    monkeypatch.setattr(driver, "require_budget", settling)
    seen = []
    start(lambda *_: bool(seen.append(stop.exists())), resume=folder.path)
    assert seen == [True]


def test_nodes_that_are_lost_and_nodes_that_come_late_stay_with_the_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.write_run({"hosts": ["driver"]})
    for nodes in (["a"], ["a", "late"], ["replacement"]):
        run = folder.update_run(**metered(folder, [{"node": node, "n": len(nodes)} for node in nodes]))
    assert run["hosts"] == ["a", "late", "replacement"]
    assert run["meters"] == [{"node": "a", "n": 2}, {"node": "late", "n": 2}, {"node": "replacement", "n": 1}]
    lost, unknown = "the meter of a could not be stopped in order (ActorDiedError)", "Ray did not say where"
    told = metered(folder, [{"node": "late", "n": 3, "warnings": ["hot"]}], {"a": lost, None: unknown})["meters"]
    assert [(meter["n"], meter.get("warnings")) for meter in told] == [(2, [lost]), (3, ["hot"]), (1, [unknown])]
    assert metered(RunFolder(tmp_path / "run"), [])["meters"] == run["meters"]


def test_a_lost_attempt_is_counted_on_resume(start: Any, capfd: pytest.CaptureFixture[str]) -> None:
    folder, _ = start(lambda *_: False)
    run = folder.read_run()
    attempt = {"attempt": 1, "started_unix_s": run["created_unix_s"], "status": "running"}
    folder.update_run(status="running", attempts=[attempt], ended_unix_s=None)
    start(lambda *_: True, resume=folder.path)
    assert [attempt["status"] for attempt in folder.read_run()["attempts"]] == ["lost", "completed"]
    assert "the attempt before was lost" in capfd.readouterr().err


def test_each_attempt_keeps_its_command_and_the_run_its_devices(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["hoofprint", "run", "my spec.yaml"])
    folder, _ = start(lambda *_: False)
    folder.update_run(device_type="cuda", world_size=4)
    monkeypatch.setattr("sys.argv", ["hoofprint", "run", "my spec.yaml", "--resume", "one"])
    start(lambda *_: True, resume=folder.path)
    record = json.loads((folder.path / "footprint.json").read_text())
    commands = ["hoofprint run 'my spec.yaml'", "hoofprint run 'my spec.yaml' --resume one"]
    assert [attempt["command"] for attempt in record["run"]["attempts"]] == commands
    assert (record["hardware"]["device_type"], record["hardware"]["world_size"]) == ("cuda", 4)
    assert record["time"]["gpu_hours"] > 0


def test_a_report_that_cannot_be_written_is_no_success(
    start: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "energy.records.record.write_record", fails(OSError(28, "No space left on device", "footprint.json"))
    )
    folder, code = start(lambda *_: True)
    assert (folder.read_run()["status"], code) == ("completed", 1)
    said = capfd.readouterr().err
    assert "No space left on device" in said and f"hoofprint report {folder.path}" in said


def test_a_screen_that_is_quiet_still_says_what_failed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    screen = RunScreen(quiet=True)
    screen.note("not this")
    screen.failed(["the run failed: x"])
    assert capfd.readouterr().err == "the run failed: x\n"
