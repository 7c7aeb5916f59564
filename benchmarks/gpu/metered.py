"""Work that is timed and metered on one device; nothing here knows what the work is."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

from energy import Meter
from energy.factors import peak_flops

WARM_UP = 3  # calls: the first compiles and allocates
CONVENTION = "PaLM: 6 N_matmul + 12 L d s per token, embedding look-up excluded"


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], object], device: str, times: int) -> list[float]:
    """Seconds of each of `times` calls; on a GPU by events, so that the CPU may run ahead as it does in training."""
    if device != "cuda":
        taken = []
        for _ in range(times):
            start = time.perf_counter()
            work()
            taken.append(time.perf_counter() - start)
        return taken
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(times + 1)]
    marks[0].record()
    for mark in marks[1:]:
        work()
        mark.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) / 1e3 for a, b in zip(marks, marks[1:], strict=False)]


def quick_seconds(work: Callable[[], object], device: str, seconds: float) -> float:
    """Median seconds of a call, for about so many seconds after a warm-up."""
    first = statistics.median(seconds_of(work, device, WARM_UP)[1:])
    return statistics.median(seconds_of(work, device, max(3, min(500, round(seconds / max(first, 1e-6))))))


def metered(
    work: Callable[[], object], device: str, seconds: float, tokens: int, warm_up: int = WARM_UP, least: int = 3
) -> dict[str, Any]:
    """What `work`, of `tokens` tokens a call, takes in time and in energy of the GPU, over about `seconds` s and at
    `least` so many calls, after `warm_up` others.

    The energy is that of the device alone (host and rest of the node are not in it); None where nothing counts it.
    """
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began_s = time.perf_counter()
    first = min(seconds_of(work, device, warm_up))
    warm_up_s = time.perf_counter() - began_s
    times = max(least, round(seconds / max(first, 1e-6)))
    synchronize(device)
    with Meter(gpus="visible", host=False) as meter:
        with meter.window("work") as window:
            taken = seconds_of(work, device, times)
            synchronize(device)
        energy_j = window.energy_j
        method = " + ".join(sorted({each.method for each in window.counted if each.energy_j is not None})) or None
        why = None if energy_j is not None else "; ".join(meter.warnings) or "no device was metered"
    done = times * tokens
    return {
        "calls": times,
        "warm_up_s": warm_up_s,
        "seconds_of_a_call": {"median": statistics.median(taken), "least": min(taken), "most": max(taken)},
        "tokens_per_s": done / window.duration_s,
        "energy_j": energy_j,
        "mean_w": None if energy_j is None else energy_j / window.duration_s,
        "joule_per_token": None if energy_j is None else energy_j / done,
        "method": method,
        "boundary": "gpu",
        "not_metered": why,
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None,
    }


def utilisation(tokens_per_s: float, flop_per_token: int, device: str) -> dict[str, Any]:
    """MFU with its convention and peak; None where the table does not know the device's peak."""
    peak, source = None, "no GPU"
    if device == "cuda":
        source = f"not known for {torch.cuda.get_device_name()}"
        with suppress(ValueError):
            factor = peak_flops(torch.cuda.get_device_name())
            peak, source = factor.value, f"dense BF16 of {factor.geography}: {factor.source}"
    flop_per_s = tokens_per_s * flop_per_token
    return {
        "model_flop_per_s": flop_per_s,
        "convention": CONVENTION,
        "peak_flop_per_s": peak,
        "peak_source": source,
        "mfu": flop_per_s / peak if peak else None,
    }


def attempt(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` says, or why it could not: of many kernels and settings not every device has all."""
    try:
        return work()
    except Exception as error:  # whatever a library raises, it is the result
        lines = [line for line in str(error).splitlines() if line.strip()] or [""]
        return {"error": f"{type(error).__name__}: {lines[0][:300]}"}
