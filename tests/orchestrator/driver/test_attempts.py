"""A run folder has one driver, is resumed only as what it was, and never goes on saying that it runs."""

import errno
import json
import os
import time
from pathlib import Path

import pytest
from energy_fakes import FakeSensor, meter_fake, reading
from tiny import write_spec

from energy.runs import LOCK, RunFolder
from orchestrator.driver import attempts
from orchestrator.driver.attempts import Claim
from orchestrator.ranks.worker import next_attempt
from orchestrator.spec.file import BadInput, dump_experiment, load_experiment


@pytest.fixture
def killed(tmp_path: Path) -> RunFolder:
    """What a kill -9 of the driver leaves: run.json says running, a save is half done, the clock went on."""
    folder = RunFolder(tmp_path / "run")
    (folder.path / "metrics").mkdir(parents=True)
    (folder.path / "checkpoints" / ".step-00000016.partial").mkdir(parents=True)
    folder.metrics_file(0).write_text('{"attempt": 1, "event": "step", "step": 3}\n')
    first = {"attempt": 1, "started_unix_s": 900.0, "status": "running"}
    folder.write_run({"status": "running", "attempts": [first], "ended_unix_s": None, "error": None})
    os.utime(folder.metrics_file(0), (1000.0, 1000.0))
    os.utime(folder.run_file, (901.0, 901.0))
    (folder.path / "experiment.yaml").write_text(dump_experiment(load_experiment(write_spec(tmp_path))))
    return folder


@pytest.mark.parametrize("told", ["mark of rank 0", "reading", "row of a minute", "figures of a meter", None])
def test_a_lost_attempt_ends_with_the_last_thing_it_wrote(told: str | None, killed: RunFolder) -> None:
    """By what its files say, which is the same in a copy; where they say nothing, by when they were written."""
    if told is not None:
        os.utime(killed.metrics_file(0))
    if told == "mark of rank 0":
        marks = '{"start_unix_s": 990.0, "end_unix_s": 1000.0}\n{"event": "process"}\n{"time_unix_s": 10'
        killed.metrics_file(0).write_text(marks)
    elif told == "figures of a meter":
        (killed.path / "live").mkdir()
        (killed.path / "live" / "n1.json").write_text('{"power_w": 1.0, "energy_j": 1.0, "time_unix_s": 1000.0}')
    elif told is not None:
        sensor = FakeSensor("GPU-1", [reading(100.0 * n, 100.0) for n in range(10)])
        meter_fake(killed, [sensor], [991.0 + n for n in range(10)], stop=told != "reading")
        if told != "reading":
            killed.ledger_file("n1").with_suffix(".raw").unlink()
    assert attempts.settle_if_dead(killed)
    run = killed.read_run()
    assert (run["status"], run["ended_unix_s"]) == ("lost", 1000.0)
    assert run["attempts"] == [{"attempt": 1, "started_unix_s": 900.0, "status": "lost", "ended_unix_s": 1000.0}]
    assert "killed" in run["error"]
    assert not list((killed.path / "checkpoints").glob(".*"))
    assert not attempts.settle_if_dead(killed)  # once


def test_a_lost_attempt_does_not_end_in_the_future(killed: RunFolder) -> None:
    """A node's clock may be ahead of the one that settles the run."""
    killed.metrics_file(0).write_text(json.dumps({"time_unix_s": time.time() + 1e6}) + "\n")
    assert attempts.settle_if_dead(killed)
    assert killed.read_run()["ended_unix_s"] <= time.time()


def test_a_run_at_work_is_neither_settled_nor_taken(killed: RunFolder) -> None:
    claim = Claim(killed)
    try:
        with pytest.raises(BadInput, match="at work in another process"):
            Claim(killed)
        assert not attempts.settle_if_dead(killed)
        assert killed.read_run()["status"] == "running"
    finally:
        claim.release()
    Claim(killed).release()


def test_an_attempt_that_left_no_marks_counts(killed: RunFolder) -> None:
    assert next_attempt(killed.path) == 2
    run = killed.read_run()
    killed.update_run(attempts=[*run["attempts"], {"attempt": 2}, {"attempt": 3}])
    assert next_attempt(killed.path) == 3


def test_what_the_first_attempt_had_is_what_later_ones_go_by(killed: RunFolder) -> None:
    run = killed.read_run()
    assert attempts.first_held(run | {"device_type": None, "world_size": 8}) is None  # it had nothing yet
    held = run | {"device_type": "cuda", "world_size": 4}
    assert attempts.first_held(held) == (4, "cuda")  # of an older version, whose attempts do not say it
    began = [run["attempts"][0] | {"world_size": 8}, {"attempt": 2, "world_size": 4}, {"attempt": 3}]
    assert attempts.first_held(held | {"attempts": began}) == (8, "cuda")


