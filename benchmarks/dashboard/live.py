"""A run that goes on: GPUs of the NVML stand-in metered by `hoofprint measure`, and a live state that is renewed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data import ROOT

sys.path += [str(ROOT / "tests" / "nvml_sim"), str(ROOT / "tests" / "shared")]
from build import build  # noqa: E402
from live_document import live_document  # noqa: E402

GPUS = 8
NAME = "goes-on"


@contextmanager
def live_run(folder: Path) -> Iterator[tuple[Path, str]]:
    """(runs folder, name of the run), while it goes on. The meter and the ledger are real; loss and MFU are made up."""
    runs = folder / "live"
    shutil.rmtree(runs, ignore_errors=True)
    runs.mkdir(parents=True)
    config = folder / "gpus.txt"
    gpu = "gpu uuid=GPU-{0:08d}-0000-4000-8000-000000000000 trace=steps step=0.7 phase={0}"
    config.write_text("\n".join(gpu.format(number) for number in range(GPUS)) + "\n")
    environment = os.environ | {"LD_LIBRARY_PATH": str(build(folder / "nvml")), "NVML_SIM": str(config)}
    environment |= {"NVML_SIM_EPOCH": str(int(time.time())), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "orchestrator", "measure", "--runs", str(runs), "--name", NAME, "--quiet", "--"]
    process = subprocess.Popen([*command, "sleep", "3600"], cwd=ROOT, env=environment)
    ended = threading.Event()

    def renew() -> None:
        step = 0
        while not ended.wait(1.0):
            step += 1
            if not (runs / NAME / "run.json").exists():
                continue
            partial = runs / NAME / ".live.partial"
            partial.write_text(json.dumps(live_document(time.time(), step)))
            os.replace(partial, runs / NAME / "live.json")

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        time.sleep(12)  # as many readings as make a curve
        yield runs, NAME
    finally:
        ended.set()
        thread.join()
        process.terminate()
        process.wait(60)
