"""What preflight measures on a node, as two actors hold it: its sensors and disk, and the rates of a rank.

Nothing here knows Ray. torch is imported by ranks only, when they begin: a node's sensors are looked at without it.
"""

from __future__ import annotations

import os
import socket
import statistics
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

WARM_UP_S = {"cpu": 0.5, "cuda": 1.5}  # clocks and caches settle, kernels are chosen
REPEATS = 9
REPEAT_S = 0.1  # a repeat is as many products as take so long: what a launch or a clock costs then vanishes
MATMUL_SIZE = {"cpu": 1024, "cuda": 8192}
ALL_REDUCE_BYTES = {"cpu": 32 * 2**20, "cuda": 256 * 2**20}
DISK_BLOCK_BYTES, DISK_BLOCKS = 4 * 2**20, 8
DISK_REPEATS, DISK_LONGEST_S = 5, 10.0
# Bits of nvmlClocksEventReasons, by the names that `nvidia-smi -q -d PERFORMANCE` has for them.
REASONS = {
    0x01: "idle",
    0x02: "application clocks setting",
    0x04: "SW power cap",
    0x08: "HW slowdown",
    0x10: "sync boost",
    0x20: "SW thermal slowdown",
    0x40: "HW thermal slowdown",
    0x80: "HW power brake slowdown",
    0x100: "display clock setting",
}


class NodeCheck:
    """A node's sensors, GPUs' settings and disk. Holds none of its CPUs and GPUs: it runs on a busy node too."""

    def sensors(self, runs_dir: str) -> dict[str, Any]:
        """{cpu_name, checks: what the doctor finds, gpus: their state at rest}."""
        from energy.metering.doctor import examine

        checks = [check.as_json() for check in examine(runs_dir)]
        return {"cpu_name": cpu_name(), "checks": checks, "gpus": gpu_states()}

    def disk(self, place: str, name: str) -> dict[str, Any]:
        """{sees_runs, mb_per_s}; nothing is written where the driver's folder is not seen. OSError if it cannot be."""
        if not Path(place).is_dir():
            return {"sees_runs": False, "mb_per_s": None}
        return {"sees_runs": True, "mb_per_s": disk_write_mb_per_s(Path(place) / f"{name}.{os.getpid()}")}


