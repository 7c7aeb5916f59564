"""What a rank writes while it trains: one JSON object a line, at once, so that a kill loses at most the last line."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orchestrator.ranks.loop import StepResult

LONG_WAIT_S = 0.05  # a shorter wait for data stays in its step: marks of microseconds would only fill the disk
MARK_EVERY_STEPS = 5  # an open train_step span is written out this often: what a kill can leave unattributed
COMPILE = "compile"


class MetricsFile:
    """The `Recorder` of one rank. Every rank marks its phases; rank 0 also writes steps and evaluations.

    compiles: the model is compiled by its first step, so that this step is the phase `compile`. Its tokens are trained
    as any others; only its time is start-up.

    While the disk refuses, lines wait in memory and training goes on: whoever frees the disk loses nothing. Only
    `close` raises OSError, for lines that never reached it.
    """

    def __init__(
        self, path: Path, attempt: int, rank: int, batch_tokens: int, started_unix_s: float, compiles: bool = False
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = path.open("ab", buffering=0)
        self._pending = bytearray()
        if self._file.tell():
            self._pending += b"\n"  # isolates a line that a kill tore
        self._attempt, self._rank, self._batch_tokens = attempt, rank, batch_tokens
        self._phase, self._phase_start, self._steps_open = "startup", started_unix_s, 0
        self._compiles = compiles
        self._step_start, self._step_start_s = time.time(), time.monotonic()  # the latter for lengths

    def phase(self, name: str, step: int) -> None:
        now = time.time()
        self._step_start, self._step_start_s = now, time.monotonic()
        if name == "train_step" and self._compiles:
            self._compiles, name = False, COMPILE
        if name == self._phase and self._steps_open < MARK_EVERY_STEPS:
            return
        self._close_phase(now)
        if name != self._phase and self._rank == 0:
            self._write(event="enter", phase=name, time_unix_s=now)  # for who looks while it lasts: spans come after
        self._phase = name

    def step(self, step: int, result: StepResult) -> None:
        now = time.time()
        self._steps_open += 1
        if self._rank == 0 and result.skipped is not None:
            why = asdict(result.skipped)
            self._write(event="skipped", step=step, time_unix_s=now, tokens=self._batch_tokens, **why)
        elif self._rank == 0:
            self._write(
                event="step",
                step=step,
                time_unix_s=now,
                loss=result.loss,
                tokens=step * self._batch_tokens,
                seconds=time.monotonic() - self._step_start_s,
                lr=result.lr,
                grad_norm=result.grad_norm,
            )
        if result.data_wait_s >= LONG_WAIT_S:
            self.within("data_wait", self._step_start, self._step_start + result.data_wait_s)

    def within(self, phase: str, start_unix_s: float, end_unix_s: float) -> None:
        """A span inside the open one: of two, the account lets the one that started last have the time."""
        self._write(event="phase", phase=phase, start_unix_s=start_unix_s, end_unix_s=end_unix_s)

    def process(self, host: str, pid: int) -> None:
        """Notes which process this rank is, for whoever looks for one that is silent."""
        self._write(event="process", host=host, pid=pid)

    def checkpoint(self, written: dict[str, Any]) -> None:
        """Notes what a checkpoint cost; its phase is only the time in which the training waited for it."""
        if self._rank == 0:
            self._write(event="checkpoint", time_unix_s=time.time(), **written)
        if "not_copied" in written:
            self.warning(f"the checkpoint of step {written['step']} was not copied: {written['not_copied']}")
        if "not_pruned" in written:
            self.warning(f"copies older than step {written['step']} could not be taken away: {written['not_pruned']}")

    def warning(self, said: str) -> None:
        """Notes what a person should hear of."""
        if self._rank == 0:
            self._write(event="warning", time_unix_s=time.time(), said=said)

    def resumed(self, step: int) -> None:
        """Notes after which step this attempt goes on; 0 is the start."""
        if self._rank == 0:
            self._write(event="resumed", step=step)

    def devices(self, uuids: list[str]) -> None:
        """Notes which accelerators the ranks of this attempt train on."""
        if self._rank == 0:
            self._write(event="devices", uuids=uuids)

    def choices(self, in_use: dict[str, Any]) -> None:
        """Notes what the ranks of this attempt compute with: checkpointing, attention, compiler, grid."""
        if self._rank == 0:
            self._write(event="choices", **in_use)

    def evaluation(self, step: int, validation_loss: float) -> None:
        if self._rank == 0:
            self._write(event="evaluation", step=step, time_unix_s=time.time(), validation_loss=validation_loss)

    def close(self) -> None:
        self._close_phase(time.time())
        refusal = self._flush()
        self._file.close()
        if refusal is not None:
            raise OSError(refusal.errno, f"{refusal.strerror}: the last metrics were not written", str(self._path))

    def _close_phase(self, now: float) -> None:
        self._write(event="phase", phase=self._phase, start_unix_s=self._phase_start, end_unix_s=now)
        self._phase_start, self._steps_open = now, 0

    def _write(self, **fields: Any) -> None:
        self._pending += json.dumps({"attempt": self._attempt, **fields}).encode() + b"\n"
        self._flush()

    def _flush(self) -> OSError | None:
        """Writes what waits, in order; the system's refusal, after which the rest still waits."""
        try:
            while self._pending:
                del self._pending[: self._file.write(self._pending)]
        except OSError as refusal:
            return refusal
        return None
