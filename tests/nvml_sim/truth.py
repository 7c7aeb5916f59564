"""The true power and energy of the GPUs that a configuration of the NVML stand-in describes.

Reads the same lines as the library (config.c) and does the same arithmetic (trace.c), so that a test or a benchmark
knows what a meter should have seen. Times are simulated seconds: unix time less NVML_SIM_EPOCH.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass, field
from pathlib import Path

NEVER = (math.inf, math.inf)
TEXTS = {"uuid": "", "name": "NVIDIA-Sim-A100", "trace": "constant", "path": "", "shape": "linear", "mig": ""}
NUMBERS = {
    "power": 200.0, "low": 100.0, "mid": 250.0, "high": 400.0, "period": 2.0, "duty": 0.5, "phase": 0.0,
    "seed": 1.0, "bursts": 256.0, "on": 0.15, "off": 0.25,
    "step": 0.7, "optimizer": 0.15, "every": 20.0, "dip": 3.0,
    "counter": 1.0, "counter_period": 0.1, "counter_offset": 0.0, "counter_start": 1e6, "counter_step": 0.001,
    "update": 0.1, "window": 0.025, "offset": 0.0, "power_step": 0.001, "average": 1.0, "instant": 1.0,
    "usage_average": 0.0, "gain": 1.0, "limit": 400.0, "stamp_call": 0.0,
    "default_limit": 0.0, "clock": 1410.0, "max_clock": 1410.0, "reasons": 0.0,
    "flaky": 0.0, "latency": 0.0, "stale": 0.0, "reset": math.inf,
}  # fmt: skip
SPANS = ("lost", "hang", "nopower")
MASK = 2**64 - 1


@dataclass(frozen=True)
class Segment:
    start_s: float
    length_s: float
    from_w: float
    to_w: float
    before_j: float


@dataclass
class Gpu:
    """One configured GPU: `config` holds every key, given or default."""

    config: dict[str, float]
    texts: dict[str, str]
    spans: dict[str, tuple[float, float]]
    segments: list[Segment] = field(default_factory=list)
    period_s: float = 0.0
    total_j: float = 0.0

    def __post_init__(self) -> None:
        self._build()
        self._starts = [segment.start_s for segment in self.segments]

    @property
    def uuid(self) -> str:
        return self.texts["uuid"]

    def power_w(self, t: float) -> float:
        """The true power at t."""
        _, segment, inside = self._locate(t + self.config["phase"])
        return segment.from_w + (segment.to_w - segment.from_w) * inside / segment.length_s

    def energy_j(self, start_s: float, end_s: float) -> float:
        """The exact integral of the power. The sensors show it times `gain`."""
        phase = self.config["phase"]
        return self._integral(end_s + phase) - self._integral(start_s + phase)

    def _integral(self, x: float) -> float:
        cycles, s, d = self._locate(x)
        return cycles * self.total_j + s.before_j + s.from_w * d + 0.5 * (s.to_w - s.from_w) * d * d / s.length_s

    def _locate(self, x: float) -> tuple[float, Segment, float]:
        cycles = math.floor(x / self.period_s)
        rest = x - cycles * self.period_s
        segment = self.segments[max(bisect.bisect_right(self._starts, rest) - 1, 0)]
        return cycles, segment, rest - segment.start_s

    def _add(self, length_s: float, from_w: float, to_w: float) -> None:
        if length_s > 0:
            self.segments.append(Segment(self.period_s, length_s, from_w, to_w, self.total_j))
            self.period_s += length_s
            self.total_j += 0.5 * (from_w + to_w) * length_s

    def _build(self) -> None:
        c, kind = self.config, self.texts["trace"]
        if kind == "constant":
            self._add(1, c["power"], c["power"])
        elif kind == "square":
            self._add(c["period"] * c["duty"], c["high"], c["high"])
            self._add(c["period"] * (1 - c["duty"]), c["low"], c["low"])
        elif kind == "ramp":
            self._add(c["period"], c["low"], c["high"])
        elif kind == "bursts":
            state = int(c["seed"])
            for _ in range(int(c["bursts"])):
                state, off = uniform(state)
                state, on = uniform(state)
                self._add(c["off"] * (0.5 + off), c["low"], c["low"])
                self._add(c["on"] * (0.5 + on), c["high"], c["high"])
        elif kind == "steps":
            for _ in range(int(c["every"])):
                self._add(c["step"] * (1 - c["optimizer"]), c["high"], c["high"])
                self._add(c["step"] * c["optimizer"], c["mid"], c["mid"])
            self._add(c["dip"], c["low"], c["low"])
        elif kind == "file":
            rows = breakpoints(Path(self.texts["path"]))
            for (t0, w0), (t1, w1) in zip(rows, rows[1:], strict=False):
                self._add(t1 - t0, w0, w0 if self.texts["shape"] == "hold" else w1)
        else:
            raise ValueError(f"{self.uuid}: no trace {kind}")
        if not self.segments:
            raise ValueError(f"{self.uuid}: trace {kind} takes no time")


def uniform(state: int) -> tuple[int, float]:
    """splitmix64: the next state and a number in [0, 1)."""
    state = (state + 0x9E3779B97F4A7C15) & MASK
    z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return state, ((z ^ (z >> 31)) >> 11) * 2.0**-53


def breakpoints(path: Path) -> list[tuple[float, float]]:
    """The rows "seconds,watts" of a CSV; lines that are no numbers (a header) are passed over."""
    rows = []
    for line in path.read_text().splitlines():
        try:
            t, w = (float(word) for word in line.split(","))
        except ValueError:
            continue
        rows.append((t, w))
    return rows


def parse(text: str) -> list[Gpu]:
    """The GPUs of a configuration; ValueError on a word that is not understood."""
    gpus = []
    for line in text.splitlines():
        numbers, texts, spans = dict(NUMBERS), dict(TEXTS), dict.fromkeys(SPANS, NEVER)
        for word in line.split("#")[0].split():
            key, _, value = word.partition("=")
            if key in texts:
                texts[key] = value
            elif key in numbers:
                numbers[key] = float(value)
            elif key in spans:
                start, _, end = value.partition(":")
                spans[key] = (float(start), float(end) if end else math.inf)
            elif word != "gpu":
                raise ValueError(f"not understood: {word}")
        if texts["uuid"]:
            gpus.append(Gpu(numbers, texts, spans))
    return gpus
