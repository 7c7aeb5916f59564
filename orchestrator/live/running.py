"""What runs now, as run folders show it: where each run stands, read without disturbing it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from energy.run_holder import holder, is_held
from energy.runs import RunFolder, list_runs
from energy.units import JOULE_PER_KWH
from orchestrator.live import state as live_state

TAIL_BYTES = 64 * 1024  # of the metrics: some hundred steps, however long the run is


@dataclass(frozen=True)
class Running:
    """A run that says that it runs. `status` is `lost` where its process died; what is not known yet is None."""

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
    return [_look(folder) for folder in reversed(list_runs(runs_dir)) if folder.read_run().get("status") == "running"]


def _look(folder: RunFolder) -> Running:
    run, by, held = folder.read_run(), holder(folder.path), is_held(folder.path)
    live, doubt = _live(folder) if held else ({}, "its process ended without a word (killed, or the machine went down)")
    step = live if live.get("step") is not None else last_step(folder) or {}
    attempts = run.get("attempts") or []
    # Before the first step there is no live state, and the meters run already.
    meters = (folder.live_power() if held else None) or {}
    energy_j = meters.get("energy_j")
    return Running(
        run=folder.path.name,
        path=str(folder.path),
        status="running" if held else "lost",
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


def _live(folder: RunFolder) -> tuple[dict[str, Any], str | None]:
    """The live state, {} where there is none that can be read, and why it may not be what it says."""
    try:
        live = live_state.read(folder)
    except ValueError as error:
        return {}, str(error)
    return live.document or {}, live.doubt if live.runs else None


def last_step(folder: RunFolder) -> dict[str, Any] | None:
    """The newest step among the last lines of rank 0's metrics; None before the first."""
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
        if isinstance(event, dict) and event.get("event") == "step":
            return event
    return None
