"""A run as its driver watches it: its folder, and what ranks and meters write into it, looked at by the real thing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from tiny import write_spec

from energy.runs import RunFolder
from orchestrator.driver.run_watch import RunWatch
from orchestrator.spec.file import dump_experiment, load_experiment

NOW = 1_760_000_000.0
PLACE = ("energy.pue=1.25", "energy.pue_source=a test", "energy.intensity=400 g/kWh", "energy.intensity_source=a test")


@pytest.fixture
def spec(tmp_path: Path) -> Any:
    path = write_spec(tmp_path)
    return lambda *overrides: load_experiment(path, overrides)


@pytest.fixture
def run(tmp_path: Path, spec: Any) -> Any:
    """A run's folder as the driver has it when the meters run, and what writes into it as its ranks and meters do."""

    class Run:
        folder = RunFolder(tmp_path / "runs" / "one")
        said: list[str] = []

        def watch(self, *overrides: str, attempts: int = 1) -> RunWatch:
            experiment = spec(*overrides)
            self.folder.path.mkdir(parents=True, exist_ok=True)
            (self.folder.path / "experiment.yaml").write_text(dump_experiment(experiment))
            times = [{"attempt": n + 1, "started_unix_s": NOW, "status": "running"} for n in range(attempts)]
            document = {
                "world_size": 1, "device_type": "cpu", "attempts": times, "meters": [],
                "model": {"flop_per_token": 1e6},
            }  # fmt: skip
            self.folder.write_run(document | {"status": "running", "run_id": "one"})
            return RunWatch(experiment, self.folder, document, self.said.append, False)

        def mark(self, **event: Any) -> None:
            self.folder.metrics_dir.mkdir(exist_ok=True)
            with self.folder.metrics_file(0).open("a") as file:
                file.write(json.dumps({"attempt": 1, **event}) + "\n")

        def step(self, number: int, at: float, seconds: float = 1.0) -> None:
            if number == 1:
                self.mark(event="enter", phase="train_step", time_unix_s=at - seconds)
            self.mark(event="step", step=number, loss=3.0, seconds=seconds, time_unix_s=at)

        def meter(
            self, at: float, power_w: float | None, energy_j: float | None, node: str = "n1", pid: int = 1
        ) -> None:
            """None: it is there, and can read nothing."""
            device: dict[str, Any] = {"uuid": "GPU-1", "name": "a GPU", "kind": "gpu", "missing": None, "counted": True}
            device |= {"power_w": power_w, "energy_j": energy_j, "counter_mj": round(1e5 * (at - NOW))}  # of 100 W
            figures = {"node": node, "meter_pid": pid, "time_unix_s": at, "power_w": power_w, "energy_j": energy_j}
            figures |= {"boot_id": "one", "began_monotonic_s": 1.0}
            path = self.folder.path / "live" / f"{node}.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(figures | {"missing": [], "devices": [device]}))
            self.changes = getattr(self, "changes", 0) + 1
            os.utime(path, ns=(self.changes, self.changes))  # as if each had been written at a time of its own

    Run.said = []
    return Run()
