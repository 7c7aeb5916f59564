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


def _unread(rank: int, folder: Path) -> None:
    def refuses(*_: Any) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    told: list[str] = []
    if rank == 1:
        saved.digests = refuses  # type: ignore[assignment]
    with pytest.raises(ValueError, match="could be read whole: .* try again; deleting them would lose"):
        Choice(folder, told.append).newest_whole()
    assert "step-00000008 is left out" in told[0] and saved.complete(folder)


def test_a_checkpoint_that_one_rank_cannot_read_now_keeps_its_name(
    tmp_path: Path, whole: tuple[Path, RunFolder]
) -> None:
    shutil.copytree(whole[1].path / "checkpoints" / "step-00000008", tmp_path / "step-00000008")
    spawn(_unread, 2, tmp_path)
    assert (tmp_path / "step-00000008").exists()


class _FarAway:
    """Copies of which rank 0 fetches its files slowly."""

    uri = "far://away"

    def names(self) -> list[str]:
        return ["step-00000008"]

    def fetch(self, name: str, folder: Path, part: int, parts: int, beat: Callable[[], None]) -> None:
        if part == 0:
            for file in (folder.parent / "there").iterdir():
                time.sleep(0.3)
                beat()
                shutil.copy(file, folder)
            (folder.parent / "fetched").touch()


def _fetches(rank: int, folder: Path) -> None:
    beats: list[bool] = []
    choice = Choice(folder, print, _FarAway(), beat=lambda: beats.append((folder / "fetched").exists()))  # type: ignore[arg-type]
    assert choice.newest_whole() == folder / "step-00000008" and saved.damage(folder / "step-00000008") is None
    assert False in beats  # who fetches, and who waits for it, is no rank that hangs


def _begins(rank: int, folder: Path) -> None:
    with pytest.raises(ValueError, match="far://away has checkpoints of another run of this name .1.: give another"):
        Choice(folder, print, _FarAway(), fresh=True).newest_whole()  # type: ignore[arg-type]


def test_a_run_that_begins_does_not_go_on_from_another_one_s_copies(tmp_path: Path) -> None:
    spawn(_begins, 2, tmp_path)


def test_a_copy_that_comes_slowly_is_waited_for(tmp_path: Path, whole: tuple[Path, RunFolder]) -> None:
    shutil.copytree(whole[1].path / "checkpoints" / "step-00000008", tmp_path / "there")
    spawn(_fetches, 2, tmp_path)


def _all_damaged(rank: int, folder: Path) -> None:
    told: list[str] = []
    with pytest.raises(ValueError, match="every checkpoint in .* is damaged; delete them to train from the start"):
        Choice(folder, told.append).newest_whole()
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
