"""Meters one command from its first to its last moment, and leaves a run folder that accounts for it.

    measurement = measure(["python", "train.py"], "runs", gpus="visible")
    print(measurement.window.energy_j, measurement.exit_code)

The folder is made, with status "running", before the command starts: a meter that is killed leaves a run that can be
accounted from its ledger. Once the command has ended nothing here changes its exit code any more.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import signal
import socket
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from energy import locks
from energy.metering import child
from energy.metering.live import told
from energy.metering.measurement import Factors, Measurement
from energy.metering.meter import Meter
from energy.metering.windows import Window
from energy.run_version import program_version
from energy.runs import LOCK, MEASURE, RunFolder, require_run_name
from energy.sensors import discover
from energy.sensors.declared import node_sensors

COMMAND_PHASE = "command"
ATTEMPT = 1
CLOCKS_S = 1e-3
LOOK_UP_S = 10.0  # the models of CPU and memory need a second or two of it, where there are no counters
STOPPED_BY = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def measure(
    command: Sequence[str],
    runs_dir: str | os.PathLike[str] = "runs",
    *,
    name: str | None = None,
    interval_s: float = 1.0,
    gpus: Collection[str] | str | None = "visible",
    factors: Factors | None = None,
    declared: Mapping[str, Any] | None = None,
    prometheus: tuple[str, int] | None = None,
    stdout_to_stderr: bool = False,
    opening: Callable[[RunFolder, Meter, str | None], object] = lambda folder, meter, address: None,
) -> Measurement:
    """Run `command` to its end, metered, and account for it.

    interval_s, gpus: as for `Meter`. declared: what the node has beyond its counters, as for
    `energy.sensors.declared.node_sensors`. prometheus: address and port to serve the figures at. `opening` is told what
    will be metered before the command starts: the folder, the meter and the URL of that endpoint. Raises, with nothing
    left behind and nothing started: ValueError for what cannot be (a name that is taken, a GPU that is not here, a port
    in use), OSError for a folder that cannot be written, child.CannotStart for a command that does not exist.
    """
    child.find(command[0])
    factors = factors or Factors()
    folder = _make_folder(Path(runs_dir), name)
    windows: list[Window] = []
    try:
        with ExitStack() as at_end:
            with child.tidy():
                at_end.callback(os.close, _lock(folder))
                meter = _meter(folder, interval_s, gpus, declared or {})
                at_end.callback(meter.stop)
                _require_gpus(gpus, meter)
                address = None
                if prometheus is not None:
                    from energy.metering.prometheus import serve

                    host, port = prometheus
                    endpoint = serve(meter, port, host, run=folder.path.name)
                    at_end.callback(endpoint.close)
                    address = endpoint.url
                run = _describe(folder, command, name, factors, meter)
                folder.write_run(run)
                meter.start()
                opening(folder, meter, address)
                at_end.enter_context(told(folder.path / "live" / f"{meter.node}.json", meter.live))
            with child.undisturbed():
                mark = uuid.uuid4().hex
                code = child.run(
                    command,
                    stdout_to_stderr=stdout_to_stderr,
                    mark=mark,
                    started=lambda: _begin(meter),
                    ended=lambda: windows.append(meter.end(COMMAND_PHASE)),
                )
                start_s, end_s = windows[0].span_monotonic_s  # of the ledger nothing else counts
                meter.note({"event": "only", "from_monotonic_s": start_s, "until_monotonic_s": end_s})
                meter.stop()
                if left := child.left_behind(mark):
                    meter.warnings.append(
                        f"the command has ended and left {len(left)} process{'es' * (len(left) > 1)} at work "
                        f"({', '.join(left[:5])}{', ...' * (len(left) > 5)}): what they use from then on is not counted"
                    )
                result = _account(Measurement(folder, code, windows[0], factors), run, meter)
                at_end.close()
                return result
    except BaseException:
        if not windows:  # the command never ran
            _discard(folder)
        raise


def _begin(meter: Meter) -> None:
    meter.begin(COMMAND_PHASE)
    meter.mark(ATTEMPT)  # with a row of its own, so that the ledger is cut where the command began


def _account(measurement: Measurement, run: dict[str, Any], meter: Meter) -> Measurement:
    """Write down how it ended and the record. What cannot be written is a fault: the figures are there all the same."""
    from energy.records.record import write_record

    folder, window, code = measurement.folder, measurement.window, measurement.exit_code
    status, error = ending(code)
    spans = {"started_unix_s": window.start_unix_s, "ended_unix_s": window.end_unix_s}
    said = measurement.warnings
    said += meter.warnings
    try:
        _mark(folder, window)
        folder.write_run(
            run
            | {"status": status, "error": error, "exit_code": code, "ended_unix_s": window.end_unix_s}
            | {"attempts": [{"attempt": ATTEMPT, "status": status, **spans}], "meters": [meter.describe()]}
        )
        record = write_record(folder)
    except (OSError, ValueError) as fault:
        measurement.faults.append(f"the record could not be written: {fault}")
    else:
        said += [text for text in record["quality"]["warnings"] if text not in said]
    untold = [d for d in measurement.devices if d.note and not any(d.uuid in text for text in said)]
    said += [f"{d.name} ({d.uuid}): {d.note}" for d in untold]
    return measurement


def ending(exit_code: int) -> tuple[str, str | None]:
    """(status, error) of a run whose command ended so."""
    if exit_code == 0:
        return "completed", None
    number = exit_code - child.BY_SIGNAL
    if number in set(signal.Signals):
        status = "stopped" if number in STOPPED_BY else "failed"
        return status, f"the command was ended by {signal.Signals(number).name}"
    return "failed", f"the command ended with exit code {exit_code}"


def _mark(folder: RunFolder, window: Window) -> None:
    """The command's own time as a phase; wider by what two clocks may differ, or a billionth of the energy would
    be no phase's."""
    folder.metrics_dir.mkdir(parents=True, exist_ok=True)
    span = {"start_unix_s": window.start_unix_s - CLOCKS_S, "end_unix_s": window.end_unix_s + CLOCKS_S}
    with open(folder.metrics_file(0), "a", encoding="utf-8") as file:
        file.write(json.dumps({"event": "phase", "phase": COMMAND_PHASE, "attempt": ATTEMPT, **span}) + "\n")


