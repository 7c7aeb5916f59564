"""Checkpoints: written beside the training, whole or not there, checked before they are loaded, and not all kept."""

import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from tiny import STEPS, losses, plain_rank, spawn, train
from torch.distributed.checkpoint import SavePlan, default_planner

from energy.runs import RunFolder
from orchestrator.checkpoints import saved
from orchestrator.checkpoints import state as checkpoint
from orchestrator.checkpoints import writer as checkpoint_writer
from orchestrator.checkpoints.writer import CheckpointWriter


def flip(file: Path) -> None:
    """One bit in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def data_file(path: Path) -> Path:
    return next(path.glob("*.distcp"))


# --- writing


def _state(value: float) -> tuple[torch.Tensor, checkpoint.TrainState]:
    """A model of one weight after one step, and the weight."""
    model = torch.nn.Linear(256, 256, bias=False)
    torch.nn.init.constant_(model.weight, value)
    state = checkpoint.TrainState(model, torch.optim.AdamW(model.parameters(), lr=1.0), {"step": 1})
    _step(model.weight, state)
    return model.weight, state


def _step(weight: torch.Tensor, state: checkpoint.TrainState) -> None:
    weight.grad = torch.ones_like(weight)
    state.optimizer.step()


def _goes_on(rank: int, folder: Path) -> None:
    writer = CheckpointWriter(folder, asynchronous=True)
    weight, state = _state(3.0)
    kept = weight.detach().clone()
    held, may_write = writer._write, threading.Event()
    copies = []

    def late(copy: dict[str, Any], *arguments: Any) -> Any:
        copies.append(copy["app"]["model"]["weight"].data_ptr())
        may_write.wait(60)
        return held(copy, *arguments)

    writer._write = late  # type: ignore[method-assign, assignment]
    writer.save(state, 1)
    assert not list(folder.glob("step-*"))  # nothing is whole, and the training goes on:
    _step(weight, state)
    state.progress["step"] = 2
    assert writer.written() == []
    second = weight.detach().clone()
    threading.Timer(0.3, may_write.set).start()
    began_s = time.monotonic()
    writer.save(state, 2)  # waits for the first
    passed_s = time.monotonic() - began_s
    _step(weight, state)
    writer.finish()
    for step, weights in ((1, kept), (2, second)):
        loaded_weight, loaded = _state(0.0)
        checkpoint.load(loaded, folder / f"step-{step:08d}")
        assert torch.equal(loaded_weight, weights) and loaded.progress == {"step": step}
    assert copies[0] == copies[1] != weight.data_ptr()  # memory is taken once
    first, after = writer.written()
    assert (first["step"], after["step"]) == (1, 2) and first["bytes"] > 3 * 256 * 256 * 4
    assert first["blocked_s"] < first["seconds"]
    assert after["waited_s"] > 0.2 and after["waited_s"] + after["blocked_s"] <= passed_s  # told apart
    assert writer.written() == []


def test_what_is_written_is_the_state_at_its_step_whatever_is_trained_meanwhile(tmp_path: Path) -> None:
    spawn(_goes_on, 2, tmp_path)


def _plans_once(rank: int, folder: Path) -> None:
    planned: list[int] = []
    plan = default_planner.create_default_global_save_plan

    def counted(plans: list[SavePlan], *more: Any) -> Any:
        planned.append(len(plans))
        return plan(plans, *more)

    default_planner.create_default_global_save_plan = counted  # type: ignore[assignment]
    writers = [CheckpointWriter(folder / name, asynchronous=False) for name in ("one", "another")]
    weight, state = _state(3.0)
    for step in (1, 2, 3):
        state.progress |= {"step": step} if step < 3 else {"step": step, "new": [step]}
        writers[0].save(state, step)
        writers[0].finish()
        assert planned == ([2] * (1 if step < 3 else 2) if rank == 0 else [])
        loaded_weight, loaded = _state(0.0)
        loaded.progress |= {key: None for key in state.progress}
        checkpoint.load(loaded, folder / "one" / f"step-{step:08d}")
        assert torch.equal(loaded_weight, weight) and loaded.progress == state.progress
        _step(weight, state)
    writers[1].save(state, 4)  # another writer knows nothing of what the first has agreed on
    writers[1].finish()
    assert len(planned) == (3 if rank == 0 else 0)
    saved.SEEN_WITHIN_S = 0.0
    apart = CheckpointWriter(folder / f"on-machine-{rank}", asynchronous=False)  # a run folder that is not shared
    with pytest.raises(checkpoint.CheckpointNotSaved, match="does not see __1_0.distcp .* that all nodes share: "):
        apart.save(state, 5)
    assert not list(folder.glob("on-machine-*/step-*"))


def test_who_writes_what_is_agreed_on_again_only_where_the_state_has_changed(tmp_path: Path) -> None:
    spawn(_plans_once, 2, tmp_path)


def test_both_ways_of_writing_leave_the_same_files(whole: tuple[Path, RunFolder]) -> None:
    spec, run = whole
    other = train(spec, run.path.parent / "synchronous", overrides=["checkpoint.asynchronous=false"])
    assert losses(other) == losses(run)
    ours, theirs = (path.path / "checkpoints" / f"step-{STEPS:08d}" for path in (run, other))
    assert sorted(file.name for file in ours.iterdir()) == sorted(file.name for file in theirs.iterdir())
    size = sum(file.stat().st_size for file in ours.glob("*.distcp"))
    for trained in (run, other):
        costs = [event for event in trained.events() if event.get("event") == "checkpoint"]
        assert [(cost["step"], cost["bytes"]) for cost in costs] == [(8, size), (16, size), (20, size)]
        waited = [cost["blocked_s"] >= cost["seconds"] for cost in costs]
        assert waited == [trained is other] * 3


def test_only_what_is_asked_for_is_kept(whole: tuple[Path, RunFolder]) -> None:
    spec, run = whole
    some = ["training.checkpoint_every_steps=2", "checkpoint.keep_last=2", "checkpoint.keep_every_steps=6"]
    kept = train(spec, run.path.parent / "kept", overrides=some)
    assert [saved.step_of(path) for path in saved.complete(kept.path / "checkpoints")] == [20, 18, 12, 6]
    assert not list((kept.path / "checkpoints").glob(".*"))


def test_what_was_written_last_is_kept_where_later_ones_could_not_be_read(tmp_path: Path) -> None:
    """The training went on from 50, and 90 and 100 are of a time that it cannot go back to."""
    names = [f"step-{step:08d}" for step in (100, 90, 52, 50, 48)]
    assert saved.outdated(names, 52, 2, None) == ["step-00000048"]
    assert saved.outdated(names, 52, 1, 48) == ["step-00000050"]
    assert saved.outdated(names, 100, 2, None) == names[2:] and saved.outdated(names, 52, None, None) == []


def test_a_kill_in_the_middle_of_a_deletion_leaves_no_half_checkpoint(
    tmp_path: Path, whole: tuple[Path, RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole[1].path / "checkpoints", tmp_path / "checkpoints")
    newest = saved.complete(tmp_path / "checkpoints")[0]
    monkeypatch.setattr(shutil, "rmtree", lambda path, ignore_errors: data_file(path).unlink() if path.exists() else 0)
    saved.remove(newest)
    monkeypatch.undo()
    assert [saved.step_of(path) for path in saved.complete(tmp_path / "checkpoints")] == [16, 8]
    saved.remove_partial(tmp_path / "checkpoints")
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_a_file_that_is_late_on_a_network_drive_is_looked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    comes = [b"a part", b"a part and the rest"]
    monkeypatch.setattr(saved.time, "sleep", lambda seconds: (tmp_path / "__1_0.distcp").write_bytes(comes.pop(0)))
    assert saved.unseen(tmp_path, {"__1_0.distcp": 19}) == [] == comes
    monkeypatch.setattr(saved, "SEEN_WITHIN_S", -1.0)
    assert saved.unseen(tmp_path, {"__1_0.distcp": 6, "__1_1.distcp": 6}) == ["__1_0.distcp", "__1_1.distcp"]


# --- checking


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda path: flip(data_file(path)), "SHA-256 differs"),
        (lambda path: cut(data_file(path)), "were written"),
        (lambda path: flip(path / ".metadata"), "SHA-256 differs"),
        (lambda path: data_file(path).unlink(), "is missing"),
        (lambda path: (path / saved.MANIFEST).write_text("{"), "cannot be read"),
    ],
    ids=["a bit", "a byte less", "metadata", "a file", "the manifest"],
)
def test_damage_is_named(
    tmp_path: Path, whole: tuple[Path, RunFolder], harm: Callable[[Path], None], said: str
) -> None:
    path = tmp_path / "step-00000008"
    shutil.copytree(whole[1].path / "checkpoints" / path.name, path)
    assert saved.damage(path) is None
    harm(path)
    found = [saved.damage(path, part, 2) for part in range(2)]
    assert any(said in str(each) for each in found)


def test_a_checkpoint_from_before_there_were_manifests_passes(tmp_path: Path, whole: tuple[Path, RunFolder]) -> None:
    path = tmp_path / "step-00000008"
    shutil.copytree(whole[1].path / "checkpoints" / path.name, path)
    (path / saved.MANIFEST).unlink()
    assert saved.damage(path) is None
    shutil.copytree(whole[1].path / "checkpoints" / "step-00000016", tmp_path / "step-00000016")
    assert "manifest.json is missing" in str(saved.damage(path))  # they are of one run: it was moved here in part


def test_of_a_damaged_checkpoint_the_one_before_is_taken(tmp_path: Path, whole: tuple[Path, RunFolder]) -> None:
    spec, run = whole
    resumed = tmp_path / "resumed"
    for step in (8, 16):
        name = f"step-{step:08d}"
        shutil.copytree(run.path / "checkpoints" / name, resumed / "checkpoints" / name)
    flip(data_file(resumed / "checkpoints" / "step-00000016"))
    after = train(spec, resumed, world=1)
    damaged, kept = [event["said"] for event in after.events() if event.get("event") == "warning"]
    assert damaged.startswith("the checkpoint step-00000016 is damaged and left out") and "SHA-256" in damaged
    assert kept.startswith("step-00000016 is kept as damaged-step-00000016; delete it")
    assert saved.damage(resumed / "checkpoints" / "damaged-step-00000016") is not None
    assert losses(after) == {step: loss for step, loss in losses(run).items() if step > 8}
    assert saved.damage(resumed / "checkpoints" / "step-00000016") is None  # it was written anew


def test_a_checkpoint_that_cannot_be_written_ends_the_training_on_all_ranks(
    tmp_path: Path, whole: tuple[Path, RunFolder]
) -> None:
    spec, _ = whole
    with pytest.raises(mp.ProcessRaisedException, match="the checkpoint of step 8 was not written to"):
        train(spec, tmp_path / "run", world=2, rank=_rank_whose_checkpoint_fails)
    run = RunFolder(tmp_path / "run")
    assert not list((run.path / "checkpoints").iterdir())
    assert 8 <= max(losses(run)) < 16  # it did not train on to the next one


def _rank_whose_checkpoint_fails(rank: int, world: int, port: int, job: Any) -> None:
    def refuse(folder: Path, names: Any) -> Any:
        raise OSError(5, "Input/output error")

    if rank == 1:
        checkpoint_writer.digests = refuse
    plain_rank(rank, world, port, job)


# --- copies


def test_a_run_whose_checkpoints_are_gone_or_damaged_goes_on_from_their_copies(
    tmp_path: Path, whole: tuple[Path, RunFolder]
) -> None:
    spec, run = whole
    there = tmp_path / "there"
    options = [f"checkpoint.copy_to={there.as_uri()}", "checkpoint.keep_last=2"]
    RunFolder(tmp_path / "run").write_run({"created_unix_s": 7.25, "attempts": [{}]})
    first = train(spec, tmp_path / "run", world=2, overrides=options)
    costs = [event for event in first.events() if event.get("event") == "checkpoint"]
    assert all(cost["copied_s"] > 0 for cost in costs)
    copies = there / "run" / "checkpoints"
    assert sorted(path.name for path in copies.iterdir()) == ["step-00000016", "step-00000020"]
    assert {saved.run_told((path / saved.MANIFEST).read_bytes()) for path in copies.iterdir()} == {7.25}
    here = first.path / "checkpoints"
    for name in ("step-00000016", "step-00000020"):
        assert saved.digests(here / name, [file.name for file in (here / name).iterdir()]) == saved.digests(
            copies / name, [file.name for file in (copies / name).iterdir()]
        )
    (copies / "step-00000020" / saved.MANIFEST).unlink()  # a kill in the middle of copying
    shutil.rmtree(here / "step-00000020")
    flip(data_file(here / "step-00000016"))
    after = train(spec, first.path, overrides=options)  # one rank reads what two wrote
    said = [event["said"] for event in after.events() if event.get("event") == "warning"]
    assert "step-00000016 is damaged" in said[0] and "step-00000016 was fetched from its copy" in said[1]
    again = [step["step"] for step in after.steps() if step["attempt"] == 2]
    assert again == [17, 18, 19, 20]
    assert losses(after) == pytest.approx(losses(run), abs=1e-4)
    shutil.rmtree(here)
    flip(data_file(copies / "step-00000020"))  # whole again, and then not
    third = train(spec, first.path, overrides=options)
    assert [step["step"] for step in third.steps() if step["attempt"] == 3] == [17, 18, 19, 20]
    said = [event["said"] for event in third.events() if event.get("event") == "warning" and event["attempt"] == 3]
    assert "the copy of the checkpoint step-00000020" in said[0] and "SHA-256" in said[0]
    first.update_run(created_unix_s=8.0)  # a folder that was taken away and begun anew, whose first attempt is over
    with pytest.raises(mp.ProcessRaisedException, match="has checkpoints of another run of this name"):
        train(spec, first.path, overrides=options)


def test_a_storage_that_cannot_be_written_is_told_before_the_training(
    tmp_path: Path, whole: tuple[Path, RunFolder]
) -> None:
    (tmp_path / "file").touch()
    option = f"checkpoint.copy_to={(tmp_path / 'file' / 'below').as_uri()}"
    with pytest.raises(mp.ProcessRaisedException, match="checkpoint.copy_to file:///.* cannot be written"):
        train(whole[0], tmp_path / "run", overrides=[option])
    assert not RunFolder(tmp_path / "run").steps()


def _rank_whose_storage_fails(rank: int, world: int, port: int, job: Any) -> None:
    from orchestrator.checkpoints.courier import Courier

    def refuse(self: Courier, path: Path, names: Any) -> None:
        raise OSError("Bucket is read-only")

    Courier.put = refuse  # type: ignore[method-assign, assignment]
    plain_rank(rank, world, port, job)


class _SlowToEnd:
    """Copies of which the manifest, which rank 0 alone puts there, takes long."""

    def __init__(self, folder: Path):
        self._folder = folder

    def put(self, path: Path, names: list[str]) -> None:
        if saved.MANIFEST in names:
            time.sleep(1.5)
            (self._folder / "manifest").touch()

    def prune(self, *keep: int | None) -> None:
        raise OSError("Bucket is full")


def _waits_for_the_manifest(rank: int, folder: Path) -> None:
    writer = CheckpointWriter(folder / "here", asynchronous=True, copies=_SlowToEnd(folder))  # type: ignore[arg-type]
    beats: list[bool] = []
    writer.beat = lambda: beats.append((folder / "manifest").exists())
    writer.save(_state(1.0)[1], 1)
    writer.finish()
    assert (folder / "manifest").exists() and False in beats  # it waited, and said that it was alive
    [cost] = writer.written()
    assert cost["not_pruned"] == "Bucket is full" and cost["copied_s"] > 1.0 and "not_copied" not in cost


def _waits_for_the_bytes(rank: int, folder: Path) -> None:
    checkpoint_writer.BEAT_EVERY_S = 0.01
    writer = CheckpointWriter(folder, asynchronous=True)
    beats: list[int] = []
    writer.beat = lambda: beats.append(len(beats))
    hangs, ends = threading.Event(), threading.Event()

    def slow(state: Any, checkpoint_id: Path, **_: Any) -> None:
        for number in range(20):
            (checkpoint_id / f"__0_{number}.distcp").write_bytes(b"x")
            time.sleep(0.03)
        hangs.set()
        ends.wait(60)
        raise OSError("a disk that hung")

    checkpoint_writer.dcp.save = slow  # type: ignore[assignment]
    writer.save(_state(1.0)[1], 1)

    def look() -> None:
        hangs.wait(60)
        time.sleep(0.3)
        before = len(beats)
        time.sleep(0.3)
        beats.append(-1 if len(beats) == before else -2)
        ends.set()

    threading.Thread(target=look).start()
    with pytest.raises(OSError, match="a disk that hung"):
        writer.finish()
    assert len(beats) > 10 and -1 in beats  # as long as bytes came, and no longer


def test_a_large_checkpoint_that_is_waited_for_is_no_hang_and_a_disk_that_hangs_is(tmp_path: Path) -> None:
    spawn(_waits_for_the_bytes, 1, tmp_path)


def test_no_rank_begins_a_step_while_rank_0_ends_the_copy(tmp_path: Path) -> None:
    """In a step without rank 0 the others are past their deadline, and the group is killed for a slow storage."""
    spawn(_waits_for_the_manifest, 2, tmp_path)


def test_a_storage_that_fails_later_costs_the_copies_and_not_the_training(
    tmp_path: Path, whole: tuple[Path, RunFolder]
) -> None:
    spec, run = whole
    options = [f"checkpoint.copy_to={(tmp_path / 'there').as_uri()}"]
    trained = train(spec, tmp_path / "run", overrides=options, rank=_rank_whose_storage_fails)
    assert losses(trained) == losses(run)
    said = [event["said"] for event in trained.events() if event.get("event") == "warning"]
    assert said == [f"the checkpoint of step {step} was not copied: Bucket is read-only" for step in (8, 16, 20)]
