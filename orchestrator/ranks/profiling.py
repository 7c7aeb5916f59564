"""A torch profiler trace of some steps of rank 0, and where their time went.

Time is split by what ran on the device (on a GPU: kernels; on a CPU: operators, and the collectives of gloo's threads),
as the length of unions of intervals: a moment at which a product and a collective run is the product's, so that what is
left to communication is what nothing hides.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, record_function

from orchestrator.ranks.loop import StepResult

FOLDER = "profile"  # in the run folder
STEP = "hoofprint step"  # what each recorded step is called in the trace: between them lie evaluations and checkpoints
SKIPPED = 2  # steps before the first one that is recorded: they compile, allocate and connect

Interval = tuple[float, float]
# In this order: a name, or a moment, belongs to the first that fits.
CATEGORIES = ("matmul", "attention", "other kernels", "exposed communication")
_ON_CPU = ("aten::", "mkldnn::", "hoofprint::")  # the last: model.native
_COMPILED = "## Call CompiledFxGraph"  # on the CPU what a compiler fused has no names of its own, what it calls has
_COMMUNICATION = re.compile(r"^(gloo|nccl|mpi):|^nccl", re.IGNORECASE)
# cudnn::fusion: what its backward of attention does beside the products (dot_do_o, convert_dq).
_ATTENTION = re.compile(r"flash|fmha|attention|attn|_sdpa|cudnn.*(sdpa|mha)|cudnn::fusion", re.IGNORECASE)
_MATMUL = re.compile(
    r"^aten::(mm|addmm|bmm|baddbmm|mv|addmv|_scaled_mm)$|^mkldnn::_linear|gemm|gemv|cutlass|nvjet|xmma|cublas",
    re.IGNORECASE,
)


def category(name: str) -> str:
    """What a kernel or an operator is, by its name: nothing else tells a library's kernels apart."""
    if _COMMUNICATION.search(name):
        return "exposed communication"
    if _ATTENTION.search(name):
        return "attention"
    return "matmul" if _MATMUL.search(name) else "other kernels"


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same moments in intervals that do not touch, in order."""
    merged: list[Interval] = []
    for begin, end in sorted(intervals):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        elif end > begin:
            merged.append((begin, end))
    return merged


def overlap(ones: Sequence[Interval], others: Sequence[Interval]) -> list[Interval]:
    """The moments that are in both; each of the two in order and without touching, as `union` makes them."""
    found: list[Interval] = []
    first = 0
    for begin, end in ones:
        while first < len(others) and others[first][1] <= begin:
            first += 1
        at = first
        while at < len(others) and others[at][0] < end:
            found.append((max(begin, others[at][0]), min(end, others[at][1])))
            at += 1
    return found


def split_time(ran: dict[str, list[Interval]], wall: float, data_wait: float) -> dict[str, float]:
    """Shares of `wall` by category, data wait, and the rest, in which nothing ran; all in one unit of time."""
    shares: dict[str, float] = {}
    taken: list[Interval] = []
    before = 0.0
    for name in CATEGORIES:
        taken = union([*taken, *ran.get(name, [])])
        length = sum(end - begin for begin, end in taken)
        shares[name] = (length - before) / wall
        before = length
    shares["data wait"] = data_wait / wall
    shares["nothing ran"] = max(0.0, 1.0 - sum(shares.values()))
    return shares


@dataclass(frozen=True)
class Profile:
    """Where the time of the recorded steps went."""

    steps: int
    first_step: int
    seconds: float
    device: str
    shares: dict[str, float]

    def table(self) -> str:
        """For people: a line for each share, with its time of one step."""
        each_ms = self.seconds / self.steps * 1e3
        last = self.first_step + self.steps - 1
        lines = [f"steps {self.first_step} to {last} of rank 0 on {self.device}: {each_ms:,.1f} ms a step"]
        lines += [f"  {name:<22}{share:>7.1%}{share * each_ms:>12,.1f} ms" for name, share in self.shares.items()]
        return "\n".join(lines) + "\n"


class StepProfiler:
    """Calls a step, and records `steps` of them, after the first ones of this attempt, into `run_dir/profile`.

    Where there are none to record, that folder is gone: an old one would be taken for this attempt's. warn(text): told
    when they cannot be written, which ends no training.
    """

    def __init__(
        self,
        step: Callable[[int], StepResult],
        run_dir: Path,
        steps: int,
        device: torch.device,
        warn: Callable[[str], None],
    ) -> None:
        self._step, self._folder, self._steps, self._device = step, run_dir / FOLDER, steps, device
        self._warn = warn
        shutil.rmtree(self._folder, ignore_errors=True)  # what an earlier attempt recorded is not of this one
        self._done = -SKIPPED
        self._profiler: Any = None
        self._first_step = 0
        self._seconds = self._data_wait_s = 0.0

    def __call__(self, step: int) -> StepResult:
        if self._done == 0:
            activities = [ProfilerActivity.CPU]
            activities += [ProfilerActivity.CUDA] if self._device.type == "cuda" else []
            self._profiler = torch.profiler.profile(activities=activities)
            self._profiler.start()
            self._first_step = step
        began = time.perf_counter()
        with nullcontext() if self._profiler is None else record_function(STEP):
            result = self._step(step)  # ends with the loss on the CPU: the device has done it all
        if self._profiler is not None:
            self._seconds += time.perf_counter() - began
            self._data_wait_s += result.data_wait_s
        self._done += 1
        if self._done == self._steps and self._profiler is not None:
            self.finish()
        return result

    def finish(self) -> None:
        """Writes what was recorded, if anything: also when the training ends before all steps were."""
        profiler, self._profiler = self._profiler, None
        if profiler is None or self._done < 1:
            return
        profiler.stop()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            profiler.export_chrome_trace(str(self._folder / "trace.json.gz"))
            self._write_table(profiler)
        except OSError as error:
            self._warn(f"the profile of the steps could not be written to {self._folder}: {error.strerror or error}")

    def _write_table(self, profiler: Any) -> None:
        ran = what_ran(profiler.events(), self._device.type)
        shares = split_time(ran, self._seconds * 1e6, self._data_wait_s * 1e6)
        profile = Profile(self._done, self._first_step, self._seconds, self._device.type, shares)
        (self._folder / "profile.json").write_text(json.dumps(profile.__dict__, indent=2) + "\n", encoding="utf-8")
        (self._folder / "profile.txt").write_text(profile.table(), encoding="utf-8")


def what_ran(events: Sequence[Any], device_type: str) -> dict[str, list[Interval]]:
    """Intervals in us of what ran within the steps by category; on the CPU of PyTorch's operators, with what they
    call."""
    ran: dict[str, list[Interval]] = {name: [] for name in CATEGORIES}
    steps: list[Interval] = []
    for event in events:
        on_gpu = event.device_type != DeviceType.CPU
        span = (event.time_range.start, event.time_range.end)
        if event.name == STEP and not on_gpu:
            steps.append(span)
        # FSDP's names for what it does are drawn on the GPU's line too, over the collectives and what hides them.
        if device_type == "cuda" and (not on_gpu or event.is_user_annotation):
            continue
        kind = "other kernels" if event.name.startswith(_COMPILED) else category(event.name)
        if device_type == "cuda" or event.name.startswith((*_ON_CPU, _COMPILED)) or kind == "exposed communication":
            ran[kind].append(span)
    return {name: overlap(union(spans), union(steps)) for name, spans in ran.items()}
