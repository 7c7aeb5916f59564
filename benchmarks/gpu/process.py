"""A part of the suite as a process, which has imported what it needs before it is its turn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


class PartProcess:
    """Begins at once to import what `task` needs, which takes no GPU, and waits there for `run`.

    log: what it says on stderr; its findings lie beside it. packages: a folder of peers.
    """

    def __init__(self, task: dict[str, Any], log: Path, packages: Path | None, inductor_cache: Path):
        log.parent.mkdir(parents=True, exist_ok=True)
        path = os.pathsep.join(str(place) for place in (ROOT, packages, os.environ.get("PYTHONPATH")) if place)
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"}
        environment.setdefault("TORCHINDUCTOR_CACHE_DIR", str(inductor_cache))
        self._log, self._out = log, log.with_suffix(".out")
        command = [sys.executable, "-m", "benchmarks.gpu.part", json.dumps(task)]
        with self._log.open("wb") as stderr, self._out.open("wb") as stdout:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=stdout, stderr=stderr
            )

    def run(self, limit_s: float) -> dict[str, Any]:
        """What the part found, and `error` where it did not come to its end; `seconds` it took from here on."""
        began_s = time.monotonic()
        error = None
        try:
            self._process.communicate(b"go\n", limit_s)
        except subprocess.TimeoutExpired:
            error = f"cut short after {limit_s:.0f} s"
        else:
            code = self._process.returncode
            lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
            error = None if code == 0 else f"exit status {code}: {lines[-1][:300] if lines else 'it said nothing'}"
        finally:
            self.end()
        found: dict[str, Any] = {}
        for line in self._out.read_text(errors="replace").splitlines():
            if line.startswith("found "):
                key, end = json.JSONDecoder().raw_decode(line, len("found "))
                found[key] = json.loads(line[end:])
        return {"found": found, "error": error, "seconds": time.monotonic() - began_s}

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
