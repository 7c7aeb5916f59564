"""What the terminal shows of a run: a live view, or key=value lines; Ray's own words go to a file."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from energy.human import human_carbon, human_energy, human_flop, percent
from energy.runs import RunFolder
from orchestrator.spec import Experiment

LINE_EVERY_S = 60.0
SPARKS = "▁▂▃▄▅▆▇█"


class RayLog:
    """Sends this process's stdout and stderr to a file while Ray runs: Ray and its children print what means nothing
    to the user, on both, from C++ too. The screen keeps its own copy of stderr."""

    def __init__(self, path: Path):
        self._path = path
        self._saved: list[int] = []

    def __enter__(self) -> "RayLog":
        self._path.parent.mkdir(parents=True, exist_ok=True)
        sys.stdout.flush()
        sys.stderr.flush()
        log = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._saved = [os.dup(1), os.dup(2)]
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        for target, saved in enumerate(self._saved, start=1):
            os.dup2(saved, target)
            os.close(saved)


class RunScreen:
    """Everything a run says to the user goes through here, on stderr."""

    def __init__(self, quiet: bool = False):
        self._console = Console(file=os.fdopen(os.dup(2), "w", buffering=1), quiet=quiet)
        self._live: Live | None = None
        self._bar: Progress | None = None
        self._last_line_unix_s = 0.0
        self._last_text = ""
        self._experiment: Experiment | None = None
        self._first_step: int | None = None

    def note(self, text: str) -> None:
        self._console.print(text, highlight=False)

    def progress(self, done: float, total: float | None, text: str) -> None:
        """A line for long preparation; a percentage each time it moves by ten."""
        percent = f" {int(10 * done / total) * 10} %" if total else ""
        line = f"{text}{percent}"
        if line != self._last_text:
            self._last_text = line
            self.note(line)

    def opening(
        self,
        experiment: Experiment,
        folder: RunFolder,
        meters: list[dict[str, Any]],
        workers: int,
        device: str,
    ) -> None:
        self._experiment = experiment
        kind = {"cuda": "GPU", "cpu": "CPU"}[device]
        self.note(f"run {folder.path.name}: {workers} {kind} workers, {experiment.total_steps} steps")
        for meter in meters:
            by_method: dict[str, list[str]] = {}
            for sensor in meter["sensors"]:
                by_method.setdefault(sensor["method"], []).append(sensor["name"])
            for method, names in by_method.items():
                self.note(f"  {meter['node']}: {method}: {', '.join(names)}")
            for warning in meter["warnings"]:
                if not warning.startswith("host model:"):  # the names of modelled sensors say what they assume
                    self.note(f"  {meter['node']}: {warning}")

    @contextmanager
    def live(self, experiment: Experiment, folder: RunFolder) -> Iterator[None]:
        if not self._console.is_terminal:
            yield
            return
        self._bar = Progress(
            TextColumn("tokens"), BarColumn(), TextColumn("{task.percentage:.0f} %"), TimeRemainingColumn()
        )
        self._bar.add_task("tokens", total=experiment.total_steps)
        with Live(Text("starting the workers ..."), console=self._console, refresh_per_second=4) as self._live:
            yield
        self._live = None

    def update(self, folder: RunFolder) -> None:
        steps = folder.steps()
        if not steps:
            return
        assert self._experiment is not None
        recent = steps[-20:]
        seconds = sum(step["seconds"] for step in recent)
        rate = self._experiment.training.batch_tokens * len(recent) / seconds if seconds else 0.0
        evaluations = folder.evaluations()
        facts = {
            "step": f"{steps[-1]['step']}/{self._experiment.total_steps}",
            "loss": f"{steps[-1]['loss']:.3f}",
            "validation": f"{evaluations[-1]['validation_loss']:.3f}" if evaluations else "-",
            "tokens_per_s": f"{rate:,.0f}",
        }
        if self._live is not None and self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=steps[-1]["step"])
            table = Table.grid(padding=(0, 2))
            table.add_row(*(f"{key} [bold]{value}[/bold]" for key, value in facts.items()))
            table.add_row("loss", _spark([step["loss"] for step in steps]))
            self._live.update(Group(table, self._bar))
        elif time.time() - self._last_line_unix_s >= LINE_EVERY_S or self._last_line_unix_s == 0:
            self._last_line_unix_s = time.time()
            self.note(" ".join(f"{key}={value.replace(',', '')}" for key, value in facts.items()))

    def closing(self, folder: RunFolder, footprint: dict[str, Any], report: Path) -> None:
        energy, carbon, data = footprint["energy"], footprint["carbon"], footprint["data"]
        table = Table(title=f"Footprint of {folder.path.name}", title_justify="left", show_header=False)
        status = footprint["run"]["status"]
        if footprint["run"]["error"]:
            status += f": {footprint['run']['error']}"
        table.add_row("status", status)
        table.add_row("IT energy", human_energy(energy["energy_it_kwh"]))
        facility = energy["energy_facility_kwh"]
        table.add_row(
            "facility energy",
            human_energy(facility) if facility is not None else "missing: energy.pue is not set",
        )
        tonnes = carbon["carbon_tco2eq"]
        table.add_row(
            "carbon",
            human_carbon(tonnes) if tonnes is not None else "missing: energy.intensity or energy.pue is not set",
        )
        shares = {kind: energy[f"share_{kind}"] for kind in ("measured", "modelled", "assumed")}
        table.add_row("of it", ", ".join(f"{percent(share)} {kind}" for kind, share in shares.items() if share))
        table.add_row("tokens", f"{data['tokens_trained']:,.0f}")
        table.add_row("compute", f"{human_flop(footprint['compute']['compute_flop'])} (PaLM convention)")
        if data["validation_loss"] is not None:
            table.add_row(
                "validation loss",
                f"{data['validation_loss']:.3f} nat/token; unigram entropy {data['unigram_entropy_nats']:.3f}",
            )
        table.add_row("report", str(report))
        self._console.print(table)
        if status != "completed":
            self.note(f"go on with: hoofprint run SPEC --resume {folder.path}")


def _spark(values: list[float], width: int = 40) -> str:
    shown = values[:: max(1, len(values) // width)][-width:]
    low, high = min(shown), max(shown)
    span = (high - low) or 1.0
    return "".join(SPARKS[round((value - low) / span * (len(SPARKS) - 1))] for value in shown)
