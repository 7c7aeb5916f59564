"""How large a ledger grows in 21 days, and how long the account of 256 such nodes takes.

    python benchmarks/metering/scale.py [--days 21] [--nodes 256]

Part one lets the writer append 21 days of readings of eight GPUs, a CPU and a memory (twice a second, twice as often as
the default) with a clock that is turned by hand, and looks at the files and at the memory of the process. Part two
makes ledgers of many nodes at a row a minute and times the account, whose energy it compares with what was put in.
Written to benchmarks/results/metering_scale.json.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from energy.ledger import frames as ledger  # noqa: E402
from energy.ledger.frames import SCHEMA, encode, encode_json  # noqa: E402
from energy.ledger.readings import tick_dtype  # noqa: E402
from energy.ledger.writer import LedgerWriter, Tick  # noqa: E402
from energy.metering.track import Row  # noqa: E402

DAY_S = 86400
GPUS = 8


def sensors(node: str, gpus: int, host: bool) -> list[dict[str, Any]]:
    about = [
        {"uuid": f"GPU-{node}-{n}", "name": "NVIDIA A100-SXM4-80GB", "kind": "gpu", "method": "counter"}
        for n in range(gpus)
    ]
    if host:
        about += [
            {"uuid": f"{kind}@{node}", "name": kind, "kind": kind, "method": "modelled"} for kind in ("cpu", "dram")
        ]
    return [{**each, "node": node, "boundary": "gpu" if each["kind"] == "gpu" else "node"} for each in about]


def write_days(folder: Path, days: float) -> dict[str, Any]:
    """Append `days` of readings twice a second and return what lies on disk and in memory."""
    writer = LedgerWriter(folder / "n1.ledger", fsync_s=1e9)
    writer.header({"node": "n1", "boot_id": "b", "attempt": 1, "interval_s": 0.5, "sensors": sensors("n1", GPUS, True)})
    draw = random.Random(1)
    width = GPUS + 2
    energy, held = [0] * width, [0] * width
    started_s, now_s, number = time.process_time(), 0.0, 0
    while now_s < days * DAY_S:
        now_s += draw.uniform(0.4, 0.6)
        number += 1
        rows = []
        for d in range(width):
            gpu = d < GPUS
            # A step of training with its noise, boards that differ, and a checkpoint of 30 s every 20 min.
            power_w = (90.0 if now_s % 1200 < 30 else draw.gauss(340 + 5 * d, 30)) if gpu else 60.0 + d
            energy[d] += round(power_w * 500)
            held[d] += round(power_w * draw.uniform(480, 520))
            counter = energy[d] + 10**9 if gpu else -1
            rows.append(Row(0, 1, now_s - draw.uniform(0, 0.1), power_w, power_w, counter, held[d], energy[d], 0))
        writer.tick(Tick(1, number, 1.7e9 + now_s, now_s, 1, tuple(rows)))
    spent_s = time.process_time() - started_s
    writer.close()
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    return {
        "days": days,
        "devices": width,
        "readings": number,
        "files_mb": {name: size / 1e6 for name, size in sizes.items()},
        "disk_mb": sum(sizes.values()) / 1e6,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "cpu_s_with_simulation": spent_s,
    }


def write_minutes(path: Path, node: str, days: float, seed: int) -> int:
    """A ledger of one row a minute; returns its energy in mJ."""
    minutes = round(days * 1440)
    random_state = np.random.default_rng(seed)
    ticks = np.zeros(minutes, tick_dtype(GPUS))
    ticks["session"], ticks["number"] = 1, np.arange(1, minutes + 1) * 120
    ticks["monotonic_s"] = np.arange(minutes) * 60.0
    ticks["unix_s"] = 1.7e9 + ticks["monotonic_s"]
    ticks["attempt"], ticks["devices"] = 1, GPUS
    used = (random_state.normal(350, 20, (minutes, GPUS)) * 60e3).astype(np.int64)
    used[0] = 0
    rows = ticks["rows"]
    rows["n"], rows["at_s"] = 120, ticks["monotonic_s"][:, None]
    rows["power_min_w"], rows["power_max_w"] = 90.0, 410.0
    rows["energy_mj"] = used.cumsum(axis=0)
    rows["held_mj"], rows["counter_mj"] = rows["energy_mj"], rows["energy_mj"] + 10**9
    head = ledger.HEAD
    seed_crc = ledger.seed(ledger.MINUTE, ledger.VERSION)
    whole, size = ticks.tobytes(), ticks.dtype.itemsize
    with path.open("wb") as file:
        header = {"schema": SCHEMA, "session": 1, "node": node, "boot_id": node, "attempt": 1, "interval_s": 0.5}
        file.write(encode(ledger.HEADER, encode_json({**header, "sensors": sensors(node, GPUS, False)})))
        parts = []
        for start in range(0, len(whole), size):
            payload = whole[start : start + size]
            parts += [
                head.pack(ledger.MAGIC, ledger.MINUTE, ledger.VERSION, size, zlib.crc32(payload, seed_crc)),
                payload,
            ]
        file.write(b"".join(parts))
        end = {"session": 1, "event": "end", "unix_s": 0.0}
        file.write(encode(ledger.EVENT, encode_json(end)))
    return int(rows["energy_mj"][-1].sum())


def write_marks(run: Path, days: float) -> None:
    """Phase marks of rank 0: a checkpoint of 30 s every 20 min."""
    (run / "metrics").mkdir(parents=True)
    with (run / "metrics" / "rank-0.jsonl").open("w") as file:
        for start in range(0, round(days * DAY_S), 1200):
            for phase, first, last in (("checkpoint", 0, 30), ("train_step", 30, 1200)):
                mark = {"event": "phase", "attempt": 1, "phase": phase}
                times = {"start_unix_s": 1.7e9 + start + first, "end_unix_s": 1.7e9 + start + last}
                file.write(json.dumps(mark | times) + "\n")


ACCOUNT = """
import json, resource, sys, time
from energy.accounting.account import account_run
from energy.runs import RunFolder
started = time.perf_counter()
account = account_run(RunFolder(sys.argv[1]))
print(json.dumps({
    "seconds": time.perf_counter() - started,
    "energy_j": account.energy_j,
    "devices": len(account.devices),
    "phases": account.phases,
    "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    "warnings": account.warnings[:3],
}))
"""


def main() -> None:
    from report import machine, write_result

    parser = argparse.ArgumentParser()
    parser.add_argument("--days", type=float, default=21)
    parser.add_argument("--nodes", type=int, default=256)
    parser.add_argument("--work", type=Path, default=ROOT / ".cache" / "bench-scale")
    parser.add_argument("--only-ledger", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shutil.rmtree(arguments.work, ignore_errors=True)
    arguments.work.mkdir(parents=True)
    if arguments.only_ledger:
        print(json.dumps(write_days(arguments.work, arguments.days)))
        return
    # In a process of its own, so that its memory is the writer's and not numpy's.
    command = [
        sys.executable,
        __file__,
        "--only-ledger",
        "--days",
        str(arguments.days),
        "--work",
        f"{arguments.work}/one",
    ]
    one = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(
        f"one node, {arguments.days:g} days: {one['disk_mb']:.0f} MB on disk, {one['peak_memory_mb']:.0f} MB of memory"
    )
    run = arguments.work / "run"
    (run / "energy").mkdir(parents=True)
    truth_mj = sum(
        write_minutes(run / "energy" / f"n{n:03d}.ledger", f"n{n:03d}", arguments.days, n)
        for n in range(arguments.nodes)
    )
    write_marks(run, arguments.days)
    done = subprocess.run(
        [sys.executable, "-c", ACCOUNT, str(run)], check=True, capture_output=True, text=True, cwd=ROOT
    )
    account = json.loads(done.stdout)
    size_mb = sum(path.stat().st_size for path in (run / "energy").iterdir()) / 1e6
    shutil.rmtree(arguments.work)
    result = {
        "what": "a node's ledger after so many days; the account of many nodes at a row a minute",
        "machine": machine(),
        "ledger": one
        | {"target_disk_mb": 150, "target_memory_mb": 150}
        | {"met": one["disk_mb"] <= 150 and one["peak_memory_mb"] <= 150},
        "account": account
        | {
            "nodes": arguments.nodes,
            "days": arguments.days,
            "read_mb": size_mb,
            "true_energy_j": truth_mj / 1e3,
            "relative_error": account["energy_j"] / (truth_mj / 1e3) - 1,
            "target_seconds": 60,
            "target_memory_mb": 1000,
            "met": account["seconds"] <= 60 and account["peak_memory_mb"] <= 1000,
        },
    }
    write_result("metering_scale", result)


if __name__ == "__main__":
    main()
