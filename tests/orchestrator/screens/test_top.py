"""The live state and `hoofprint top`: what another process sees of a run, of a finished one, and of one that died."""

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from live_document import live_document

from energy.runs import RunFolder
from orchestrator.cli import cli
from orchestrator.live import state as live_state
from orchestrator.screens import top as screen_top

NOW = 1_760_000_000.0


def state(**changes: Any) -> dict[str, Any]:
    return live_document(NOW, run_id="one", **changes)


def make_run(folder: Path, status: str = "running", document: dict[str, Any] | None = None, **run: Any) -> RunFolder:
    attempts = [{"attempt": 2, "started_unix_s": NOW - 3600, "status": status}]
    made = RunFolder(folder)
    made.write_run({"run_id": folder.name, "status": status, "error": None, "attempts": attempts, **run})
    if document is not None:
        (folder / "live.json").write_text(json.dumps(document))
    return made


@pytest.fixture
def at_work(tmp_path: Path) -> Any:
    """A run that somebody works on: the lock is held, as by its driver."""
    locks = []

    def hold(**changes: Any) -> RunFolder:
        folder = make_run(tmp_path / "one", document=state(**changes))
        lock = os.open(folder.path / ".lock", os.O_RDWR | os.O_CREAT)
        fcntl.flock(lock, fcntl.LOCK_EX)
        locks.append(lock)
        return folder

    yield hold
    for lock in locks:
        os.close(lock)


def text_of(folder: RunFolder, width: int = 80, now: float = NOW) -> str:
    return "\n".join(line.plain for line in screen_top.lines(live_state.read(folder, now), width, now))


def test_a_run_in_another_process(at_work: Any) -> None:
    text = text_of(at_work())
    assert "one  training · attempt 2 · head, process 4711" in text
    assert "800 of 900" in text and "loss 2.345" in text and "validation 2.500" in text
    assert "2,048 tokens/s" in text and "MFU 41.0 % (PaLM count" in text
    assert "80 %  2.40 kWh of 3.00 kWh" in text
    assert "will end at 3.20 kWh of 3.00 kWh: stops at about step 870 of 900" in text
    assert "slow     waits for data: rank 5 (12.0 s of 60 s)" in text
    assert "n1  3,300 W  1 missing  gpu 412 412 412 412 412 412 412 –" in text
    assert "n2  silent" in text
    assert "924 g of 1.07 kg" in text


@pytest.mark.parametrize("width", [40, 80, 120])
def test_no_line_is_wider_than_the_terminal(at_work: Any, width: int) -> None:
    folder = at_work()
    folder.update_run(error="x" * 300)
    for now in (NOW, NOW + 100):
        lines = screen_top.lines(live_state.read(folder, now), width, now)
        assert lines and all(line.cell_len <= width and "\n" not in line.plain for line in lines)


def test_one_line_for_a_pipe(at_work: Any) -> None:
    line = screen_top.plain(live_state.read(at_work(power_w=None, joule_per_token=None), NOW), NOW)
    facts = dict(part.split("=") for part in line.split(" "))
    assert (facts["run"], facts["status"], facts["step"], facts["attempt"]) == ("one", "running", "800/900", "2")
    assert facts["budget_energy"] == "2.4/3" and facts["budget_energy_stops_at_step"] == "870"
    assert facts["power_w"] == facts["joule_per_token"] == "-"  # not known is not zero
    assert "age_s" not in facts


def test_a_state_that_stands_still_is_said_to(at_work: Any) -> None:
    folder = at_work()
    live = live_state.read(folder, NOW + 100)
    assert (live.status, live.runs) == ("running", True)
    assert "its live state stands still since 100 s: the driver hangs, or its disk is full" in text_of(
        folder, 120, NOW + 100
    )
    assert "age_s=100" in screen_top.plain(live, NOW + 100)
    ahead = live_state.read(folder, NOW - 100).doubt  # the clock was set back since
    assert ahead == "its live state is dated 100 s ahead of this machine's clock: how old it is is not known"


def test_a_state_of_the_attempt_before_is_not_shown_as_this_one(at_work: Any) -> None:
    folder = at_work(attempt=1)
    assert live_state.read(folder, NOW).document is None
    assert "no live state so far" in text_of(folder)
    before = NOW - 4000  # the clock was set back since the attempt began
    (folder.path / "live.json").write_text(json.dumps(state(updated_unix_s=before)))
    assert live_state.read(folder, before).document is not None


