"""How long a training takes from the kill -9 of a worker to its next step, and where that time goes."""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
from tiny import write_spec

from benchmarks.resilience.judge import Kill, resumed_wrongly, seen_of_checkpoints, steps_lost
from benchmarks.resilience.places import CONTROLLER, RANK, OwnRay, Run, wait_until
from orchestrator.ranks.watchdog import HANGS

WORKERS = 2
INTERVAL_STEPS = 100
SINCE_STEPS = INTERVAL_STEPS // 2  # trained since the checkpoint: too few for the next one to be begun
LIMIT_S = 180.0
LOOK_S = 0.05
TARGET_S = 20.0
# Each part ends with what it names.
PARTS = {
    "other rank ended": "Ray sees that a rank is gone, or the other rank that its peer is, and ends it",
    "next attempt begun": "Ray Train's controller ends, and the driver opens the next attempt",
    "controller there": "the next controller's process",
    "workers there": "a process for each rank",
    "training called": "imports, process group",
    "model and checkpoint loaded": "model, data, checkpoint checked and loaded",
    "first step": "the first step",
}


def measure(work: Path, times: int) -> dict[str, Any]:
    """So many recoveries of one run, each SINCE_STEPS after the first whole checkpoint of its attempt."""
    spec = write_spec(work, workers=WORKERS, steps=1_000_000)
    overrides = [f"training.checkpoint_every_steps={INTERVAL_STEPS}", "training.evaluate_every_steps=100000"]
    run = Run(OwnRay(work / "stand-in"), work / "runs" / "recovery", spec, overrides)
    run.start()
    try:
        recoveries = [_recovery(run) for _ in range(times)]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(run.pid, signal.SIGTERM)
        run.end()
    kills = [Kill(**each["kill"]) for each in recoveries]
    lost = steps_lost(run.folder, kills)
    wrong = resumed_wrongly(run.folder, kills, INTERVAL_STEPS) + cost_too_much(recoveries, lost)
    seconds = [each["seconds"] for each in recoveries]
    return {
        "what": f"kill -9 of rank 1 of {WORKERS} of a tiny model in a Ray of the run's own, {SINCE_STEPS} steps after "
        "the first checkpoint of an attempt is whole",
        "times": times,
        "parts": PARTS,
        "seconds": seconds,
        "median_seconds": statistics.median(seconds),
        "median_parts_s": {part: statistics.median(each["parts_s"][part] for each in recoveries) for part in PARTS},
        "recoveries": recoveries,
        "checkpoint_interval_steps": INTERVAL_STEPS,
        "steps_lost": lost,
        "wrong": wrong,
        "target_s": TARGET_S,
        "met": max(seconds) <= TARGET_S and not wrong,
    }


def cost_too_much(recoveries: Sequence[dict[str, Any]], lost: Sequence[dict[str, Any]]) -> list[str]:
    """Recoveries that began from no checkpoint, or did more than an interval again."""
    wrong = [] if len(lost) == len(recoveries) else [f"{len(lost)} attempts went on after {len(recoveries)} kills"]
    for number, each in enumerate(recoveries, start=1):
        if each["resumed_from_step"] <= 0:
            wrong.append(f"recovery {number} began at the start: it loaded no checkpoint")
    return wrong + [
        f"attempt {each['attempt']} lost {each['steps']} of {INTERVAL_STEPS} steps"
        for each in lost
        if not 0 <= each["steps"] <= INTERVAL_STEPS
    ]


def _recovery(run: Run) -> dict[str, Any]:
    attempt = len(run.attempts()) or 1
    if not wait_until(lambda: run.newest_step()[0] >= attempt, LIMIT_S):
        raise RuntimeError(f"attempt {attempt} did not begin: {run.log}")
    first = run.first_step(attempt)

    def whole_step() -> int:
        return int(seen_of_checkpoints(run.folder)["whole_step"])

    if not wait_until(lambda: whole_step() >= first, LIMIT_S, 2 * LOOK_S):
        raise RuntimeError(f"attempt {attempt} wrote no checkpoint: {run.log}")
    since = whole_step()
    wait_until(lambda: run.newest_step()[1] >= since + SINCE_STEPS, LIMIT_S)
    pids = [_process(run, rank, attempt) for rank in range(WORKERS)]
    controllers = {each.pid for each in run.processes(CONTROLLER)}
    load = os.getloadavg()[0]
    checkpoints, step = seen_of_checkpoints(run.folder), run.newest_step()[1]
    killed_s = time.time()
    kill = Kill("worker", "training", killed_s, step, **checkpoints)
    os.kill(pids[1], signal.SIGKILL)
    seen: dict[str, float] = {}

    def look() -> bool:
        now = time.time()
        if not _alive(pids[0]):
            seen.setdefault("other rank ended", now)
        if "other rank ended" in seen and "workers there" not in seen:
            if any(each.pid not in controllers for each in run.processes(CONTROLLER)):
                seen.setdefault("controller there", now)
            if len([each for each in run.processes(RANK) if each.pid not in pids]) == WORKERS:
                seen["workers there"] = now
        return run.newest_step()[0] > attempt or run.exit_code is not None

    if not wait_until(look, LIMIT_S, LOOK_S) or run.exit_code is not None:
        raise RuntimeError(f"attempt {attempt + 1} did not begin: {run.log}")
    seen |= _told(run, attempt + 1)
    moments = [killed_s, *(seen[part] for part in PARTS)]
    parts = {part: end - begin for part, begin, end in zip(PARTS, moments, moments[1:], strict=False)}
    return {
        "seconds": seen["first step"] - killed_s,
        "parts_s": parts,
        "load_1min": load,
        "kill": asdict(kill),
        "resumed_from_step": run.first_step(attempt + 1) - 1,
    }


def _told(run: Run, attempt: int) -> dict[str, float]:
    """What the run itself writes down of its attempt, in unix s."""
    events = [event for event in run.folder.events() if event.get("attempt") == attempt]
    called = [path.stat().st_ctime for path in (run.folder.path / HANGS).glob(f"attempt-{attempt}-rank-*.txt")]
    steps = [event["time_unix_s"] for event in events if event["event"] == "step"]
    entered = [event["time_unix_s"] for event in events if event["event"] == "enter" and event["phase"] == "train_step"]
    return {
        "next attempt begun": run.attempts()[attempt - 1]["started_unix_s"],
        "training called": max(called),
        "model and checkpoint loaded": entered[0],
        "first step": steps[0],
    }


def _process(run: Run, rank: int, attempt: int) -> int:
    told = [e for e in run.folder.events(rank) if e.get("event") == "process" and e.get("attempt") == attempt]
    return int(told[-1]["pid"])


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
