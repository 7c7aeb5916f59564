"""64 nodes' meters on one machine, eight GPUs of the stand-in each, and what they cost the driver that listens.

The driver watches as that of a run does (`RunWatch`, with `live.json` and a budget), and reads the files of as many
ranks as there are GPUs. No rank trains: the files get a line a second.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.resilience.places import METER, children_of, title_of
from benchmarks.resilience.stand_in import ROOT, StandIn, clean_environment, percent_of_truth
from energy.ledger.readings import read_sessions
from energy.runs import RunFolder
from orchestrator.driver.launch import RAY_ENVIRONMENT
from orchestrator.driver.own_ray import OWN_RAY_ENVIRONMENT

NODES, GPUS, SECONDS = 64, 8, 300.0
# After the last meter has come up, watched already: RunWatch keeps a minute of all ranks' waits, and a process of Ray
# that exports metrics, meter or not, grows by some 4 MB in its first quarter of an hour, by less and less.
SETTLE_S = 540.0
STEP_S = 1.0
LOOKED_AT = (
    "The driver does what a run's does twice a second (`RunWatch`): power and energy of all nodes, a budget, the files "
    "of as many ranks as there are GPUs, which get a line a second, and `live.json`. Its start, its end and Ray Train "
    "are not in these figures. Not emulated: 64 raylets, whose CPU and memory (a core, 9 GB) would be those of 64 "
    "machines."
)
LATE_S = 5.0  # between two rows of a ledger: no reading was left out
TARGETS = {"driver_cpu_percent": 5.0, "memory_growth_percent": 2.0, "percent_of_truth": [99.5, 100.5]}


def measure(
    work: Path,
    nodes: int = NODES,
    seconds: float = SECONDS,
    settle_s: float = SETTLE_S,
    driver_of: Callable[[dict[str, Any], Path], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Meters of `nodes` nodes for so many seconds, and the driver's part in a process and a Ray of its own.

    driver_of: other than this, `drive` where a Ray is there already.
    """
    from tiny import write_spec  # and with it torch, which no driver imports

    stand_ins = [StandIn(work / "stand-in", node, GPUS) for node in range(1, nodes + 1)]
    run = RunFolder(work / "run")
    run.write_run(
        {
            "run_id": "meters",
            "status": "running",
            "world_size": nodes * GPUS,
            "device_type": "cpu",
            "attempts": [{"attempt": 1, "started_unix_s": time.time(), "status": "running"}],
            "meters": [],
            "model": {"flop_per_token": 1e6},
        }
    )
    asked = {
        "run": str(run.path),
        "spec": str(write_spec(work, steps=1_000_000)),
        "nodes": {f"node-{number:03d}": each.environment for number, each in enumerate(stand_ins, start=1)},
        "settle_s": settle_s,
        "seconds": seconds,
    }
    with _ranks(run, nodes * GPUS):
        driver = (driver_of or _in_a_process)(asked, work)
    readings = _readings(run)
    percents = list(percent_of_truth(run, stand_ins).values())
    growth = 100 * (driver["memory_mb"]["end"] / driver["memory_mb"]["begin"] - 1)
    meters_growth = 100 * (driver["meters_memory_mb"]["end"] / driver["meters_memory_mb"]["begin"] - 1)
    result = {
        "what": f"{nodes} meter actors of one Ray on one machine, each the meter of a node of its own name with {GPUS} "
        f"GPUs of its own (the stand-in), for {seconds:.0f} s",
        "looked_at": LOOKED_AT,
        "settle_s": settle_s,
        "seconds": seconds,
        "readings": readings,
        "gpus": len(percents),
        "percent_of_truth": [min(percents), max(percents)],
        "driver": driver | {"memory_growth_percent": growth, "meters_memory_growth_percent": meters_growth},
        "targets": TARGETS,
    }
    return result | {"met": met(result, nodes)}


def met(result: dict[str, Any], nodes: int) -> bool:
    """Whether every reading of so many nodes arrived, and each look of the driver saw them all, within the targets."""
    readings, driver, (low, high) = result["readings"], result["driver"], TARGETS["percent_of_truth"]
    growth = max(driver["memory_growth_percent"], driver["meters_memory_growth_percent"])
    return (
        readings["nodes"] == driver["nodes_seen"][0] == nodes
        and readings["left_out"] == 0
        and not readings["damaged"]
        and not driver["faults"]
        and readings["longest_pause_s"] < LATE_S
        and all(low <= percent <= high for percent in result["percent_of_truth"])
        and driver["cpu_percent"] <= TARGETS["driver_cpu_percent"]
        and growth <= TARGETS["memory_growth_percent"]
    )


def _readings(run: RunFolder) -> dict[str, Any]:
    """What of the readings is in the ledgers: each row has the number that its meter gave it."""
    rows, left_out, pauses, damaged, ended = 0, 0, [], [], 0
    for path in run.ledgers():
        sessions, faults = read_sessions(path)
        damaged += faults
        for session in sessions:
            numbers, times = session.ticks["number"], session.ticks["monotonic_s"]
            rows += len(numbers)
            left_out += int(numbers[-1] - numbers[0] + 1 - len(numbers))
            pauses.append(float((times[1:] - times[:-1]).max()))
            ended += session.ended
    return {
        "nodes": len(run.ledgers()),
        "ended_in_order": ended,
        "rows": rows,
        "left_out": left_out,
        "longest_pause_s": max(pauses),
        "median_longest_pause_s": statistics.median(pauses),
        "damaged": damaged,
    }


