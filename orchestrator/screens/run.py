"""What the terminal shows of a run: a live view, or key=value lines; Ray's own words go to a file."""

import errno
import io
import os
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from energy.human import human_carbon, human_count, human_energy, human_flop, percent
from energy.runs import RunFolder
from orchestrator.driver.run_watch import RunWatch
from orchestrator.screens import view
from orchestrator.spec.experiment import Experiment

LINE_EVERY_S = 60.0
LOW_DISK_BYTES = 32 * 2**20


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
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        for target, saved in enumerate(self._saved, start=1):
            os.dup2(saved, target)
            os.close(saved)

    def append(self, text: str) -> None:
        with suppress(OSError):  # a full disk may eat these words, never the run's end
            os.write(2, text.encode())


class _Terminal(io.FileIO):
    """A terminal or pipe whose reader may go away while the run goes on: what is said then, nobody misses."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EPIPE):
                raise
            return len(data)


class RunScreen:
    """Everything a run says to the user goes through here, on stderr."""

    def __init__(self, quiet: bool = False, verbose: bool = False):
        self._terminal = _Terminal(os.dup(2), "w")
        stream = io.TextIOWrapper(io.BufferedWriter(self._terminal), errors="replace", line_buffering=True)
        self._console = Console(file=stream, highlight=False)
        self._quiet, self._verbose = quiet, verbose
        self._live: Live | None = None
        self._stage = ""
        self._tenth = -1
        self._last_line_unix_s = 0.0
        self._low_disk = False

    def note(self, text: str, style: str = "") -> None:
        """A line, on a terminal broken between words; of several lines each as it is."""
        if self._quiet:
            return
        if self._console.is_terminal and "\n" not in text:
            indent = text[: len(text) - len(text.lstrip())]
            width = max(40, self._width() - 1)
            text = "\n".join(
                textwrap.wrap(
                    text, width, subsequent_indent=f"{indent}  ", break_long_words=False, break_on_hyphens=False
                )
            )
        self._say(Text(text, style))

    def failed(self, lines: list[str], log: Path | None = None) -> None:
        """What went wrong and what to do: shown however quiet the run is, and in whole lines to copy from."""
        self._stop_live()
        head, *rest = lines
        self._console.print(Text(head, "bold"), soft_wrap=True)
        for line in rest:
            self._console.print(Text(f"  {line}"), soft_wrap=True)
        if log is not None and self._verbose and log.exists():
            self._console.print(Text(log.read_text(encoding="utf-8", errors="replace")), soft_wrap=True)
        if log is not None:
            self._console.print(Text(f"  what Ray and the workers said: {log}"), soft_wrap=True)

    def progress(self, done: float, total: float | None, text: str) -> None:
        """Long preparation: a bar on a terminal, else a line each time it moves by a tenth."""
        if self._quiet:
            return
        new = text != self._stage
        if self._console.is_terminal:
            if new and self._stage:
                self._stop_live()
                self._say(Text(f"  {self._stage}: done", "dim"))
            self._stage = text
            self._draw([Text(f"  {text} ...")] if not done else view.preparing(text, done, total, self._width()), True)
            return
        tenth = int(10 * done / total) if total else -1
        if new or tenth != self._tenth:
            self._stage, self._tenth = text, tenth
            self.note(f"{text} {tenth * 10} %" if total else text)

    def opening(self, experiment: Experiment, run: dict[str, Any]) -> None:
        """What will be trained, on what, and what of it is measured; `run` is the contents of run.json."""
        self._stop_live()
        workers, cuda = run["world_size"], run["device_type"] == "cuda"
        steps, batch = experiment.total_steps, experiment.training.batch_tokens
        params = human_count(run["model"]["params"])
        self.note(
            f"{run['run_id']}: {params} parameters, {human_count(steps * batch)} tokens in {steps:,} steps, "
            f"{workers} {'GPU' if cuda else 'CPU'} worker{'s' if workers > 1 else ''}"
        )
        self.note(f"  {view.metering(run['meters'], workers if cuda else 0)}")
        for text in _reservations(run["meters"], cuda):
            self.note(f"  {text}", "dim")
        if self._verbose:
            self.note("  Ray's log: logs/ray.log in the run folder")

    @contextmanager
    def live(self, watch: RunWatch) -> Iterator[None]:
        """While the workers train; `update` draws."""
        try:
            yield
        finally:
            watch.look(last=True)
            self.update(watch, last=True)
            self._stop_live()

    def update(self, watch: RunWatch, last: bool = False) -> None:
        """Draws what the watch has seen: in place on a terminal, else a line a minute."""
        now = time.time()
        self._watch_disk(watch, now)
        if self._quiet:
            return
        shown = view.Shown(watch.document)
        if self._console.is_terminal:
            drawn = view.training if watch.trained else view.starting
            self._draw(drawn(shown, self._width(), now))
        elif watch.trained and (last or abs(now - self._last_line_unix_s) >= LINE_EVERY_S):
            self._last_line_unix_s = now
            self._console.print(Text(view.key_values(shown, now)), soft_wrap=True)

    def closing(self, folder: RunFolder, footprint: dict[str, Any], report: Path) -> None:
        self._stop_live()
        if self._quiet:
            return
        energy, carbon, data = footprint["energy"], footprint["carbon"], footprint["data"]
        table = Table(title=f"Footprint of {folder.path.name}", title_justify="left", show_header=False)
        table.add_row("status", footprint["run"]["status"])
        table.add_row("IT energy", human_energy(energy["energy_it_kwh"]))
        facility, tonnes = energy["energy_facility_kwh"], carbon["carbon_tco2eq"]
        why = _why_missing(footprint)
        table.add_row("facility energy", human_energy(facility) if facility is not None else f"missing: {why[0]}")
        table.add_row("carbon", human_carbon(tonnes) if tonnes is not None else f"missing: {why[1]}")
        shares = {kind: energy[f"share_{kind}"] for kind in ("measured", "modelled", "assumed")}
        table.add_row("of it", ", ".join(f"{percent(share)} {kind}" for kind, share in shares.items() if share))
        table.add_row("tokens", f"{data['tokens_trained']:,.0f}")
        table.add_row("compute", f"{human_flop(footprint['compute']['compute_flop'])} (PaLM convention)")
        if data["validation_loss"] is not None:
            table.add_row(
                "validation loss",
                f"{data['validation_loss']:.3f} nat/token; unigram entropy {data['unigram_entropy_nats']:.3f}",
            )
        self._console.print(table)
        self._console.print(Text(f"report: {report}"), soft_wrap=True)

    def release(self) -> None:
        """Gives the terminal back as it was, for an end without goodbye."""
        if self._console.is_terminal:
            self._terminal.write(b"\x1b[?25h\r\n")

    def blurt(self, text: str) -> None:
        """A line past all buffers: for a signal handler, which may have interrupted a drawing."""
        self._terminal.write(f"{text}\n".encode())

    def _say(self, text: Text) -> None:
        self._console.print(text, soft_wrap=True)  # a path stays whole

    def _width(self) -> int:
        """Columns of the terminal as it is now; stdout, which rich would ask, may be a file."""
        try:
            return os.get_terminal_size(self._terminal.fileno()).columns
        except OSError:
            return self._console.width

    def _draw(self, lines: list[Text], transient: bool = False) -> None:
        self._console.width = self._width()
        if self._live is None:
            self._live = Live(
                console=self._console,
                auto_refresh=False,
                transient=transient,
                redirect_stdout=False,  # both are Ray's while it runs
                redirect_stderr=False,
            )
            self._live.start()
        self._live.update(Group(*lines), refresh=True)

    def _stop_live(self) -> None:
        if self._live is not None:
            live, self._live = self._live, None
            live.stop()

    def _watch_disk(self, watch: RunWatch, now: float) -> None:
        folder = watch.folder
        try:
            room = os.statvfs(folder.path)
        except OSError as error:
            watch.unread(folder.path, error)
            return
        low = room.f_bavail * room.f_frsize < LOW_DISK_BYTES
        if low and not self._low_disk:
            text = f"the disk of {folder.path} is nearly full: free some space before the next checkpoint"
            watch.progress.events.append((now, text))
            if not self._console.is_terminal:
                self.note(text)
        self._low_disk = low


def _why_missing(footprint: dict[str, Any]) -> tuple[str, str]:
    """Why facility energy and carbon are not known, where they are not."""
    energy, carbon = footprint["energy"], footprint["carbon"]
    if energy["energy_it_kwh"] is None:
        unread = "no sensor could be read"
        return unread, unread
    has_grid = carbon["intensity_g_per_kwh"] is not None or carbon["series_sha256"] is not None
    needs = {"energy.pue": energy["pue"] is not None, "energy.grid": has_grid}
    unset = [key for key, is_set in needs.items() if not is_set]
    if not unset:
        return "", "the grid's series does not cover the run"
    return "energy.pue is not set", f"{' and '.join(unset)} {'is' if len(unset) == 1 else 'are'} not set"


def _reservations(meters: list[dict[str, Any]], cuda: bool) -> list[str]:
    """What the models assume, and why something is not measured; each once, however many hosts say it."""
    # A model that has not been asked yet is called just "CPU (model)": its assumptions follow a colon.
    models = [s["name"] for m in meters for s in m["sensors"] if s["method"] == "modelled" and ":" in s["name"]]
    warnings = [
        warning
        for meter in meters
        for warning in meter["warnings"]
        # The names of modelled sensors say what they assume; nobody misses a GPU on the CPU.
        if not warning.startswith("host model:") and (cuda or not warning.startswith("NVML:"))
    ]
    return list(dict.fromkeys([*models, *warnings]))
