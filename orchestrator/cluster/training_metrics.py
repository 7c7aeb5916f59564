"""What a run's training does now, as Ray's own metrics beside those of its meters: step, loss, speed, J per token.

Ray exports them on the driver's node, with `ray_` before each name. What is not known is not set, and a gauge that is
not set again expires after two of Ray's reports (by default every 10 s): a run that has ended is not shown as going on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from ray.util.metrics import Gauge

from orchestrator.live.progress import RunProgress

LABELS = ("run",)


class Training(NamedTuple):
    """A metric: its name, what it is, and its value now, None where that is not known."""

    name: str
    help: str
    value: Callable[[RunProgress], float | None]


TRAINING = (
    Training("hoofprint_training_step", "Steps trained so far.", lambda now: now.step),
    Training("hoofprint_training_planned_steps", "Steps that the run is to have.", lambda now: now.total_steps),
    Training("hoofprint_training_tokens", "Tokens trained so far; a restart goes back to its checkpoint.",
             lambda now: now.tokens),
    Training("hoofprint_training_loss_nats", "Training loss of the last step, in nats per token.",
             lambda now: now.loss),
    Training("hoofprint_training_validation_loss_nats", "Loss of the last evaluation, in nats per token.",
             lambda now: now.validation and now.validation[1]),
    Training("hoofprint_training_tokens_per_second", "Tokens per second in the time of the last steps.",
             lambda now: now.tokens_per_s),
    Training("hoofprint_training_mfu_ratio", "Model FLOP/s over the devices' peak, by the PaLM convention.",
             lambda now: now.mfu),
    Training("hoofprint_training_joules_per_token", "IT energy of a token at the present power and speed, in joules.",
             lambda now: now.joule_per_token),
)  # fmt: skip


class TrainingMetrics:
    """Publishes the progress of one run. Made and called in the driver, once Ray is there."""

    def __init__(self, run: str):
        self._labels = {"run": run}
        self._gauges = [(Gauge(each.name, each.help, LABELS), each.value) for each in TRAINING]

    def publish(self, progress: RunProgress) -> None:
        for gauge, value_of in self._gauges:
            value = value_of(progress)
            if value is not None and math.isfinite(value):
                gauge.set(float(value), self._labels)
