"""A Ray that does not start is told in one line."""

from pathlib import Path
from typing import Any

import pytest
import ray
from tiny import write_spec

from orchestrator.launch import LONGEST_REASON, start_ray
from orchestrator.spec_file import load_experiment


def test_a_ray_that_does_not_start_is_one_short_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = "\n".join(f"[2026-01-01] gcs_server.cc:{line}: still waiting" for line in range(20))

    def refuse(**_: Any) -> None:
        raise RuntimeError(f"The current node timed out during startup.\n{log}\nOSError: no free port was found")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(RuntimeError) as raised:
        start_ray(load_experiment(write_spec(tmp_path)))
    said = str(raised.value)
    assert said.startswith("Ray did not start on this machine") and "no free port was found" in said
    assert "\n" not in said and "gcs_server" not in said
    assert len(said.rpartition(": ")[2]) <= LONGEST_REASON
