"""The driver of a run: data, Ray, meters, training, and in every case the record and the report at the end."""

import importlib.metadata
import os
import platform
import shlex
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from energy.factors import accelerator
from energy.runs import RunFolder
from orchestrator.corpus import prepare_corpus
from orchestrator.screen import RayLog, RunScreen
from orchestrator.spec import Experiment
from orchestrator.spec_file import BadInput, dump_experiment, load_experiment, missing_files

PACKAGES = ("hoofprint", "torch", "ray", "codecarbon", "nvidia-ml-py", "sentencepiece")
RESUMABLE = {
    "training.evaluate_every_steps",
    "training.checkpoint_every_steps",
    "training.micro_batch_sequences",
}


def run_experiment(
    experiment: Experiment,
    runs_dir: Path,
    screen: RunScreen,
    run_id: str | None = None,
    resume: Path | None = None,
) -> tuple[RunFolder, int]:
    """Trains and accounts; the run folder and the exit code (0 done, 130 stopped by Ctrl-C, 1 failed)."""
    faults = missing_files(experiment)
    if faults:
        raise BadInput("\n".join(faults) + "\nnothing was started")
    started = time.time()
    prepared = prepare_corpus(experiment, screen.progress)
    folder = _resume_folder(experiment, resume) if resume else _new_folder(experiment, runs_dir, run_id)
    previous = folder.read_run() if resume else {}
    attempts = previous.get("attempts", [])
    attempts = [*attempts, {"attempt": len(attempts) + 1, "started_unix_s": started, "status": "running"}]
    record = previous | _describe(experiment, folder, prepared, attempts)
    folder.write_run(record)
    (folder.path / "experiment.yaml").write_text(dump_experiment(experiment), encoding="utf-8")
    (folder.path / "tokenizer.model").write_bytes(prepared.tokenizer_path.read_bytes())
    (folder.path / "stop").unlink(missing_ok=True)
    error: str | None = None
    complete = False
    with RayLog(folder.path / "logs" / "ray.log"):
        try:
            complete, error = _train(experiment, folder, prepared.path, started, len(attempts), screen)
        except BadInput as fault:
            error = str(fault)
        finally:
            status = "completed" if complete else "failed" if error else "stopped"
            ended = time.time()
            attempts[-1] |= {"ended_unix_s": ended, "status": status}
            folder.update_run(status=status, attempts=attempts, ended_unix_s=ended, error=error)
    _account(folder, screen)
    return folder, 0 if complete else 1 if error else 130


def _train(
    experiment: Experiment, folder: RunFolder, corpus: Path, started: float, attempt: int, screen: RunScreen
) -> tuple[bool, str | None]:
    from orchestrator.launch import Training, choose_workers, start_ray
    from orchestrator.meters import describe_meters, start_meters, stop_meters
    from orchestrator.worker import Job

    stops = _StopOnInterrupt(folder.path / "stop", screen)
    start_ray(experiment)
    import ray

    stops.install()  # after ray.init, which installs handlers of its own
    meters: list[Any] = []
    try:
        meters = start_meters(folder.path, experiment.energy.sample_interval, attempt)
        described = describe_meters(meters)
        workers, device = choose_workers(experiment)
        folder.update_run(meters=described, world_size=workers, device_type=device)
        screen.opening(experiment, folder, described, workers, device)
        job = Job(str(folder.path), str(corpus), experiment.model_dump(mode="json"), started)
        training = Training(job, workers, device, str(folder.path / "logs"))
        training.start()
        with screen.live(experiment, folder):
            while training.is_alive():
                training.join(timeout=0.5)
                screen.update(folder)
        if training.error is not None:
            return False, _root_cause(training.error)
        return bool(training.complete), None
    finally:
        for fault in stop_meters(meters):
            screen.note(fault)
        stops.restore()
        ray.shutdown()


class _StopOnInterrupt:
    """Ctrl-C once: checkpoint, report, end. Twice: end now; the ledger and the last checkpoint stay."""

    def __init__(self, stop_file: Path, screen: RunScreen):
        self._stop_file, self._screen, self._count = stop_file, screen, 0
        self._old: dict[int, Any] = {}

    def install(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._old[number] = signal.signal(number, self._handle)

    def restore(self) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        self._count += 1
        if self._count > 1:
            os._exit(130)
        self._stop_file.touch()
        self._screen.note("stopping: checkpoint and report first; Ctrl-C again ends at once")


def _new_folder(experiment: Experiment, runs_dir: Path, run_id: str | None) -> RunFolder:
    name = run_id or f"{experiment.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    path = (runs_dir / name).resolve()
    if path.exists():
        raise BadInput(f"the run {path} exists; give another --name, or go on with it: --resume {path}")
    path.mkdir(parents=True)
    return RunFolder(path)


def _resume_folder(experiment: Experiment, path: Path) -> RunFolder:
    spec = path / "experiment.yaml"
    if not spec.exists():
        raise BadInput(f"{path} is not a run: it has no experiment.yaml")
    before = _flat(load_experiment(spec).model_dump(mode="json"))
    now = _flat(experiment.model_dump(mode="json"))
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    refused = [
        key for key in changed if key.split(".")[0] in ("model", "data", "training", "seed") and key not in RESUMABLE
    ]
    if refused:
        raise BadInput(
            f"the spec differs from the run's in {', '.join(refused)}: a resumed run would mean nothing; "
            f"undo the change, or start a new run"
        )
    return RunFolder(path.resolve())


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        return {prefix: value}
    return {k: v for key, child in items for k, v in _flat(child, f"{prefix}.{key}" if prefix else str(key)).items()}


def _describe(experiment: Experiment, folder: RunFolder, prepared: Any, attempts: list[dict]) -> dict[str, Any]:
    config = experiment.llama_config(prepared.vocab_size)
    energy = experiment.energy

    def figure(key: str) -> dict[str, Any] | None:
        value = getattr(energy, key)
        return None if value is None else {"value": value, "source": getattr(energy, f"{key}_source")}

    known = accelerator(experiment.cluster.accelerator) if experiment.cluster.accelerator else None
    return {
        "run_id": folder.path.name,
        "name": experiment.name,
        "status": "running",
        "purpose": "final",
        "created_unix_s": attempts[0]["started_unix_s"],
        "ended_unix_s": None,
        "error": None,
        "code_revision": _revision(),
        "versions": {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in PACKAGES},
        "attempts": attempts,
        "hosts": [socket.gethostname()],
        "world_size": experiment.cluster.workers,
        "device_type": None,
        "model": asdict(config)
        | {
            "params": config.params,
            "matmul_params": config.matmul_params,
            "flop_per_token": config.flop_per_token,
        },
        "data": prepared.description,
        "planned_tokens": experiment.total_steps * experiment.training.batch_tokens,
        "accounting": {
            "pue": figure("pue"),
            "intensity_g_per_kwh": figure("intensity"),
            "device_rated_power_w": figure("device_rated_power"),
            "peak_flops": {"value": known.peak_flops, "source": known.source} if known else None,
        },
        "meters": [],
        "command": shlex.join(["hoofprint", *sys.argv[1:]]),
    }


def _revision() -> str | None:
    """The commit of the code that runs, with a mark when the tree was changed; None outside a checkout."""
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _root_cause(error: Exception) -> str:
    """The last line of the innermost failure, which is what the user can act on; the rest is in logs/ray.log."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else repr(error)


def _account(folder: RunFolder, screen: RunScreen) -> None:
    from dashboards.report import write_report
    from energy.record import write_record

    footprint = write_record(folder)
    html, _ = write_report(folder)
    screen.closing(folder, footprint, html)
