"""The runs that the boards are measured with: many small ones, and one of 21 days on 2,048 GPUs."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# After this folder: benchmarks/metering has a table.py and a run.py of its own.
sys.path += [str(ROOT), str(ROOT / "benchmarks" / "metering"), str(ROOT / "tests" / "shared")]

from record_fakes import START, make_run  # noqa: E402
from scale import DAY_S, GPUS, write_marks, write_minutes  # noqa: E402

from energy.records.record import FILE_NAME, write_record  # noqa: E402
from energy.runs import RunFolder  # noqa: E402

DAYS, NODES = 21, 256
STEPS, BATCH_TOKENS = 350_000, 4_000_000  # 1.4T tokens, as LLaMA-65B
BIG_START = 1.7e9  # of scale.write_minutes
PURPOSES = ("development", "final", "evaluation")
STATUSES = ("completed",) * 8 + ("failed", "stopped")


def summary(number: int) -> dict[str, Any]:
    """Of one of many runs what every board is told: the same figures for all."""
    return {
        "name": f"run-{number:05d}",
        "start_unix_s": START + 600.0 * number,
        "duration_s": 130.0,
        "status": STATUSES[number % len(STATUSES)],
        "purpose": PURPOSES[number % len(PURPOSES)],
        "loss": 2.0 + (number * 7919 % 1000) / 1000,
        "energy_kwh": 0.01 + (number * 104_729 % 997) / 1000,
        "carbon_kg": (0.01 + (number * 104_729 % 997) / 1000) * 0.385,
    }


def loss_at(step: int) -> float:
    return 1.6 + 9.0 / (1 + step / 400) ** 0.5 + 0.02 * math.sin(step * 0.7)


def many_runs(folder: Path, count: int) -> Path:
    """A runs folder of `count` runs with run.json and record, each with figures of its own."""
    if (folder / f"run-{count - 1:05d}" / FILE_NAME).exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    model = make_run(folder / "model")
    record, run = write_record(model), model.read_run()
    shutil.rmtree(model.path)
    for number in range(count):
        told = summary(number)
        path = folder / told["name"]
        path.mkdir(parents=True)
        times = {"created_unix_s": told["start_unix_s"], "ended_unix_s": told["start_unix_s"] + told["duration_s"]}
        about = {"run_id": told["name"], "status": told["status"], "purpose": told["purpose"]}
        (path / "run.json").write_text(json.dumps(run | about | times))
        one = json.loads(json.dumps(record))
        one["run"] |= {"run_id": told["name"], "status": told["status"], "purpose": told["purpose"]}
        one["time"] |= {"started_unix_s": times["created_unix_s"], "ended_unix_s": times["ended_unix_s"]}
        one["data"]["validation_loss"] = told["loss"]
        one["energy"] |= {"energy_it_kwh": told["energy_kwh"], "energy_facility_kwh": told["energy_kwh"] * 1.1}
        one["carbon"]["carbon_tco2eq"] = told["carbon_kg"] / 1000
        (path / FILE_NAME).write_text(json.dumps(one))
    return folder


def big_run(folder: Path, name: str = "llama-65b") -> Path:
    """A runs folder of one run: 21 days of 256 nodes with 8 GPUs each by the minute, 350,000 steps, and its record."""
    run = RunFolder(folder / name)
    if (run.path / FILE_NAME).exists():
        return folder
    shutil.rmtree(run.path, ignore_errors=True)
    print(f"writing {NODES} ledgers of {DAYS} days ...", flush=True)
    run.energy_dir.mkdir(parents=True)
    nodes = [f"n{number:03d}" for number in range(NODES)]
    for number, node in enumerate(nodes):
        write_minutes(run.ledger_file(node), node, DAYS, number)
    write_marks(run.path, DAYS)
    step_s = DAYS * DAY_S / STEPS
    with run.metrics_file(0).open("a") as file:
        for step in range(1, STEPS + 1):
            event = {"attempt": 1, "event": "step", "step": step, "time_unix_s": BIG_START + step * step_s}
            event |= {"loss": loss_at(step), "tokens": step * BATCH_TOKENS, "seconds": step_s, "lr": 1.5e-4}
            file.write(json.dumps(event | {"grad_norm": 0.4}) + "\n")
            if step % 1000 == 0:
                told = {"event": "evaluation", "step": step, "time_unix_s": BIG_START + step * step_s}
                file.write(json.dumps({"attempt": 1, **told, "validation_loss": loss_at(step) + 0.05}) + "\n")
    small = make_run(folder / ".small")
    end = BIG_START + DAYS * DAY_S
    attempt = {"attempt": 1, "started_unix_s": BIG_START, "ended_unix_s": end, "status": "completed"}
    about = {"run_id": name, "created_unix_s": BIG_START, "ended_unix_s": end, "attempts": [attempt], "hosts": nodes}
    run.write_run(small.read_run() | about | {"world_size": NODES * GPUS, "planned_tokens": STEPS * BATCH_TOKENS})
    shutil.copy(small.path / "experiment.yaml", run.path)
    shutil.rmtree(small.path)
    print("its record ...", flush=True)
    code = "import sys; from energy.records.record import write_record; from energy.runs import RunFolder; "
    code += "write_record(RunFolder(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(run.path)], check=True, cwd=ROOT)  # in its own memory
    return folder


def compared_runs(folder: Path, count: int = 8, steps: int = 2000) -> Path:
    """A runs folder of `count` runs of `steps` steps with ledgers, to be compared."""
    if (folder / f"try-{count - 1}" / FILE_NAME).exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    for number in range(count):
        run = make_run(folder / f"try-{number}", uuid=f"GPU{number}", start=START + 1000 * number)
        marks = [event for event in run.events() if event["event"] == "phase"]
        with run.metrics_file(0).open("w") as file:
            for mark in marks:
                file.write(json.dumps(mark) + "\n")
            for step in range(1, steps + 1):
                event = {"event": "step", "attempt": 1, "step": step, "tokens": 2048 * step, "seconds": 110 / steps}
                at_s = START + 1000 * number + 10 + 110 * step / steps
                event |= {"loss": loss_at(step) + 0.01 * number, "time_unix_s": at_s}
                file.write(json.dumps(event) + "\n")
        write_record(run)
    return folder


def long_runs(folder: Path, big: Path, count: int = 8) -> Path:
    """A runs folder of `count` runs of 21 days on 2,048 GPUs: each with metrics of its own, and the ledgers of one."""
    if (folder / f"long-{count - 1}" / FILE_NAME).exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    source = RunFolder(big / "llama-65b")
    for number in range(count):
        run = RunFolder(folder / f"long-{number}")
        run.energy_dir.mkdir(parents=True)
        for path in source.ledgers():
            os.link(path, run.energy_dir / path.name)  # 5 GB of each
        shutil.copy(source.path / "experiment.yaml", run.path)
        run.write_run(source.read_run() | {"run_id": run.path.name})
        record = json.loads((source.path / FILE_NAME).read_text())
        record["run"]["run_id"] = run.path.name
        record["data"]["validation_loss"] += 0.01 * number
        (run.path / FILE_NAME).write_text(json.dumps(record))
        run.metrics_dir.mkdir()
        with source.metrics_file(0).open() as lines, run.metrics_file(0).open("w") as file:
            for line in lines:
                event = json.loads(line)
                for key in ("loss", "validation_loss"):
                    if key in event:
                        event[key] += 0.01 * number
                file.write(json.dumps(event) + "\n")
    return folder
