"""What runs now, as run folders show it: where each run stands, read without disturbing it."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from energy.run_holder import holder, is_held
from energy.run_version import require_known
from energy.runs import RunFolder, list_runs
from energy.units import JOULE_PER_KWH
from orchestrator.live import state as live_state

TAIL_BYTES = 64 * 1024  # of the metrics: some hundred steps, however long the run is


@dataclass(frozen=True)
class Running:
    """A run as it stands. `status` is `lost` where it says that it runs and nobody works on it; None is not known."""

    run: str
    path: str
    status: str
    doubt: str | None
    host: str | None
    pid: int | None
    job: str | None
    started_unix_s: float | None
    step: int | None
    loss: float | None
    tokens: int | None
    planned_tokens: int | None
    tokens_per_s: float | None
    power_w: float | None
    energy_it_kwh: float | None
    ends_unix_s: float | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def running(runs_dir: Path) -> list[Running]:
    """The runs of the folder that have not said how they ended, newest first."""
    return [look(folder) for folder in reversed(list_runs(runs_dir)) if folder.read_run().get("status") == "running"]


def look(folder: RunFolder) -> Running:
    """A run as it stands, also one that has ended; of one that a newer hoofprint wrote no more than who has it."""
    run, by, held = folder.read_run(), holder(folder.path), is_held(folder.path)
    status, doubt, live = str(run.get("status") or "not known"), None, dict[str, Any]()
    newer = _newer(folder)
    if newer is not None:
        run, doubt = {}, newer
    elif held:
        live, doubt = _live(folder)
    elif status == "running":
        status, doubt = "lost", "its process ended without a word (killed, or the machine went down)"
    step = live if newer or live.get("step") is not None else last_step(folder) or {}
    attempts = run.get("attempts") or []
    # Before the first step there is no live state, and the meters run already.
    meters = (folder.live_power() if held and not newer else None) or {}
    energy_j = meters.get("energy_j")
    return Running(
        run=folder.path.name,
        path=str(folder.path),
        status=status,
        doubt=doubt,
        host=by.host if by is not None else None,
        pid=by.pid if by is not None else None,
        job=by.job if by is not None else None,
        started_unix_s=attempts[-1].get("started_unix_s") if attempts else run.get("created_unix_s"),
        step=step.get("step"),
        loss=step.get("loss"),
        tokens=step.get("tokens"),
        planned_tokens=run.get("planned_tokens"),
        tokens_per_s=live.get("tokens_per_s"),
        power_w=live.get("power_w", meters.get("power_w")),
        energy_it_kwh=live.get("energy_it_kwh", None if energy_j is None else energy_j / JOULE_PER_KWH),
        ends_unix_s=(live.get("forecast") or {}).get("ends_unix_s"),
    )


def _newer(folder: RunFolder) -> str | None:
    try:
        require_known(folder.path)
    except ValueError as error:
        return str(error)
    return None


def _live(folder: RunFolder) -> tuple[dict[str, Any], str | None]:
    """The live state, {} where there is none that can be read, and why it may not be what it says."""
    try:
        live = live_state.read(folder)
    except ValueError as error:
        return {}, str(error)
    return live.document or {}, live.doubt if live.runs else None


def last_step(folder: RunFolder) -> dict[str, Any] | None:
    """The newest step among the last lines of rank 0's metrics; None before the first."""
    return last_event(folder, lambda event: event.get("event") == "step")


def last_event(
    folder: RunFolder, wanted: Callable[[dict[str, Any]], bool] = lambda event: True
) -> dict[str, Any] | None:
    """The newest such event among the last lines of rank 0's metrics; None where there is none."""
    try:
        with folder.metrics_file(0).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return None
    for line in reversed(lines):
        try:
            event = json.loads(line)
        except ValueError:
            continue  # torn by a kill, or cut at the start of the tail
        if isinstance(event, dict) and wanted(event):
            return event
    return None
