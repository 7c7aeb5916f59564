"""The live state of a run: `live.json` in its folder, replaced as a whole about once a second while it trains.

What is not known is null, never zero. The file is for screens and other programs, and nobody needs it: it may be
deleted, or not be written on a full disk, and the run goes on. It never says how a run ended: that is in run.json, and
a run whose driver was killed leaves it as it last was. `read` puts the two together.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from energy.accounting.compute import PALM
from energy.records.footprint import SCHEMA as RECORD_SCHEMA
from energy.records.record import FILE_NAME as RECORD
from energy.run_holder import is_held
from energy.runs import RunFolder, write_json
from energy.units import GRAM_PER_TONNE, JOULE_PER_KWH

if TYPE_CHECKING:
    from orchestrator.driver.run_watch import RunWatch

FILE_NAME = "live.json"
SCHEMA = 1
EVERY_S = 1.0
STALE_S = 30.0  # a driver that lives and has not written for so long hangs, or its disk is full
Document = dict[str, Any]


class LiveFile:
    """Writes live.json of one run, at most once a second."""

    def __init__(self, folder: RunFolder):
        self._path, self._written_unix_s = folder.path / FILE_NAME, 0.0

    def write(self, document: Document, now: float, force: bool = False) -> None:
        if not force and abs(now - self._written_unix_s) < EVERY_S:  # also after the clock was set back
            return
        self._written_unix_s = now
        with contextlib.suppress(OSError):  # a full disk: readers see that the file stands still
            write_json(self._path, document, durable=False)


def document(watch: RunWatch, now: float, now_s: float) -> Document:
    """The whole state, for live.json; now_s: the same moment on the monotonic clock."""
    progress, spending = watch.progress, watch.budget.spending
    it_kwh = _kwh(progress.energy_j)
    whole_kwh = _kwh(progress.whole_energy_j)
    pue, trained = watch.budget.pue, progress.step > 0
    intensity, carbon_t = watch.budget.intensity_g_per_kwh(now), spending.carbon_t if it_kwh is not None else None

    def whole_t() -> float | None:
        if carbon_t is None or whole_kwh is None or it_kwh is None or pue is None or intensity is None:
            return None
        return carbon_t + (whole_kwh - it_kwh) * pue * intensity / GRAM_PER_TONNE

    def facility(kwh: float | None) -> float | None:
        return None if kwh is None or pue is None else kwh * pue

    return {
        "schema": SCHEMA,
        "run_id": watch.run_id,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "updated_unix_s": now,
        "attempt": watch.attempt,
        "started_unix_s": progress.started_unix_s,
        "phase": progress.phase,
        "step": progress.step if trained else None,
        "total_steps": progress.total_steps,
        "tokens": progress.tokens if trained else None,
        "total_tokens": progress.total_tokens,
        "loss": _finite(progress.loss),
        "validation_loss": _finite(progress.validation[1]) if progress.validation else None,
        "validation_step": progress.validation[0] if progress.validation else None,
        "checkpoint_step": progress.checkpoint,
        "step_s": progress.step_s,
        "tokens_per_s": progress.tokens_per_s,
        "mfu": progress.mfu,
        "mfu_convention": PALM,
        "peak_flops": progress.peak_flops,
        "power_w": progress.power_w,
        "joule_per_token": progress.joule_per_token,
        "energy_it_kwh": it_kwh,
        "energy_facility_kwh": facility(it_kwh),
        "carbon_tco2eq": carbon_t,
        "pue": pue,
        "intensity_g_per_kwh": intensity,
        "forecast": {
            "ends_unix_s": progress.ends_unix_s(now),
            "energy_it_kwh": whole_kwh,
            "energy_facility_kwh": facility(whole_kwh),
            "carbon_tco2eq": whole_t(),
        },
        "budget": [state.document() for state in watch.states],
        "stragglers": watch.stragglers,
        "nodes": watch.nodes.documents(now_s, now),
        "events": [{"time_unix_s": when, "text": text} for when, text in progress.events],
        "history": {
            "loss": [_short(value) for value in progress.losses.points],
            "power_w": [_short(value) for value in progress.powers],
        },
    }


def _kwh(energy_j: float | None) -> float | None:
    return None if energy_j is None else energy_j / JOULE_PER_KWH


def _finite(value: float | None) -> float | None:
    """JSON has no NaN: a loss that blew up is null."""
    return value if value is not None and math.isfinite(value) else None


def _short(value: float) -> float:
    return float(f"{value:.5g}")


@dataclass(frozen=True)
class Live:
    """A run as it stands: `status` of run.json, or "lost" where nobody works on a run that says that it runs.

    document: the live state, None where there is none (a run of an older version, or one that has not begun).
    doubt: why it may not be what it says, in words; None when there is no doubt. at_work: a process works on it.
    """

    folder: RunFolder
    run: dict[str, Any]
    status: str
    document: Document | None
    doubt: str | None
    at_work: bool = False

    @property
    def runs(self) -> bool:
        return self.status == "running"

    @property
    def record(self) -> Document | None:
        """The run's record as it lies there; None where there is none that can be read."""
        try:
            record = json.loads((self.folder.path / RECORD).read_text(encoding="utf-8"))
            return record if record["schema"] == RECORD_SCHEMA else None
        except (OSError, ValueError, KeyError, TypeError):
            return None


def read(folder: RunFolder, now: float | None = None) -> Live:
    """The state of a run, in whatever process it runs; opens nothing for writing.

    FileNotFoundError or ValueError where there is no run; ValueError for a live state of a newer version.
    """
    now = time.time() if now is None else now
    run = folder.read_run()
    status = str(run.get("status") or "not known")
    document = _read(folder.path / FILE_NAME)
    doubt, at_work = None, is_held(folder.path, look_only=True)
    if status == "running" and not at_work:
        status = "lost"
        run = folder.read_run()  # it may have ended between the two looks
        if run.get("status") != "running":
            status = str(run.get("status"))
        else:
            doubt = "its process ended without a word (killed, or the machine went down)"
    elif status == "running" and document is not None:
        attempt = (run.get("attempts") or [{}])[-1].get("attempt", 1)
        if document.get("attempt", attempt) < attempt:
            document = None  # of an attempt before; this one has not begun to train
        elif (age_s := now - float(document["updated_unix_s"])) > STALE_S:
            doubt = f"its live state stands still since {age_s:.0f} s: the driver hangs, or its disk is full"
        elif age_s < -STALE_S:
            doubt = f"its live state is dated {-age_s:.0f} s ahead of this machine's clock: how old it is is not known"
    return Live(folder, run, status, document, doubt, at_work)


def _read(path: Path) -> Document | None:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        schema = document["schema"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: no live state of a run (it can be deleted: the run does not need it)") from None
    if schema != SCHEMA:
        raise ValueError(
            f"{path}: a live state of schema {schema}, and this version reads {SCHEMA}: use the hoofprint that runs it"
        )
    return document  # type: ignore[no-any-return]
