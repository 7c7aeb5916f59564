"""A run of 36 hours on 2,048 GPUs with the power of every second, in one of which all of them spike, and the same run
while it goes on: what the seconds files of many nodes ask of the dashboard.

Two nodes are metered by the ledger's own writer, second by second, with a clock that is turned by hand. The others have
the rows of the second of these, under names and devices of their own.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data import BIG_START, GPUS, NODES, START, make_run
from scale import sensors

from energy.ledger import frames as ledger
from energy.ledger.frames import encode, encode_json
from energy.ledger.writer import LedgerWriter, Tick
from energy.metering.track import Row
from energy.runs import RunFolder

HOURS = 36
SPIKE_S, SPIKE_W = 100_000, 690.0  # in which second, and what each GPU draws then
POWER_W = 340.0
NAME = "wide"


class Node:
    """Eight GPUs that are read once a second, and the ledger of their node."""

    def __init__(self, path: Path, node: str, seed: int, since_s: float = 0.0) -> None:
        self._writer, self._draw = LedgerWriter(path, fsync_s=1e9), random.Random(seed)
        about = {"node": node, "boot_id": node, "attempt": 1, "interval_s": 1.0, "began_monotonic_s": since_s}
        self._writer.header({**about, "sensors": sensors(node, GPUS, False)})
        self._energy_mj, self._number = [0] * GPUS, 0

    def tick(self, unix_s: float, clock_s: float, spike: bool = False, last: bool = False) -> None:
        self._number += 1
        rows = []
        for gpu in range(GPUS):
            power_w = SPIKE_W if spike else self._draw.gauss(POWER_W, 12)
            self._energy_mj[gpu] += round(power_w * 1000) if self._number > 1 else 0
            used = self._energy_mj[gpu]
            rows.append(Row(0, 1, clock_s, power_w, power_w, used + 10**9, used, used, 0))
        self._writer.tick(Tick(self._writer.session, self._number, unix_s, clock_s, 1, tuple(rows)), last)
        if last:
            self._writer.event({"event": "end", "unix_s": unix_s, "until_monotonic_s": clock_s})

    def close(self) -> None:
        self._writer.close()


def wide_run(folder: Path) -> Path:
    """A runs folder of one run of so many hours, whose seconds files are more than are read whole."""
    run = RunFolder(folder / NAME)
    if (run.path / "run.json").exists():
        return folder
    shutil.rmtree(run.path, ignore_errors=True)
    run.energy_dir.mkdir(parents=True)
    print(f"writing {HOURS} hours of {NODES} nodes by the second ...", flush=True)
    for number in (0, 1):
        node = Node(run.ledger_file(_name(number)), _name(number), number)
        for second in range(HOURS * 3600 + 1):
            node.tick(BIG_START + second, float(second), second == SPIKE_S, second == HOURS * 3600)
        node.close()
    model = run.ledger_file(_name(1))
    whole = model.read_bytes()
    header = next(ledger.frames(whole, []))
    for number in range(2, NODES):
        name = _name(number)
        about = json.loads(header.payload) | {"node": name, "boot_id": name, "sensors": sensors(name, GPUS, False)}
        own = encode(ledger.HEADER, encode_json(about))
        run.ledger_file(name).write_bytes(own + whole[header.end :])
        for finer in (".seconds", ".raw", ".raw.old"):
            if model.with_suffix(finer).exists():
                os.link(model.with_suffix(finer), run.ledger_file(name).with_suffix(finer))
    small = make_run(folder / ".small", start=START)
    about = {"run_id": NAME, "created_unix_s": BIG_START, "ended_unix_s": BIG_START + HOURS * 3600, "attempts": []}
    run.write_run(small.read_run() | about | {"world_size": NODES * GPUS})
    shutil.rmtree(small.path)
    return folder


@contextmanager
def wide_live(folder: Path, source: Path) -> Iterator[Path]:
    """A runs folder of the same run while it goes on: every node appends a reading a second."""
    runs = folder / "wide-live"
    shutil.rmtree(runs, ignore_errors=True)
    run = RunFolder(runs / NAME)
    run.energy_dir.mkdir(parents=True)
    for path in RunFolder(source / NAME).ledgers():
        for suffix in (".ledger", ".seconds"):  # copies, as each is added to
            shutil.copy(path.with_suffix(suffix), run.energy_dir)
    about = json.loads((source / NAME / "run.json").read_text())
    run.write_run(about | {"status": "running", "ended_unix_s": None})
    wanted = 3 * NODES + 200
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, wanted)), hard))
    nodes = [Node(run.ledger_file(_name(n)), _name(n), n, time.monotonic()) for n in range(NODES)]
    ended = threading.Event()

    def go_on() -> None:
        at_s = time.monotonic()
        while not ended.wait(max(0.0, at_s - time.monotonic())):
            for node in nodes:
                node.tick(time.time(), time.monotonic())
            at_s += 1.0

    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    try:
        yield runs
    finally:
        ended.set()
        thread.join()
        for node in nodes:
            node.close()
        shutil.rmtree(runs)


def _name(number: int) -> str:
    return f"n{number:03d}"
