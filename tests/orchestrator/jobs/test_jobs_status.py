"""`hoofprint status` and `hoofprint stop` over run folders: what runs, what was lost, and who is asked to end."""

import json
import os
import re
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from energy.runs import RunFolder
from orchestrator.cli import cli
from orchestrator.driver.run_lock import RunLock
from orchestrator.spec.file import BadInput


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "one")
    folder.metrics_dir.mkdir(parents=True)
    started = time.time() - 90
    attempts = [{"attempt": 1, "started_unix_s": started, "status": "running"}]
    folder.write_run({"status": "running", "created_unix_s": started, "attempts": attempts, "planned_tokens": 4000})
    (folder.path / "experiment.yaml").write_text("spec_version: 1\n")
    steps = [
        {"event": "step", "step": n, "tokens": 10 * n, "loss": 6 - n / 100, "time_unix_s": 0} for n in range(1, 101)
    ]
    text = "\n".join(json.dumps(step) for step in steps)
    folder.metrics_file(0).write_text(f'{text}\n{{"event": "phase"}}\n{{"event": "st')  # torn by a kill
    return folder


def status(folder: RunFolder, *options: str) -> str:
    done = CliRunner().invoke(cli, ["status", "--runs", str(folder.path.parent), *options])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_run_that_lives_and_one_whose_driver_died(run: RunFolder) -> None:
    lock = RunLock(run.path)
    [seen] = json.loads(status(run, "--json"))["runs"]
    assert (seen["run"], seen["status"], seen["step"], seen["loss"], seen["tokens"]) == (
        "one",
        "running",
        100,
        5.0,
        1000,
    )
    assert seen["power_w"] is None and seen["energy_it_kwh"] is None  # not known is not zero
    assert " 25.0 % " in status(run) and re.search(r" [1-9]\.\d\d min ", status(run))
    lock.release()
    [seen] = json.loads(status(run, "--json"))["runs"]
    assert seen["status"] == "lost" and "ended without a word" in seen["doubt"]
    assert f"--resume {run.path}\n" in status(run)


def test_only_a_run_at_work_is_asked_to_stop(run: RunFolder) -> None:
    stop = ["stop", "one", "--runs", str(run.path.parent), "--no-wait"]
    with pytest.raises(BadInput, match="is not at work: its process died"):
        CliRunner().invoke(cli, stop, catch_exceptions=False)
    assert not (run.path / "stop").exists()
    lock = RunLock(run.path)
    try:
        done = CliRunner().invoke(cli, stop, catch_exceptions=False)
        assert done.exit_code == 0 and (run.path / "stop").exists() and f"process {os.getpid()}" in done.stderr
        (run.path / "experiment.yaml").unlink()
        with pytest.raises(BadInput, match="is of `hoofprint measure`"):
            CliRunner().invoke(cli, stop, catch_exceptions=False)
    finally:
        lock.release()
    with pytest.raises(BadInput, match="no run 'two' in"):
        CliRunner().invoke(cli, ["stop", "two", "--runs", str(run.path.parent)], catch_exceptions=False)


def test_a_stop_says_in_json_what_it_came_to(run: RunFolder) -> None:
    stop = ["stop", "one", "--runs", str(run.path.parent), "--json"]
    asked = CliRunner()
    lock = RunLock(run.path)

    def end() -> None:
        """As a driver does that is asked to stop."""
        while not (run.path / "stop").exists():
            time.sleep(0.01)
        checkpoint = run.path / "checkpoints" / "step-00000100"
        checkpoint.mkdir(parents=True)
        (checkpoint / ".metadata").touch()
        (run.path / "report.html").touch()
        run.update_run(status="stopped")
        lock.release()

    unanswered = asked.invoke(cli, [*stop, "--no-wait"], catch_exceptions=False)
    before = {"run": "one", "path": str(run.path), "status": "running", "error": None, "checkpoint_step": None}
    assert json.loads(unanswered.stdout) == before | {"report": None}
    (run.path / "stop").unlink()
    driver = threading.Thread(target=end)
    driver.start()
    done = asked.invoke(cli, stop, catch_exceptions=False)
    driver.join()
    ended = {"status": "stopped", "checkpoint_step": 100, "report": str(run.path / "report.html")}
    assert done.exit_code == 0 and json.loads(done.stdout) == before | ended


def test_a_named_run_is_shown_also_when_it_has_ended(run: RunFolder) -> None:
    run.update_run(status="failed", error="at step 101 the loss is nan")
    assert "nothing runs in" in status(run) and "no such folder" not in status(run)
    assert status(run, "one") == "one: failed (at step 101 the loss is nan), no checkpoint\n"
    [seen] = json.loads(status(run, "one", "--json"))["runs"]
    assert (seen["status"], seen["step"], seen["doubt"], seen["power_w"]) == ("failed", 100, None, None)
    nothing = CliRunner().invoke(cli, ["status", "--runs", str(run.path / "none")])
    assert nothing.exit_code == 0 and "there is no such folder" in nothing.stdout
    with pytest.raises(BadInput, match="no run 'two' in"):
        CliRunner().invoke(cli, ["status", "two", "--runs", str(run.path.parent)], catch_exceptions=False)


def test_a_run_that_only_hangs_is_not_to_be_gone_on_with(run: RunFolder) -> None:
    (run.path / "live.json").write_text(json.dumps({"schema": 1, "updated_unix_s": time.time() - 60, "step": 100}))
    lock = RunLock(run.path)
    try:
        assert "one: its live state stands still since" in status(run) and "--resume" not in status(run)
    finally:
        lock.release()


def test_a_log_is_no_json() -> None:
    refused = CliRunner().invoke(cli, ["status", "one", "--address", "http://127.0.0.1:1", "--follow", "--json"])
    assert refused.exit_code == 2 and "--follow shows a log" in refused.output
