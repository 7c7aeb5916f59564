"""Starts each board over its data, and says what its processes take."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import psutil
from data import BIG_START, DAY_S, DAYS, GPUS, NODES, ROOT, STEPS, loss_at, summary
from peers import Peer
from peers import install as install_peers

PACKAGES = {"codecarbon": "codecarbon[carbonboard]", "tensorboard": "tensorboard", "mlflow": "mlflow"}
TITLES = {"hoofprint": "hoofprint", "codecarbon": "carbonboard", "tensorboard": "TensorBoard", "mlflow": "MLflow"}
READY_S = 120.0


def install(cache: Path) -> dict[str, Peer]:
    """Ours, and each board in a venv of its own; one that cannot be installed says why."""
    return install_peers(cache, PACKAGES, {"codecarbon": "carbonboard"})  # metering has one without a board


@dataclass
class Board:
    """A server that answers at `address`."""

    address: str
    process: psutil.Popen
    ready_s: float = 0.0  # from its start to its first page

    def memory_mb(self) -> float:
        """The most that its processes have held so far, summed over them."""
        family = [self.process, *self.process.children(recursive=True)]
        return sum(_peak_kb(each.pid) for each in family) / 1e3

    def cpu_s(self) -> float:
        return sum(self.process.cpu_times()[:2])

    def ask(self, path: str) -> Any:
        """The JSON that lies at an address."""
        with urlopen(self.address + path, timeout=120) as answer:
            return json.loads(answer.read())

    def settle(self, quiet_s: float = 3.0, limit_s: float = 300.0) -> float:
        """Waits until it has computed nothing for a while; returns how long that took."""
        began, last, since = time.monotonic(), -1.0, time.monotonic()
        while time.monotonic() - began < limit_s and time.monotonic() - since < quiet_s:
            family = [self.process, *self.process.children(recursive=True)]
            used = sum(sum(each.cpu_times()[:2]) for each in family)
            if used - last > 0.15:
                last, since = used, time.monotonic()
            time.sleep(0.5)
        return time.monotonic() - began


def _peak_kb(pid: int) -> float:
    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return float(found.group(1)) if found else 0.0


@contextmanager
def hoofprint(runs: Path) -> Iterator[Board]:
    port = _free_port()
    command = [sys.executable, "-m", "orchestrator", "dashboard", "--runs", str(runs), "--port", str(port)]
    with _serving(command, f"http://127.0.0.1:{port}") as board:
        yield board


@contextmanager
def peer(name: str, python: Path, data: Path) -> Iterator[Board]:
    """A peer's board over what `peer_data` made in `data`."""
    port = _free_port()
    program = str(python.parent / {"codecarbon": "carbonboard"}.get(name, name))
    command = {
        "codecarbon": [program, str(data / "emissions.csv"), f"--port={port}"],
        "tensorboard": [program, "--logdir", str(data), "--port", str(port)],
        "mlflow": [program, "server", "--backend-store-uri", f"sqlite:///{data}/mlflow.db", "--port", str(port)],
    }[name]
    with _serving(command, f"http://127.0.0.1:{port}") as board:
        yield board


@contextmanager
def _serving(command: list[str], address: str) -> Iterator[Board]:
    with open(os.devnull, "wb") as nowhere:
        process = psutil.Popen(command, cwd=ROOT, stdout=nowhere, stderr=nowhere)
        board = Board(address, process)
        try:
            began = time.monotonic()
            until = began + READY_S
            while True:
                try:
                    urlopen(address, timeout=READY_S).close()
                    board.ready_s = time.monotonic() - began
                    break
                except (URLError, ConnectionError, TimeoutError) as error:
                    if process.poll() is not None or time.monotonic() > until:
                        raise RuntimeError(f"{command[0]} gave no page: {error}") from None
                    time.sleep(0.05)
            yield board
        finally:
            for each in [*process.children(recursive=True), process]:
                each.kill()
            process.wait(30)


def peer_data(name: str, python: Path, folder: Path, count: int, long: bool) -> Path:
    """Writes what a board is shown: `count` runs, and with `long` the series of the run of 21 days. Kept once made."""
    done = folder / "done"
    if done.exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    runs = [summary(number) for number in range(count)]
    print(f"data of {name} ...", flush=True)
    if name == "codecarbon":
        _emissions(folder / "emissions.csv", runs)
    else:
        (folder.parent / "runs.json").write_text(json.dumps(runs))
        (folder.parent / "series.json").write_text(json.dumps(_series() if long else {}))
        script = Path(__file__).with_name("peer_data.py")
        files = [str(folder.parent / f"{each}.json") for each in ("runs", "series")]
        subprocess.run([str(python), str(script), name, str(folder), *files], check=True, capture_output=True)
    done.touch()
    return folder


def _series() -> dict[str, list[Any]]:
    """The loss of every step, and the power of the whole run by the minute."""
    step_s = DAYS * DAY_S / STEPS
    loss = [[step, BIG_START + step * step_s, loss_at(step)] for step in range(1, STEPS + 1)]
    power = [[minute, BIG_START + 60 * minute, NODES * GPUS * 350.0] for minute in range(DAYS * 1440)]
    return {"loss": loss, "power_w": power}


def _emissions(path: Path, runs: list[dict[str, Any]]) -> None:
    """The file that CodeCarbon's tracker writes, a row a run."""
    rows = []
    for run in runs:
        row: dict[str, Any] = dict.fromkeys(EMISSIONS, "")
        row |= {"timestamp": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(run["start_unix_s"])), "pue": 1.0, "wue": 0}
        row |= {"project_name": "runs", "run_id": run["name"], "duration": run["duration_s"]}
        row |= {"emissions": run["carbon_kg"], "emissions_rate": run["carbon_kg"] / run["duration_s"]}
        row |= {"energy_consumed": run["energy_kwh"], "gpu_energy": run["energy_kwh"], "cpu_energy": 0, "ram_energy": 0}
        row |= {"cpu_power": 50, "gpu_power": 300, "ram_power": 10, "water_consumed": 0, "on_cloud": "N"}
        row |= {"country_name": "Germany", "country_iso_code": "DEU", "region": "", "tracking_mode": "machine"}
        row |= {"cpu_count": 2, "cpu_model": "cpu", "gpu_count": 1, "gpu_model": "gpu", "ram_total_size": 24}
        rows.append(row)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, EMISSIONS)
        writer.writeheader()
        writer.writerows(rows)


EMISSIONS = (
    "timestamp", "project_name", "run_id", "experiment_id", "duration", "emissions", "emissions_rate", "cpu_power",
    "gpu_power", "ram_power", "cpu_energy", "gpu_energy", "ram_energy", "energy_consumed", "water_consumed",
    "country_name", "country_iso_code", "region", "cloud_provider", "cloud_region", "os", "python_version",
    "codecarbon_version", "cpu_count", "cpu_model", "gpu_count", "gpu_model", "longitude", "latitude",
    "ram_total_size", "tracking_mode", "cpu_utilization_percent", "gpu_utilization_percent",
    "ram_utilization_percent", "ram_used_gb", "on_cloud", "pue", "wue",
)  # fmt: skip


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