def test_what_changed_is_named_and_refused_where_it_matters(killed: RunFolder, tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    changes = ["training.peak_lr=0.1", "model.dim=64", "cluster.workers=2"]
    with pytest.raises(BadInput) as raised:
        attempts.resumable(load_experiment(spec, changes), killed.path)
    assert "training.peak_lr (0.003 then, 0.1 now)" in str(raised.value)
    assert "model.dim (32 then, 64 now)" in str(raised.value)
    assert "cluster.workers" not in str(raised.value)  # the result does not depend on it
    _, changed = attempts.resumable(load_experiment(spec, [changes[2], "data.cache=/elsewhere"]), killed.path)
    assert changed[0] == "cluster.workers (1 then, 2 now)" and changed[1].startswith("data.cache (")


def test_a_complete_run_and_what_is_no_run_are_not_resumed(killed: RunFolder, tmp_path: Path) -> None:
    experiment = load_experiment(tmp_path / "spec.yaml")
    killed.update_run(status="completed")
    with pytest.raises(BadInput, match="complete"):
        attempts.resumable(experiment, killed.path)
    with pytest.raises(BadInput, match="not a run: it has no experiment.yaml"):
        attempts.resumable(experiment, tmp_path)


def test_a_start_that_was_killed_keeps_no_name_and_one_at_work_does(tmp_path: Path) -> None:
    experiment = load_experiment(write_spec(tmp_path))
    path = attempts.run_path(tmp_path / "runs", "one")
    first = attempts.claim_new(path)
    first.hold_space()
    (path / "experiment.yaml").write_text(dump_experiment(experiment))
    assert attempts.run_path(tmp_path / "runs", "one") == path  # it may be at work, which its lock tells
    with pytest.raises(BadInput, match="is at work in another process"):
        attempts.claim_new(path)
    assert (path / "experiment.yaml").exists()
    first._lock.release()  # as the system does when it is killed
    with pytest.raises(BadInput, match="its start was killed, or is still at it; start the run again"):
        attempts.resumable(experiment, path)
    second = attempts.claim_new(attempts.run_path(tmp_path / "runs", "one"))
    second.release()
    (path / "notes.txt").write_text("not of a run")
    with pytest.raises(BadInput, match="exists"):
        attempts.run_path(tmp_path / "runs", "one")
    with pytest.raises(BadInput, match="was made by another process"):
        attempts.claim_new(path)


def test_a_half_checkpoint_goes_however_the_attempt_ended(killed: RunFolder) -> None:
    killed.update_run(status="failed", attempts=[])
    assert not attempts.settle(killed)
    assert list((killed.path / "checkpoints").iterdir()) == []


def test_other_text_under_the_same_spec_is_refused(killed: RunFolder, tmp_path: Path) -> None:
    sizes = {"train_tokens": 10, "validation_tokens": 2, "unigram_entropy_nats": 1.0}
    tokenizer = tmp_path / "tokenizer.model"
    tokenizer.write_bytes(b"a")
    attempts.require_same_data(killed, tokenizer, sizes)  # it had not come to a corpus
    (killed.path / "tokenizer.model").write_bytes(b"a")
    killed.update_run(data=sizes)
    attempts.require_same_data(killed, tokenizer, sizes)
    with pytest.raises(BadInput, match="10 training tokens then, 11 now"):
        attempts.require_same_data(killed, tokenizer, sizes | {"train_tokens": 11})
    tokenizer.write_bytes(b"b")
    with pytest.raises(BadInput, match="tokenizer changed"):
        attempts.require_same_data(killed, tokenizer, sizes)


@pytest.mark.parametrize("name", ["", "..", "a/b", "/tmp"])
def test_names_that_are_none(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="plain folder name"):
        attempts.run_path(tmp_path, name)


def refuse(*_: object, **__: object) -> None:
    raise OSError(errno.ESTALE, "Stale file handle")


def test_the_reserve_is_there_while_the_run_is_and_gone_after(tmp_path: Path) -> None:
    claim = attempts.claim_new(tmp_path / "run")
    claim.hold_space()
    assert (claim.folder.path / attempts.RESERVE).stat().st_size == attempts.RESERVE_BYTES
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        claim.free_space()  # storage that is away for a moment: the end of a run does not hang on it
    claim.release()
    assert not (claim.folder.path / attempts.RESERVE).exists()
    assert json.dumps(sorted(os.listdir(claim.folder.path))) == json.dumps([LOCK])
