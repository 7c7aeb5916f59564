"""The same runs for TensorBoard and MLflow, written with their own libraries by the interpreter of their venv.

    python peer_data.py tensorboard|mlflow FOLDER RUNS.json SERIES.json

RUNS.json: [{name, start_unix_s, duration_s, status, loss, energy_kwh, carbon_kg}]; SERIES.json: {} or {name: [[step,
unix s, value], ...]} of one long run.
"""

import json
import sys
from pathlib import Path


def tensorboard(folder: Path, runs: list, series: dict) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    def scalar(tag: str, value: float, step: int, unix_s: float) -> Event:
        return Event(wall_time=unix_s, step=step, summary=Summary(value=[Summary.Value(tag=tag, simple_value=value)]))

    for run in runs:
        writer = EventFileWriter(str(folder / run["name"]))
        for tag in ("loss", "energy_kwh", "carbon_kg"):
            writer.add_event(scalar(tag, run[tag], 1, run["start_unix_s"]))
        writer.close()
    if series:
        writer = EventFileWriter(str(folder / "long"), max_queue_size=1000)
        for tag, points in series.items():
            for step, unix_s, value in points:
                writer.add_event(scalar(tag, value, step, unix_s))
        writer.close()


def mlflow(folder: Path, runs: list, series: dict) -> None:
    from mlflow.entities import Metric, Param
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.create_experiment("runs", artifact_location=str(folder / "artifacts"))
    for run in runs:
        start_ms = int(run["start_unix_s"] * 1000)
        made = client.create_run(experiment, start_time=start_ms, run_name=run["name"])
        metrics = [Metric(key, run[key], start_ms, 1) for key in ("loss", "energy_kwh", "carbon_kg")]
        client.log_batch(made.info.run_id, metrics, [Param("purpose", run["purpose"])])
        end_ms = start_ms + int(run["duration_s"] * 1000)
        client.set_terminated(made.info.run_id, "FAILED" if run["status"] == "failed" else "FINISHED", end_ms)
    if series:
        made = client.create_run(experiment, run_name="long")
        for tag, points in series.items():
            for first in range(0, len(points), 1000):
                part = points[first : first + 1000]
                batch = [Metric(tag, value, int(unix_s * 1000), step) for step, unix_s, value in part]
                client.log_batch(made.info.run_id, batch)
        client.set_terminated(made.info.run_id)
        (folder / "long.txt").write_text(f"{experiment} {made.info.run_id}")


if __name__ == "__main__":
    tool, target, runs_file, series_file = sys.argv[1:]
    Path(target).mkdir(parents=True, exist_ok=True)
    told = json.loads(Path(runs_file).read_text()), json.loads(Path(series_file).read_text())
    {"tensorboard": tensorboard, "mlflow": mlflow}[tool](Path(target), *told)