class Rank:
    """One GPU, or all CPUs that Ray counts on a node: its matmul rate, and its part in all-reduces."""

    def __init__(self, device: str, threads: int):
        """device: cpu or cuda, of which it then holds the one that Ray lets it see."""
        self._device, self._threads = device, threads
        self._uuid: str | None = None

    def begin(self) -> dict[str, Any]:
        """Imports torch; {uuid, name} of its GPU, {threads} on the CPU. RuntimeError where torch sees no GPU."""
        import torch

        if self._device == "cpu":
            self._threads = max(1, min(self._threads, len(os.sched_getaffinity(0))))
            torch.set_num_threads(self._threads)
            return {"threads": self._threads}
        if not torch.cuda.is_available():
            raise RuntimeError(
                f"Ray counts a GPU here and torch {torch.__version__} sees none: see that nvidia-smi works and that "
                "torch is a build for CUDA"
            )
        about = torch.cuda.get_device_properties(0)
        self._uuid = f"GPU-{about.uuid}"
        return {"uuid": self._uuid, "name": about.name}

    def matmul(self) -> dict[str, Any]:
        """{tflop_per_s, low, high, gpu}: the median and the extremes of the repeats; bfloat16 on a GPU, else float32.

        `gpu` is the GPU's state while it computed.
        """
        import torch

        size, cuda = MATMUL_SIZE[self._device], self._device == "cuda"
        dtype = torch.bfloat16 if cuda else torch.float32
        # Random values: of constant ones a GPU draws less power, and holds clocks that no training sees.
        left, right = (torch.randn(size, size, device=self._device, dtype=dtype) for _ in range(2))
        out = torch.empty_like(left)
        state = gpu_states(self._uuid) if cuda else []  # once before, as the first look takes NVML's start

        def halfway() -> None:
            if cuda:
                state[:] = gpu_states(self._uuid)

        def wait() -> None:
            if cuda:
                torch.cuda.synchronize()

        seconds = repeated(lambda: torch.mm(left, right, out=out), wait, WARM_UP_S[self._device], halfway)
        rates = sorted(2 * size**3 / each / 1e12 for each in seconds)
        return {
            "tflop_per_s": statistics.median(rates),
            "low": rates[0],
            "high": rates[-1],
            "gpu": state[0] if state else None,
        }

    def ping(self) -> None:
        """Returns, whatever else this rank waits for."""

    def free_port(self) -> int:
        """A port that is free now, for the others to meet this rank at."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return int(probe.getsockname()[1])

    def all_reduce(self, rank: int, world: int, meet_at: str, limit_s: float) -> list[float]:
        """Seconds of each repeat of a float32 sum over `world` ranks that meet at host:port; NCCL between GPUs."""
        import torch
        import torch.distributed as dist

        limit = timedelta(seconds=limit_s)
        cuda = self._device == "cuda"
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            init_method=f"tcp://{meet_at}",
            rank=rank,
            world_size=world,
            timeout=limit,
            device_id=torch.device("cuda", 0) if cuda else None,
        )
        try:
            # Zeros: sums of ones would overflow.
            values = torch.zeros(ALL_REDUCE_BYTES[self._device] // 4, device=self._device)
            seconds = []
            for repeat in range(2 + REPEATS):  # the first two open connections and choose an algorithm
                dist.barrier()
                begun = time.perf_counter()
                dist.all_reduce(values)
                if cuda:
                    torch.cuda.synchronize()
                if repeat >= 2:
                    seconds.append(time.perf_counter() - begun)
            return seconds
        finally:
            dist.destroy_process_group()


def repeated(
    work: Callable[[], object], wait: Callable[[], None], warm_up_s: float, halfway: Callable[[], None]
) -> list[float]:
    """Seconds of one `work` in each of REPEATS repeats, after a warm-up. `wait` returns when all work is done.

    halfway(): called in the middle of a repeat, where the work of a GPU is under way and the launches have returned.
    """
    work()
    wait()
    begun, count = time.perf_counter(), 0
    while count < 3 or time.perf_counter() - begun < warm_up_s:
        work()
        wait()
        count += 1
    each_s = (time.perf_counter() - begun) / count
    count = max(1, round(REPEAT_S / each_s))
    seconds = []
    for repeat in range(REPEATS):
        begun = time.perf_counter()
        for _ in range(count):
            work()
        if repeat == REPEATS // 2:
            halfway()
        wait()
        seconds.append((time.perf_counter() - begun) / count)
    return seconds


def disk_write_mb_per_s(path: Path) -> float:
    """MB/s (1e6 bytes) of writing a new file and having it on the disk (fsync): the median of up to DISK_REPEATS.

    Random bytes, which no storage compresses. OSError when it cannot be written; the file is gone afterwards.
    """
    block = os.urandom(DISK_BLOCK_BYTES)
    rates: list[float] = []
    file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        began = time.perf_counter()
        for repeat in range(1 + DISK_REPEATS):  # the first warms up
            os.ftruncate(file, 0)
            os.lseek(file, 0, os.SEEK_SET)
            begun = time.perf_counter()
            for _ in range(DISK_BLOCKS):
                left = memoryview(block)
                while left:
                    left = left[os.write(file, left) :]
            os.fsync(file)
            now = time.perf_counter()
            if repeat:
                rates.append(DISK_BLOCKS * DISK_BLOCK_BYTES / (now - begun) / 1e6)
            if rates and now - began > DISK_LONGEST_S:
                break
    finally:
        os.close(file)
        path.unlink(missing_ok=True)
    return statistics.median(rates)


def cpu_name() -> str | None:
    """The CPU's model, as Linux tells it; None where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else None


def gpu_states(only: str | None = None) -> list[dict[str, Any]]:
    """Power limits, clocks, throttle reasons, temperature and power now of the GPUs that NVML shows, or of one UUID.

    {index, uuid, name, power_limit_w, default_power_limit_w, sm_clock_mhz, max_sm_clock_mhz, throttle_reasons,
    temperature_c, power_w}; what a GPU or its driver does not tell is None. Empty without NVML.
    """
    try:
        import pynvml

        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
    except Exception:  # no package, no library, no driver: the doctor says which (its checks stand beside this)
        return []
    return [state for index in range(count) if (state := _gpu_state(pynvml, index, only)) is not None]


def _gpu_state(nvml: Any, index: int, only: str | None) -> dict[str, Any] | None:
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        uuid = str(nvml.nvmlDeviceGetUUID(handle))
    except nvml.NVMLError:
        return None  # among the doctor's checks
    if only not in (None, uuid):
        return None

    def ask(call: str, *arguments: Any) -> Any:
        try:
            return getattr(nvml, call)(handle, *arguments)
        except (nvml.NVMLError, AttributeError):
            return None

    def watts(call: str) -> float | None:
        milliwatt = ask(call)
        return None if milliwatt is None else milliwatt / 1000

    bits = ask("nvmlDeviceGetCurrentClocksThrottleReasons")  # the older name of the call, which all drivers know
    return {
        "index": index,
        "uuid": uuid,
        "name": str(ask("nvmlDeviceGetName") or "unknown GPU"),
        "power_limit_w": watts("nvmlDeviceGetEnforcedPowerLimit"),
        "default_power_limit_w": watts("nvmlDeviceGetPowerManagementDefaultLimit"),
        "sm_clock_mhz": ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
        "max_sm_clock_mhz": ask("nvmlDeviceGetMaxClockInfo", nvml.NVML_CLOCK_SM),
        "throttle_reasons": None if bits is None else [name for bit, name in REASONS.items() if bits & bit],
        "temperature_c": ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
        "power_w": watts("nvmlDeviceGetPowerUsage"),
    }
