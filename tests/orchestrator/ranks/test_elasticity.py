"""A run that goes on with another number of workers: the same batches, each sequence once, the same curve."""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tiny import STEPS, losses, plain_rank, train, write_spec

from energy.runs import RunFolder
from orchestrator.data.stream import TokenStream
from orchestrator.ranks.worker import Job


def _noting(folder: Path, rank: int, world: int, port: int, job: Job) -> None:
    """A rank that notes which sequences it trained on."""
    real = TokenStream.batch

    def batch(self: TokenStream, start_index: int, count: int) -> np.ndarray:
        with (folder / f"{world}-{rank}.txt").open("a") as file:
            file.writelines(f"{index}\n" for index in range(start_index, start_index + count))
        return real(self, start_index, count)

    TokenStream.batch = batch  # type: ignore[method-assign]
    plain_rank(rank, world, port, job)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunFolder]:
    folder = tmp_path_factory.mktemp("elastic")
    return write_spec(folder), train(write_spec(folder), folder / "whole", world=2)


@pytest.mark.parametrize("worlds", [(2, 1, 4), (4, 1, 2), (1, 4, 2)])
def test_three_attempts_with_other_numbers_of_workers_are_the_run(
    tmp_path: Path, whole: tuple[Path, RunFolder], worlds: tuple[int, int, int]
) -> None:
    spec, run = whole
    noted = tmp_path / "noted"
    noted.mkdir()
    for world, last in zip(worlds, (8, 16, STEPS), strict=True):
        # What a kill just after the checkpoint of step `last` leaves, and no later one.
        resumed = train(spec, tmp_path / "run", world=world, rank=partial(_noting, noted))
        for path in (tmp_path / "run" / "checkpoints").iterdir():
            if int(path.name.removeprefix("step-")) > last:
                shutil.rmtree(path)
        first, until = last - 7 if last < STEPS else 17, 8 * last
        trained = sorted(
            index
            for file in noted.glob(f"{world}-*.txt")
            for index in map(int, file.read_text().split())
            if index < until
        )
        assert trained == list(range(8 * (first - 1), until))
        for file in noted.iterdir():
            file.unlink()
    assert losses(resumed) == pytest.approx(losses(run), abs=1e-4)
    assert resumed.evaluations()[-1]["validation_loss"] == pytest.approx(
        run.evaluations()[-1]["validation_loss"], abs=1e-4
    )
