"""Specs of the repository, and run folders with the few keys of a footprint that a plan reads."""

import json
import socket
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orchestrator.plan.earlier_runs import SHAPE
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.file import load_experiment

EXPERIMENTS = Path(__file__).parents[3] / "experiments"


def spec(name: str, *overrides: str) -> Experiment:
    return load_experiment(EXPERIMENTS / f"{name}.yaml", overrides)


def footprint(experiment: Experiment, **changes: Any) -> dict[str, Any]:
    """A record as `energy.records.footprint` makes it: by default 8 GPUs that made 40,000 tokens/s at 320 W each."""
    config = experiment.llama_config()
    given: dict[str, Any] = {
        "run_id": "before", "device_type": "cuda", "world_size": 8, "gpu": "NVIDIA A100-SXM4-80GB", "hosts": ["node"],
        "tokens_per_s": 40_000.0, "power_w": 320.0, "duration_s": 4000.0, "step_s": 3600.0,
        "other_s": 180.0, "trained": None, "pue": 1.2, "intensity": 50.0, "method": "counter",
        "attempts": [], "held_s": None, "packages": 1, "mean_devices": None, "ended_unix_s": None,
    } | changes  # fmt: skip
    on_gpu = given["device_type"] == "cuda"
    devices = given["world_size"] if on_gpu else given["packages"]
    hours = (given["mean_devices"] or devices) * (given["held_s"] or given["duration_s"]) / 3600
    processed = given["tokens_per_s"] * given["step_s"]
    it_kwh = hours * given["power_w"] / 1000
    facility = it_kwh * given["pue"]
    shape = {key: asdict(config)[key] for key in SHAPE}
    return {
        "run": {"run_id": given["run_id"], "attempts": given["attempts"], "planned_tokens": experiment.planned_tokens},
        "model": shape | {"flop_per_token": config.flop_per_token},
        "data": {"tokens_trained": given["trained"] or processed, "tokens_processed": processed},
        "compute": {
            "tokens_per_s": given["tokens_per_s"], "flop_per_token": config.flop_per_token, "devices": devices,
            "mean_devices": given["mean_devices"],
        },
        "hardware": {
            "device_type": given["device_type"], "world_size": given["world_size"], "hosts": given["hosts"],
            "devices": [{"name": given["gpu"] if on_gpu else "a CPU", "kind": "gpu" if on_gpu else "cpu"}] * devices,
        },
        "time": {
            "duration_s": given["duration_s"], "device_hours": hours, "ended_unix_s": given["ended_unix_s"],
        },
        "energy": {
            "energy_it_kwh": it_kwh, "energy_facility_kwh": facility, "pue": given["pue"], "boundary": "gpu",
            "phases": [{"phase": "train_step", "seconds": given["step_s"]},
                       {"phase": "evaluation", "seconds": given["other_s"]}],
            "quantities": {"energy_it_kwh": {"boundary": "gpu", "method": given["method"]}},
        },
        "carbon": {"carbon_tco2eq": facility * given["intensity"] / 1e6, "intensity_g_per_kwh": given["intensity"]},
    }  # fmt: skip


def write_run(runs: Path, experiment: Experiment, **changes: Any) -> Path:
    """A run folder of this host with that footprint."""
    record = footprint(experiment, **({"hosts": [socket.gethostname()]} | changes))
    folder = runs / record["run"]["run_id"]
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"run_id": folder.name, "created_unix_s": len(list(runs.iterdir()))}))
    (folder / "footprint.json").write_text(json.dumps(record))
    return folder
