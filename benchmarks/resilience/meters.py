"""64 nodes' meters on one machine, eight GPUs of the stand-in each, and what they cost the driver that listens."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.resilience.places import METER, children_of, title_of
from benchmarks.resilience.stand_in import ROOT, StandIn, clean_environment, percent_of_truth
from energy.ledger.readings import read_sessions
from energy.runs import RunFolder
from orchestrator.driver.launch import RAY_ENVIRONMENT
from orchestrator.driver.own_ray import OWN_RAY_ENVIRONMENT

NODES, GPUS, SECONDS = 64, 8, 90.0
SETTLE_S = 20.0  # after the last meter has come up
LATE_S = 5.0  # between two rows of a ledger: no reading was left out
TARGETS = {"driver_cpu_percent": 5.0, "memory_growth_percent": 2.0, "percent_of_truth": [99.5, 100.5]}


def measure(work: Path, nodes: int = NODES, seconds: float = SECONDS) -> dict[str, Any]:
    """Meters of `nodes` nodes for so many seconds, and the driver's part in a process of its own."""
    stand_ins = [StandIn(work / "stand-in", node, GPUS) for node in range(1, nodes + 1)]
    run = RunFolder(work / "run")
    run.write_run({"run_id": "meters", "device_type": "cpu", "attempts": [{"attempt": 1}]})
    told = work / "told.json"
    asked = {
        "run": str(run.path),
        "nodes": {f"node-{number:03d}": each.environment for number, each in enumerate(stand_ins, start=1)},
        "seconds": seconds,
        "told": str(told),
    }
    (work / "asked.json").write_text(json.dumps(asked))
    command = [sys.executable, "-m", "benchmarks.resilience.meters", str(work / "asked.json")]
    environment = clean_environment() | RAY_ENVIRONMENT | OWN_RAY_ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
    with (work / "driver.log").open("wb") as log:
        subprocess.run(command, env=environment, stdout=log, stderr=log, cwd=ROOT, check=True)
    driver = json.loads(told.read_text())
    readings = _readings(run)
    percents = list(percent_of_truth(run, stand_ins).values())
    growth = 100 * (driver["memory_mb"]["end"] / driver["memory_mb"]["begin"] - 1)
    meters_growth = 100 * (driver["meters_memory_mb"]["end"] / driver["meters_memory_mb"]["begin"] - 1)
    result = {
        "what": f"{nodes} meter actors of one Ray on one machine, each the meter of a node of its own name with {GPUS} "
        f"GPUs of its own (the stand-in), for {seconds:.0f} s",
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


def _drive(asked: dict[str, Any]) -> None:
    """The driver: starts the meters, and reads twice a second what they wrote (NodesNow, a part of RunWatch)."""
    import ray

    from orchestrator.cluster.meters import MeterActor, Meters, describe_meters, stop_meters
    from orchestrator.cluster.nodes_now import NodesNow
    from orchestrator.driver.supervise import POLL_S

    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="WARNING", num_cpus=2)
    actor: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, max_concurrency=2)(MeterActor)
    meter = {"interval_s": 1.0, "attempt": 1, "declared": {}}
    began_s = time.monotonic()
    meters = Meters(lambda node_id, name: None)
    meters.clear()  # that of this machine's one node
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
    time.sleep(SETTLE_S)
    nodes, me = NodesNow(RunFolder(asked["run"])), psutil.Process()
    seen, looks = [], 0
    nodes.look(time.time())
    memory, meters_memory = [_mb([me])], [_mb(_meters())]
    before, began_s = me.cpu_times(), time.monotonic()
    while (passed_s := time.monotonic() - began_s) < asked["seconds"]:
        nodes.look(time.time())
        seen.append(len(nodes.nodes) if nodes.power_w(time.time()) is not None else 0)
        nodes.energy_until(time.time())
        looks += 1
        time.sleep(POLL_S)
    after = me.cpu_times()
    memory.append(_mb([me]))
    meters_memory.append(_mb(_meters()))
    used_s = after.user + after.system - before.user - before.system
    _, faults = stop_meters(meters)
    told = {
        "start_s": start_s,
        "cpu_percent": 100 * used_s / passed_s,
        "looks": looks,
        "nodes_seen": [min(seen), max(seen)],
        "memory_mb": dict(zip(("begin", "end"), memory, strict=True)),
        "meters_memory_mb": dict(zip(("begin", "end"), meters_memory, strict=True)),
        "faults": faults,
    }
    Path(asked["told"]).write_text(json.dumps(told))
    ray.shutdown()


def _meters() -> list[psutil.Process]:
    return [process for process in children_of(psutil.Process().pid) if title_of(process).startswith(METER)]


def _mb(processes: list[psutil.Process]) -> float:
    return sum(process.memory_full_info().uss for process in processes) / 1e6


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("asked", type=Path)
    _drive(json.loads(parser.parse_args().asked.read_text()))
