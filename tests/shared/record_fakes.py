"""A run folder with everything in it that a record is computed from: two GPUs with counters and a modelled CPU."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from energy_fakes import FakeSensor, meter_fake, reading, write_phases

from energy.runs import RunFolder

SECONDS = 130
START = 1_750_000_000.0
MODEL = {
    "dim": 128, "n_layers": 4, "n_heads": 4, "vocab_size": 4096, "sequence_length": 256, "params": 2_098_304,
    "matmul_params": 1_572_864, "flop_per_token": 11_010_048,
}  # fmt: skip
SPEC = "name: small\nmodel:\n  size: tiny\nenergy:\n  pue: 1.1\n  intensity: 385 g/kWh\n"
ACCOUNTING: dict[str, Any] = {
    "pue": {"value": 1.1, "source": "spec"},
    "intensity_g_per_kwh": {"value": 385.0, "source": "spec"},
    "peak_flops": {"value": 312e12, "source": "data sheet"},
    "device_rated_power_w": {"value": 400.0, "source": "data sheet"},
}


def make_run(path: Path, *, meter: bool = True, start: float = START, uuid: str = "GPU", **changes: Any) -> RunFolder:
    """A run of 10 steps in 130 s at `path`; `changes` go into run.json."""
    run = RunFolder(path)
    if meter:
        times = [start + t for t in range(SECONDS)]
        sensors = [
            FakeSensor(f"{uuid}-1", [reading(100.0 * t, 100.0) for t in range(SECONDS)]),
            FakeSensor(f"{uuid}-2", [reading(210.0 * t, 200.0) for t in range(SECONDS)]),
            FakeSensor(f"cpu-{uuid}", [reading(None, 50.0)] * SECONDS, kind="cpu", method="modelled"),
        ]
        meter_fake(run, sensors, times)
    write_phases(run, [("startup", start, start + 10), ("train_step", start + 10, start + 120)])
    with open(run.metrics_file(0), "a", encoding="utf-8") as file:
        for step in range(1, 11):
            event = {"event": "step", "attempt": 1, "step": step, "tokens": 2048 * step, "loss": 8.0 / math.sqrt(step)}
            file.write(json.dumps(event | {"seconds": 11.0, "time_unix_s": start + 10 + 11 * step}) + "\n")
    (path / "experiment.yaml").write_text(SPEC, encoding="utf-8")
    end = start + SECONDS
    attempt = {"attempt": 1, "started_unix_s": start, "ended_unix_s": end, "status": "completed"}
    run.write_run(
        {
            "run_id": path.name, "name": "small", "status": "completed", "purpose": "final", "error": None,
            "created_unix_s": start, "ended_unix_s": end, "attempts": [attempt], "hosts": ["n1"], "world_size": 2,
            "device_type": "cuda", "model": MODEL, "data": {}, "planned_tokens": 20_480, "accounting": ACCOUNTING,
            "meters": [], "versions": {"hoofprint": "0.1.0"}, "command": "hoofprint run small.yaml",
            "code_revision": "0123abc",
        } | changes
    )  # fmt: skip
    return run
