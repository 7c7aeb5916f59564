"""From which checkpoint the ranks go on: what is damaged, cannot be read, or lies far away."""

import errno
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import spawn

from energy.runs import RunFolder
from orchestrator.checkpoints import saved
from orchestrator.checkpoints.choice import Choice
from orchestrator.driver.endings import advice


def _unread(rank: int, folder: Path) -> None:
    def refuses(*_: Any) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    told: list[str] = []
    if rank == 1:
        saved.digests = refuses  # type: ignore[assignment]
    with pytest.raises(ValueError, match="could be read whole: .* try again; deleting them would lose") as no:
        Choice(folder, told.append).newest_whole()
    [again] = advice(str(no.value), folder.parent, None)
    assert again.startswith("try again: hoofprint run")
    assert "step-00000008 is left out" in told[0] and saved.complete(folder)


def test_a_checkpoint_that_one_rank_cannot_read_now_keeps_its_name(
    tmp_path: Path, whole: tuple[Path, RunFolder]
) -> None:
    shutil.copytree(whole[1].path / "checkpoints" / "step-00000008", tmp_path / "step-00000008")
    spawn(_unread, 2, tmp_path)
    assert (tmp_path / "step-00000008").exists()


class _FarAway:
    """Copies of a run created at 7.0, of which rank 0 fetches its files slowly."""

    uri = "far://away"

    def names(self) -> list[str]:
        return ["step-00000008"]

    def of_others(self, names: list[str], run_created_unix_s: float) -> list[str]:
        return [] if run_created_unix_s == 7.0 else names

    def fetch(self, name: str, folder: Path, part: int, parts: int, beat: Callable[[], None]) -> None:
        if part == 0:
            for file in (folder.parent / "there").iterdir():
                time.sleep(0.3)
                beat()
                shutil.copy(file, folder)
            (folder.parent / "fetched").touch()


def _fetches(rank: int, folder: Path) -> None:
    beats: list[bool] = []
    far: Any = _FarAway()
    choice = Choice(
        folder, print, far, beat=lambda: beats.append((folder / "fetched").exists()), run_created_unix_s=7.0
    )
    assert choice.newest_whole() == folder / "step-00000008" and saved.damage(folder / "step-00000008") is None
    assert False in beats  # who fetches, and who waits for it, is no rank that hangs


class _Silent(_FarAway):
    def names(self) -> list[str]:
        raise OSError(errno.ETIMEDOUT, "no answer")


def _refuses(rank: int, folder: Path) -> None:
    far: Any = _FarAway()
    for of_whom in ({"fresh": True}, {"run_created_unix_s": 8.0}):
        with pytest.raises(ValueError, match="^far://away has checkpoints of another run of this name .1.: give") as no:
            Choice(folder, print, far, **of_whom).newest_whole()  # type: ignore[arg-type]
        assert advice(str(no.value), folder, None) == []  # no --resume ends otherwise
    far = _Silent()
    with pytest.raises(ValueError, match="whether there are copies in far://away is not known .no answer.: try") as no:
        Choice(folder, print, far).newest_whole()
    assert advice(str(no.value), folder, None) == [f"try again: hoofprint run SPEC --resume {folder}"]


def test_no_attempt_of_a_run_goes_on_from_another_one_s_copies(tmp_path: Path) -> None:
    spawn(_refuses, 2, tmp_path)


def test_a_copy_that_comes_slowly_is_waited_for(tmp_path: Path, whole: tuple[Path, RunFolder]) -> None:
    shutil.copytree(whole[1].path / "checkpoints" / "step-00000008", tmp_path / "there")
    spawn(_fetches, 2, tmp_path)


def _all_damaged(rank: int, folder: Path) -> None:
    told: list[str] = []
    with pytest.raises(ValueError, match="every checkpoint in .* is damaged; delete them to train from the st") as no:
        Choice(folder, told.append).newest_whole()
    assert advice(str(no.value), folder.parent, None) == []
    assert [text.split()[2] for text in told] == ["step-00000016", "step-00000008"]
    assert Choice(folder / "none", told.append).newest_whole() is None
    assert len(saved.complete(folder)) == 2  # nothing was better


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_anew_by_itself(
    tmp_path: Path, whole: tuple[Path, RunFolder]
) -> None:
    for step in (8, 16):
        name = f"step-{step:08d}"
        shutil.copytree(whole[1].path / "checkpoints" / name, tmp_path / name)
        data = next((tmp_path / name).glob("*.distcp"))
        os.truncate(data, data.stat().st_size - 1)
    spawn(_all_damaged, 2, tmp_path)
