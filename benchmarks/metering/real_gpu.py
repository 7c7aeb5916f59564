"""The sensors of a real GPU: what a call costs, how often counter and power update, and whether the two agree.

    python benchmarks/metering/real_gpu.py [--seconds 20] [--gpu 0] [--idle-only]

Needs an NVIDIA GPU and, for the loads, a torch that can use it; no Ray and no internet. Loads: idle, matrix products
without a pause, and bursts of 0.35 s with as long a pause. Written to benchmarks/results/metering_real_gpu.json.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from energy import Meter  # noqa: E402
from energy.sensors import nvml  # noqa: E402

Load = Callable[[threading.Event], None]


def latency_us(sensor: Any, calls: int = 500) -> dict[str, float]:
    """Microseconds of one reading (energy and both powers), in a row and after a pause as the meter makes it."""

    def one() -> float:
        start = time.perf_counter()
        sensor.read()
        return (time.perf_counter() - start) * 1e6

    warm = sorted(one() for _ in range(calls))
    cold = []
    for _ in range(40):
        time.sleep(0.05)
        cold.append(one())
    return {
        "warm_median": statistics.median(warm),
        "warm_p99": warm[int(0.99 * calls)],
        "cold_median": statistics.median(cold),
    }


def cadence_ms(sensor: Any, seconds: float = 5.0) -> dict[str, Any]:
    """Milliseconds between updates of counter and power, seen by reading without a pause, and what the stamps say."""
    changes: dict[str, list[float]] = {"counter": [], "power": []}
    before: dict[str, Any] = {}
    lags, end = [], time.perf_counter() + seconds
    while (now := time.perf_counter()) < end:
        reading = sensor.read()
        if reading.counter_unix_s is not None:
            lags.append((time.time() - reading.counter_unix_s) * 1e3)
        for name, value in (("counter", reading.energy_mj), ("power", reading.power_w)):
            if value is not None and before.get(name) != value:
                before[name] = value
                changes[name].append(now)
    found: dict[str, Any] = {}
    for name, times in changes.items():
        steps = [(b - a) * 1e3 for a, b in zip(times, times[1:], strict=False)]
        found[name] = {"median": statistics.median(steps), "least": min(steps), "most": max(steps)} if steps else None
    found["stamp_lag"] = {"median": statistics.median(lags), "most": max(lags)} if lags else None
    return found


def loads(gpu: int) -> dict[str, Load]:
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("this torch sees no GPU: take --idle-only for the sensors alone")
    device = torch.device("cuda", gpu)
    a = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)

    def products(stop: threading.Event) -> None:
        while not stop.is_set():
            for _ in range(20):
                torch.mm(a, a)
            torch.cuda.synchronize(device)

    def bursts(stop: threading.Event) -> None:
        while not stop.is_set():
            until = time.perf_counter() + 0.35
            while time.perf_counter() < until:
                torch.mm(a, a)
                torch.cuda.synchronize(device)
            time.sleep(0.35)

    return {"products": products, "bursts": bursts}


def under(load: Load | None, uuid: str, seconds: float) -> dict[str, Any]:
    """A window under a load by the counter, and the same stretch by integrated power."""
    from energy.accounting.account import account_run
    from energy.runs import RunFolder

    folder = RunFolder(ROOT / ".cache" / f"real-gpu-{time.time_ns()}")
    stop = threading.Event()
    worker = threading.Thread(target=load, args=(stop,)) if load else None
    if worker:
        worker.start()
        time.sleep(2.0)  # clocks and temperature settle
    with Meter(folder.ledger_file("gpu"), gpus=[uuid], host=False) as meter, meter.window("load") as window:
        time.sleep(seconds)
    stop.set()
    if worker:
        worker.join()
    [device] = window.devices
    [booked] = account_run(folder).devices
    return {
        "seconds": window.duration_s,
        "energy_j": device.energy_j,
        "mean_w": None if device.energy_j is None else device.energy_j / window.duration_s,
        "method": device.method,
        "counter_to_power": booked.counter_to_power,
    }


def examine(gpu: int, seconds: float, idle_only: bool = False, gpus: str = "all") -> dict[str, Any]:
    """All that is found out about one GPU: number `gpu` of `gpus` (all of the node, or those visible here).

    RuntimeError where there is none.
    """
    sensors, warnings = nvml.find("here", gpus)
    if len(sensors) <= gpu:
        raise RuntimeError("; ".join(warnings) or f"there is no GPU {gpu}")
    sensor = sensors[gpu]
    about = sensor.describe()
    result: dict[str, Any] = {
        "gpu": about["name"],
        "driver": nvml.driver_version(),
        "latency_us": latency_us(sensor),
        "cadence_ms": cadence_ms(sensor),
        "loads": {"idle": under(None, about["uuid"], seconds)},
    }
    for name, load in ({} if idle_only else loads(gpu)).items():
        result["loads"][name] = under(load, about["uuid"], seconds)
    return result


def main() -> None:
    from report import machine, write_result

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--gpu", type=int, default=0)
    parser.add_argument("--idle-only", action="store_true", help="no load: sensors and the idle ratio alone")
    options = parser.parse_args()
    try:
        found = examine(options.gpu, options.seconds, options.idle_only)
    except RuntimeError as error:
        raise SystemExit(str(error)) from error
    result: dict[str, Any] = {
        "what": "sensors of one GPU: cost of a reading, cadence of updates, counter over integrated power by load",
        "machine": machine() | {"gpu": found.pop("gpu"), "driver": found.pop("driver")},
        **found,
    }
    write_result("metering_real_gpu", result)


if __name__ == "__main__":
    main()