def test_a_run_whose_driver_died(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "one", document=state())  # says that it runs, and nobody holds its lock
    (folder.path / ".lock").touch()
    before = {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")}
    live = live_state.read(folder, NOW + 5000)
    assert (live.status, live.runs) == ("lost", False)
    text = text_of(folder, 120, NOW + 5000)
    assert "one  lost" in text and "its process ended without a word" in text and "hoofprint report" in text
    assert "800 of 900" in text
    assert {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")} == before  # it was only looked at


def test_a_finished_run_shows_its_end_and_its_record(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "one", "completed", state(phase="ended"), ended_unix_s=NOW)
    record = {"schema": "hoofprint/footprint/1", "carbon": {"carbon_tco2eq": None}}
    energy = {"energy": {"energy_it_kwh": 2.61, "energy_facility_kwh": None}}
    (folder.path / "footprint.json").write_text(json.dumps(record | energy))
    text = text_of(folder, 120)
    assert "one  completed" in text and "ended " in text
    assert "record: IT energy 2.61 kWh, facility not known, carbon not known" in text
    assert "its process" not in text


def test_a_run_that_its_budget_stopped_says_how_to_go_on(tmp_path: Path) -> None:
    told = state()["budget"][0] | {"option": "energy.budget.energy=3.36 kWh", "step": 870}
    folder = make_run(tmp_path / "one", "budget", state(), budget=told)
    text = text_of(folder, 160)
    assert "stopped by its budget: 2.40 kWh of 3.00 kWh (facility energy)" in text
    assert f"--resume {folder.path} --set 'energy.budget.energy=3.36 kWh'" in text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"schema": 2}', "a live state of schema 2, and this version reads 1"),
        ('{"schema": 1', "no live state of a run"),
        ("[]", "no live state of a run"),
    ],
)
def test_a_state_that_is_none(at_work: Any, text: str, said: str) -> None:
    folder = at_work()
    (folder.path / "live.json").write_text(text)
    with pytest.raises(ValueError, match=said):
        live_state.read(folder)


def test_the_command(at_work: Any, tmp_path: Path) -> None:
    at_work(updated_unix_s=time.time())
    run, runs = CliRunner().invoke, ["--runs", str(tmp_path)]
    once = run(cli, ["top", "one", *runs, "--once"])
    assert once.exit_code == 0 and once.output.startswith("run=one status=running attempt=2 phase=train_step ")
    told = json.loads(run(cli, ["top", str(tmp_path / "one"), "--json"]).output)
    assert (told["status"], told["doubt"], told["live"]["step"]) == ("running", None, 800)
    missing = run(cli, ["top", "two", *runs])
    assert missing.exit_code == 2 and "is not a run: it has no run.json" in missing.output


def test_ctrl_c_ends_the_look_alone(at_work: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    at_work(updated_unix_s=time.time())
    monkeypatch.setattr("orchestrator.commands.top.time.sleep", interrupted)
    ended = CliRunner().invoke(cli, ["top", "one", "--runs", str(tmp_path)])
    assert ended.exit_code == 0 and ended.stderr.startswith("the run goes on")


def test_a_pipe_ends_with_the_run(tmp_path: Path) -> None:
    make_run(tmp_path / "one", "failed", state(), error="the loss at step 801 is nan")
    done = CliRunner().invoke(cli, ["top", "one", "--runs", str(tmp_path)])
    assert done.exit_code == 0 and done.output.count("\n") == 1 and "status=failed" in done.output


def test_it_is_replaced_whole_and_at_most_once_a_second(tmp_path: Path) -> None:
    file = live_state.LiveFile(RunFolder(tmp_path))
    written = []
    for tenth in range(31):
        file.write({"schema": 1, "n": tenth}, NOW + tenth / 10)
        written.append(json.loads((tmp_path / "live.json").read_text())["n"])
    assert len(set(written)) == 4
    file.write({"schema": 1, "n": 99}, NOW + 3.05, force=True)
    assert json.loads((tmp_path / "live.json").read_text())["n"] == 99
    assert [path.name for path in tmp_path.iterdir()] == ["live.json"]  # nothing is left beside it