def _describe(
    folder: RunFolder, command: Sequence[str], name: str | None, factors: Factors, meter: Meter
) -> dict[str, Any]:
    now, own = time.time(), program_version()
    on_gpus = any(sensor["kind"] == "gpu" for sensor in meter.sensors)
    return {
        "run_id": folder.path.name,
        "name": name or shlex.join(command)[:80],
        "status": "running",
        "kind": MEASURE,
        "purpose": MEASURE,
        "created_unix_s": now,
        "ended_unix_s": None,
        "error": None,
        "code_revision": None,  # of the command: not known to us
        "versions": {"python": platform.python_version()} | ({"hoofprint": own} if own else {}),
        "attempts": [{"attempt": ATTEMPT, "status": "running", "started_unix_s": now}],
        "hosts": [meter.node],
        "world_size": None,
        "device_type": "cuda" if on_gpus else "cpu",
        "model": {"params": None, "dim": None},
        "data": {},
        "planned_tokens": None,
        "accounting": factors.accounting(),
        "meters": [meter.describe()],
        "command": shlex.join(["hoofprint", MEASURE, "--", *command]),
        "measured_command": list(command),
        "working_directory": os.getcwd(),
    }


def _make_folder(runs_dir: Path, name: str | None) -> RunFolder:
    """A new run folder. ValueError when the name is none, or is taken."""
    if name is not None:
        require_run_name(name)
    stem = name or time.strftime(f"{MEASURE}-%Y%m%d-%H%M%S")
    number = 1
    while True:
        path = runs_dir.absolute() / (stem if number == 1 else f"{stem}-{number}")
        try:
            path.mkdir(parents=True)
            return RunFolder(path)
        except FileExistsError:
            if name is not None:
                raise ValueError(f"the run {path} exists; give another --name") from None
            number += 1  # of several that start in the same second each gets its own


def _discard(folder: RunFolder) -> None:
    """Remove a folder in which nothing happened."""
    shutil.rmtree(folder.path, ignore_errors=True)


def _lock(folder: RunFolder) -> int:
    """Whoever looks sees by it that the run is at work, where the file system has locks."""
    held = os.open(folder.path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        locks.lock(held)
    except BaseException:
        os.close(held)
        raise
    return held


def _meter(
    folder: RunFolder, interval_s: float, gpus: Collection[str] | str | None, declared: Mapping[str, Any]
) -> Meter:
    """A meter whose sensors are ready: of a command that is shorter than their look-up nothing would be known else."""
    node = socket.gethostname()
    sensors, warnings = discover(node, gpus=gpus)
    sensors = [*sensors, *node_sensors(node, **declared)]
    give_up_s = time.monotonic() + LOOK_UP_S
    for sensor in sensors:
        if sensor.describe()["method"] == "modelled" or sensor.describe()["kind"] == "node":
            while sensor.read().pending and time.monotonic() < give_up_s:
                time.sleep(0.01)
    ledger = folder.ledger_file(node)
    meter = Meter(ledger, node=node, interval_s=interval_s, sensors=sensors, discover_sensors=False, whole_process=True)
    meter.warnings += warnings
    return meter


def _require_gpus(gpus: Collection[str] | str | None, meter: Meter) -> None:
    """ValueError for a GPU that was named and is not here; what an environment names may be stale, and only warns."""
    if gpus is None or isinstance(gpus, str):
        return
    seen = any(sensor["kind"] == "gpu" for sensor in meter.sensors)
    for name in gpus:
        told = [text for text in meter.warnings if f"gpus names {name}," in text or "no GPU is measured" in text]
        if told or not seen:
            why = told[0] if told else "no GPU of that name is here"
            raise ValueError(f"--gpus {name}: {why}; `hoofprint doctor` lists the GPUs of this machine")
