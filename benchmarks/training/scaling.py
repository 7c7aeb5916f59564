"""Two ranks of one thread, FSDP2 on gloo, beside one process of one thread; and what of a step is communication."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.training.process import Failed, Runner
from benchmarks.training.systems import Case
from benchmarks.training.turns import spread, take_turns, turn_steps

EFFICIENCY_TARGET, COMMUNICATION_TARGET = 0.85, 0.1
TURN_S, LEAST_TURNS, MOST_TURNS, PROFILED_STEPS = 2.0, 3, 15, 3


def measure_scaling(
    case: Case, folder: Path, environment: Mapping[str, str], budget_s: float, warm_up: int
) -> dict[str, Any]:
    """Efficiency = tokens/s of two ranks over twice the tokens/s of one process, each rank with its batch.

    one: a single process, as `hoofprint run` with one worker, which needs no FSDP. apart: two of `one` at the same time
    that know nothing of each other; what they lose is the machine's (memory, caches).
    """
    task = {"system": "hoofprint", "case": case.as_json(), "threads": 1, "warm_up": warm_up}
    result: dict[str, Any] = {
        "params": case.config.params,
        "dtype": case.dtype,
        "batch_tokens_of_a_rank": case.tokens,
        "targets": {"efficiency": EFFICIENCY_TARGET, "exposed_communication": COMMUNICATION_TARGET},
    }
    if (os.cpu_count() or 1) < 2:
        return result | {"error": "needs two cores"}
    with ExitStack() as at_end:
        runners = []
        for name, given, ranks, copies in (
            ("one", task, 1, 1),
            ("apart", task, 1, 2),
            ("two", task | {"port": free_port()}, 2, 1),
        ):
            runners.append(Runner(name, given, folder / f"{name}.log", environment, ranks=ranks, copies=copies))
            at_end.callback(runners[-1].end)
        try:
            for runner in runners:
                runner.await_ready()
            counts = {runner.name: turn_steps(runner, TURN_S) for runner in runners}
            seconds = take_turns(runners, counts, budget_s, LEAST_TURNS, MOST_TURNS)
            profile = runners[-1].ask(f"profile {PROFILED_STEPS}")
        except Failed as error:
            return result | {"error": str(error)}
    ranks_of = {"one": 1, "apart": 2, "two": 2}
    efficiency = {
        f"two_to_{other}": [a / b for a, b in zip(seconds[other], seconds["two"], strict=True)]
        for other in ("one", "apart")
    }
    exposed = max(shares["exposed communication"] for shares in profile)
    result |= {
        "tokens_per_s": {
            name: spread([ranks_of[name] * case.tokens / s for s in each]) for name, each in seconds.items()
        },
        "efficiency": {name: spread(each) for name, each in efficiency.items()},
        "exposed_communication": exposed,
        "profile": profile,
    }
    result["efficiency_met"] = result["efficiency"]["two_to_one"]["median"] >= EFFICIENCY_TARGET
    result["communication_met"] = exposed <= COMMUNICATION_TARGET
    return result


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
