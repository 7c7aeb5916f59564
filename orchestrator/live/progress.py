"""What is known of a run while it trains: fed with the lines that rank 0 writes and with readings of power.

Everything here is bounded: a run of three weeks has a million steps, and its view costs what a short run's does.
"""

import json
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RATE_STEPS = 20
POWER_BUCKET_S = 2.0
CURVE_ROOM = 256
Unread = Callable[[Path, OSError], None]  # told of a file that could not be looked at, and will be again


class Tail:
    """The lines that a growing JSONL file got since the last look; what is there already is skipped.

    unread: None where another look at the same file tells of it.
    """

    def __init__(self, path: Path, unread: Unread | None = None):
        self._path, self._unread = path, unread
        self._offset = path.stat().st_size if path.exists() else 0
        self._torn = b""

    def read(self) -> list[dict[str, Any]]:
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        except OSError as error:  # the storage, for this moment: the next look reads on from here
            if self._unread is not None:
                self._unread(self._path, error)
            return []
        self._offset += len(data)
        *lines, self._torn = (self._torn + data).split(b"\n")
        events = []
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                continue  # torn by a kill, or empty
            if isinstance(event, dict):
                events.append(event)
        return events


class Curve:
    """A curve of at most a few hundred points, however many values it is given: neighbours are averaged."""

    def __init__(self, room: int = CURVE_ROOM):
        self._room, self._every = room, 1
        self._points: list[float] = []
        self._sum, self._count = 0.0, 0

    def add(self, value: float) -> None:
        if not math.isfinite(value):
            return
        self._sum, self._count = self._sum + value, self._count + 1
        if self._count < self._every:
            return
        self._points.append(self._sum / self._count)
        self._sum, self._count = 0.0, 0
        if len(self._points) >= 2 * self._room:
            pairs = zip(self._points[::2], self._points[1::2], strict=True)
            self._points = [(a + b) / 2 for a, b in pairs]
            self._every *= 2

    @property
    def points(self) -> list[float]:
        return self._points + ([self._sum / self._count] if self._count else [])


@dataclass
class RunProgress:
    """The state behind the live view. `peak_flops` is that of all devices together, None where it is not known."""

    total_steps: int
    batch_tokens: int
    started_unix_s: float
    flop_per_token: float | None = None
    peak_flops: float | None = None
    energy_before_j: float = 0.0  # IT energy in J of the attempts before
    phase: str = "startup"
    step: int = 0
    loss: float | None = None
    validation: tuple[int, float] | None = None  # step and loss
    checkpoint: int | None = None
    power_w: float | None = None
    energy_j: float | None = None
    losses: Curve = field(default_factory=Curve)
    events: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=2))

    def __post_init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=RATE_STEPS)
        self._paced_from: tuple[int, float] | None = None  # the first step of this attempt and its end
        self._last_step_unix_s = self.started_unix_s
        self._powers: deque[list[float]] = deque(maxlen=64)  # bucket, sum, count
        self._power_s = -math.inf  # of the newest reading of power
        self.last_s: dict[str, float] = {}  # of each phase but the steps: how long the last one took

    @property
    def whole_energy_j(self) -> float | None:
        """IT energy in J that the whole run will have taken at the present J per token; None before it is known."""
        if self.energy_j is None or self.joule_per_token is None:
            return None
        return self.energy_j + max(0, self.total_tokens - self.tokens) * self.joule_per_token

    def feed(self, event: dict[str, Any]) -> None:
        kind = event.get("event")
        if kind == "step":
            self.step, self.loss = event["step"], event["loss"]
            self.losses.add(event["loss"])
            if self.phase != "compile":  # the first step of a model that is compiled: no rate to go by
                self._recent.append(event["seconds"])
            self._last_step_unix_s = event["time_unix_s"]
            # The first step of an attempt is slow: the pace is counted from its end.
            self._paced_from = self._paced_from or (self.step, self._last_step_unix_s)
        elif kind == "evaluation":
            self.validation = (event["step"], event["validation_loss"])
            text = f"validation loss {event['validation_loss']:.3f} at step {event['step']:,}"
            self.events.append((event["time_unix_s"], text))
        elif kind == "enter":
            self.phase = event["phase"]
        elif kind == "phase" and event.get("phase") == "evaluation":
            self.last_s["evaluation"] = event["end_unix_s"] - event["start_unix_s"]
        elif kind == "checkpoint":  # it is whole now; its phase was over when its copy was made
            self.checkpoint = event["step"]
            self.last_s["checkpoint"] = event["seconds"]  # also of the last one of a run, for which all waits
            self.events.append((event["time_unix_s"], f"checkpoint at step {event['step']:,}"))
        elif kind == "skipped":
            self.step, self._last_step_unix_s = event["step"], event["time_unix_s"]
            self.events.append((event["time_unix_s"], f"step {event['step']:,} was skipped: {event['reason']}"))

    def feed_power(self, live: dict[str, float] | None) -> None:
        """A reading {power_w, energy_j, read_s} of this attempt; one that was seen before is not counted twice. read_s:
        when it came, by a clock that nobody sets."""
        if live is None or live["read_s"] <= self._power_s:
            return
        self._power_s = live["read_s"]
        self.power_w, self.energy_j = live["power_w"], self.energy_before_j + live["energy_j"]
        bucket = self._power_s // POWER_BUCKET_S
        if not self._powers or self._powers[-1][0] != bucket:
            self._powers.append([bucket, 0.0, 0.0])
        self._powers[-1][1] += self.power_w
        self._powers[-1][2] += 1

    @property
    def powers(self) -> list[float]:
        """Mean power in W of the last stretches of POWER_BUCKET_S."""
        return [total / count for _, total, count in self._powers]

    @property
    def tokens(self) -> int:
        return self.step * self.batch_tokens

    @property
    def total_tokens(self) -> int:
        return self.total_steps * self.batch_tokens

    @property
    def tokens_per_s(self) -> float | None:
        seconds = sum(self._recent)
        return self.batch_tokens * len(self._recent) / seconds if seconds else None

    @property
    def step_s(self) -> float | None:
        """Mean time in s of the last steps, without what lies between them."""
        return sum(self._recent) / len(self._recent) if self._recent else None

    @property
    def mfu(self) -> float | None:
        rate = self.tokens_per_s
        if rate is None or not self.peak_flops or not self.flop_per_token:
            return None
        return rate * self.flop_per_token / self.peak_flops

    @property
    def joule_per_token(self) -> float | None:
        """What a token costs at the present power and speed, the pauses between steps left out."""
        rate = self.tokens_per_s
        return self.power_w / rate if self.power_w is not None and rate else None

    def ends_unix_s(self, now: float) -> float | None:
        """When the last step will be done, evaluations and checkpoints on the way included; None in the first steps."""
        if self._paced_from is None or self.step <= self._paced_from[0]:
            return None
        first, since = self._paced_from
        pace = (self._last_step_unix_s - since) / (self.step - first)
        return max(now, self._last_step_unix_s + pace * (self.total_steps - self.step))
