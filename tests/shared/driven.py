"""The driver with something else in place of Ray and the workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny import write_spec

from energy.runs import RunFolder
from orchestrator.driver import run as driver
from orchestrator.screens.run import RunScreen
from orchestrator.spec.file import load_experiment


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the driver with `training` in its place; (the run's folder, the exit code)."""
    spec = write_spec(tmp_path)

    def begin(training: Any, *overrides: str, resume: Path | None = None) -> tuple[RunFolder, int]:
        monkeypatch.setattr(driver, "train", training)
        experiment = load_experiment(spec, overrides)
        name = None if resume else "one"
        return driver.run_experiment(experiment, tmp_path / "runs", RunScreen(), name, resume, spec)

    return begin
