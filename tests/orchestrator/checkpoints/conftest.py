"""A run with three checkpoints, for all that are to be damaged, copied or loaded."""

from pathlib import Path

import pytest
from tiny import train, write_spec

from energy.runs import RunFolder


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunFolder]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return write_spec(folder), train(write_spec(folder), folder / "whole")