@contextmanager
def _ranks(run: RunFolder, count: int) -> Iterator[None]:
    """Meanwhile the files of so many ranks grow as in a training with steps of STEP_S, of which each waits for data."""
    run.metrics_dir.mkdir(parents=True)
    ended = threading.Event()

    def write() -> None:
        step = 0
        while not ended.wait(STEP_S):
            step, now = step + 1, time.time()
            of: dict[str, Any] = {"attempt": 1, "time_unix_s": now}
            trained = {**of, "event": "step", "step": step, "loss": 3.0, "tokens": step, "seconds": STEP_S, "lr": 1e-4}
            waited = {**of, "event": "phase", "phase": "data_wait", "start_unix_s": now - 0.1, "end_unix_s": now}
            enter = [{**of, "event": "enter", "phase": "train_step"}] if step == 1 else []
            for rank in range(count):
                lines = [*enter, trained, waited] if rank == 0 else [waited]
                with run.metrics_file(rank).open("a") as file:
                    file.writelines(json.dumps(line) + "\n" for line in lines)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    try:
        yield
    finally:
        ended.set()
        writer.join()


def _in_a_process(asked: dict[str, Any], work: Path) -> dict[str, Any]:
    told = work / "told.json"
    (work / "asked.json").write_text(json.dumps(asked))
    command = [sys.executable, "-m", "benchmarks.resilience.meters", str(work / "asked.json"), str(told)]
    environment = clean_environment() | RAY_ENVIRONMENT | OWN_RAY_ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
    with (work / "driver.log").open("wb") as log:
        subprocess.run(command, env=environment, stdout=log, stderr=log, cwd=ROOT, check=True)
    return dict(json.loads(told.read_text()))


def drive(asked: dict[str, Any], work: Path) -> dict[str, Any]:
    """The driver's part in the Ray that is there: starts the meters, watches, and says what that took."""
    import ray

    from orchestrator.cluster.meters import MeterActor, Meters, describe_meters, stop_meters

    actor: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, max_concurrency=2)(MeterActor)
    meter = {"interval_s": 1.0, "attempt": 1, "declared": {}}
    began_s = time.monotonic()
    meters = Meters(lambda node_id, name: None)
    meters.clear()  # those of the nodes that there are
    meters.nodes.clear()
    for name, environment in asked["nodes"].items():
        each = actor.options(runtime_env={"env_vars": environment}).remote(asked["run"], name, dict(meter), False)
        meters.append(each)
        if len(meters) % 4 == 0:
            ray.get(each.describe.remote())  # a machine has one node's meter to start, and not 64
    described = describe_meters(meters)
    assert all(each["sensors"] for each in described), described
    start_s = time.monotonic() - began_s
    assert len({each["node"] for each in described}) == len(asked["nodes"])
    told = _watched(asked)
    _, faults = stop_meters(meters)
    return {"start_s": start_s, **told, "faults": list(faults.values())}


def _watched(asked: dict[str, Any]) -> dict[str, Any]:
    """What it takes to watch the run, as its driver does."""
    from orchestrator.driver.run_watch import RunWatch
    from orchestrator.driver.supervise import POLL_S
    from orchestrator.live import state as live_state
    from orchestrator.spec.file import load_experiment

    folder, me = RunFolder(asked["run"]), psutil.Process()
    experiment = load_experiment(Path(asked["spec"]), ["energy.budget.energy=1000 MWh"])
    watch = RunWatch(experiment, folder, folder.read_run(), print, False)
    seen = []

    def look_for(seconds: float) -> float:
        """How long it was, in s."""
        began_s = time.monotonic()
        while (passed_s := time.monotonic() - began_s) < seconds:
            watch.look()
            seen.append(len(watch.nodes.nodes) if watch.progress.power_w is not None else 0)
            time.sleep(POLL_S)
        return passed_s

    look_for(asked["settle_s"])
    seen.clear()
    memory, meters_memory = [_mb([me])], [_mb(_meters())]
    before = me.cpu_times()
    passed_s = look_for(asked["seconds"])
    after = me.cpu_times()
    memory.append(_mb([me]))
    meters_memory.append(_mb(_meters()))
    used_s = after.user + after.system - before.user - before.system
    live = live_state.read(folder).document
    assert live is not None
    return {
        "cpu_percent": 100 * used_s / passed_s,
        "looks": len(seen),
        "nodes_seen": [min(seen), max(seen)],
        "live": {"nodes": len(live["nodes"]), "step": live["step"], "stragglers": len(live["stragglers"] or ())},
        "memory_mb": dict(zip(("begin", "end"), memory, strict=True)),
        "meters_memory_mb": dict(zip(("begin", "end"), meters_memory, strict=True)),
    }


def _meters() -> list[psutil.Process]:
    return [process for process in children_of(psutil.Process().pid) if title_of(process).startswith(METER)]


def _mb(processes: list[psutil.Process]) -> float:
    return sum(process.memory_full_info().uss for process in processes) / 1e6


if __name__ == "__main__":
    import ray

    parser = argparse.ArgumentParser()
    parser.add_argument("asked", type=Path)
    parser.add_argument("told", type=Path)
    given = parser.parse_args()
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="WARNING", num_cpus=2)
    given.told.write_text(json.dumps(drive(json.loads(given.asked.read_text()), given.told.parent)))
    ray.shutdown()
