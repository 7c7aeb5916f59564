"""The run folder: what lies where, and how it is read while something writes it, or after it died."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

MEASURE = "measure"  # `kind` in run.json of a command that was measured; of a training there is none
SERIES = "grid/series.json"  # in a run's folder: the grid's intensity over the run, where it is declared by the hour


class RunFolder:
    """One run on disk. Reading tolerates a torn last line; writing `run.json` replaces it atomically."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @property
    def run_file(self) -> Path:
        return self.path / "run.json"

    @property
    def energy_dir(self) -> Path:
        return self.path / "energy"

    @property
    def metrics_dir(self) -> Path:
        return self.path / "metrics"

    def metrics_file(self, rank: int) -> Path:
        return self.metrics_dir / f"rank-{rank}.jsonl"

    def ledger_file(self, node: str) -> Path:
        return self.energy_dir / f"{node}.ledger"

    def read_run(self) -> dict[str, Any]:
        """The contents of run.json. ValueError names the file when it holds no JSON object."""
        try:
            run = json.loads(self.run_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise FileNotFoundError(f"{self.run_file}: no such file; a run folder has a run.json") from None
        except ValueError as error:
            raise ValueError(f"{self.run_file}: not JSON ({error})") from None
        if not isinstance(run, dict):
            raise ValueError(f"{self.run_file}: expected a JSON object, found {type(run).__name__}")
        return run

    def write_run(self, run: dict[str, Any]) -> None:
        """Replace run.json as a whole: a reader sees the old one or the new one."""
        write_json(self.run_file, run)

    def update_run(self, **changes: Any) -> dict[str, Any]:
        """Set top-level keys of run.json (made when missing) and return the result."""
        run = self.read_run() if self.run_file.exists() else {}
        run.update(changes)
        self.write_run(run)
        return run

    def events(self, rank: int = 0) -> list[dict[str, Any]]:
        """Every whole line of the rank's metrics file, in order of writing."""
        try:
            lines = self.metrics_file(rank).read_bytes().splitlines()
        except FileNotFoundError:
            return []
        parsed = (_parse(line) for line in lines)
        return [event for event in parsed if event is not None]

    def steps(self) -> list[dict[str, Any]]:
        """Training steps, recomputed ones included (told apart by `attempt`)."""
        return [event for event in self.events() if event.get("event") == "step"]

    def evaluations(self) -> list[dict[str, Any]]:
        return [event for event in self.events() if event.get("event") == "evaluation"]

    def phases(self) -> list[dict[str, Any]]:
        """Spans {phase, attempt, start_unix_s, end_unix_s} of what rank 0 was doing."""
        return [event for event in self.events() if event.get("event") == "phase"]

    def devices_used(self) -> set[str]:
        """UUIDs of the accelerators that the ranks of all attempts trained on; empty where rank 0 does not say."""
        return set().union(*self.devices_by_attempt().values())

    def devices_by_attempt(self) -> dict[int, set[str]]:
        """Of each attempt that began to train, what `devices_used` has of all."""
        told = [event for event in self.events() if event.get("event") == "devices"]
        return {int(event.get("attempt") or 1): set(event.get("uuids", [])) for event in told}

    def live_power(self) -> dict[str, float | None] | None:
        """{power_w, energy_j, time_unix_s} over all devices as the meters wrote them last; None before they did, and
        power and energy where no device was read.

        Of a node with a sensor of its own that one counts, and not its parts a second time.
        """
        newest: list[dict[str, Any]] = []
        for path in sorted(self.path.glob("live/*.json")):
            document = _parse(_read_or_nothing(path))
            if document is not None:
                newest.append(document)
        if not newest:
            return None
        known = {key: [each[key] for each in newest if each[key] is not None] for key in ("power_w", "energy_j")}
        return {
            **{key: sum(values) if values else None for key, values in known.items()},
            "time_unix_s": max(each["time_unix_s"] for each in newest),
        }

    def ledgers(self) -> list[Path]:
        """The ledger of each node, by name."""
        return sorted(self.energy_dir.glob("*.ledger"))


LOCK = ".lock"  # in a run's folder: see energy.run_holder
STOP_FILE = "stop"  # there: asks the trainer to checkpoint and end at the next step
RESIZE_FILE = "resize"  # there: as a stop, but the driver goes on with another number of workers


def list_runs(directory: str | os.PathLike[str]) -> list[RunFolder]:
    """The run folders directly in `directory`, oldest first; a folder without a readable run.json is none."""
    found: list[tuple[float, str, RunFolder]] = []
    for run_file in Path(directory).glob("*/run.json"):
        folder = RunFolder(run_file.parent)
        try:
            created_unix_s = float(folder.read_run().get("created_unix_s") or 0.0)
        except (OSError, ValueError, TypeError):
            continue
        found.append((created_unix_s, folder.path.name, folder))
    return [folder for _, _, folder in sorted(found, key=lambda item: item[:2])]


def write_json(path: Path, document: dict[str, Any], *, durable: bool = True) -> None:
    """Write a JSON document so that a crash leaves the old file or the new one, never half of one.

    durable: also through a power cut, at the cost of waiting for the disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n", durable=durable)


def replace_file(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Put `content` (text as UTF-8, its line ends as they are) in the place of a file, in one move, as `write_json`."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)  # there only where something above failed


def require_run_name(name: str) -> None:
    """ValueError for a --name that is no folder's."""
    if name in ("", ".", "..") or "/" in name or not name.isprintable():
        raise ValueError(f"--name {name!r}: expected a plain folder name, without slashes and line breaks")


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of a JSON value by their place in it: {'model.dim': 128, 'data.0.name': 'wiki'}; none of what is
    empty."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        return {prefix: value}
    return {k: v for key, child in items for k, v in flat(child, f"{prefix}.{key}" if prefix else str(key)).items()}


def _read_or_nothing(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _parse(line: bytes) -> dict[str, Any] | None:
    """A JSON object, or None for a line that a crash tore."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None
