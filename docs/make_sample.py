"""Makes the sample of runs that the pictures are taken of: `.venv/bin/python docs/make_sample.py`, about four minutes.

Real runs of `sample/small.yaml` on this machine's CPU, one of them metered with four simulated GPUs (the NVML stand-in
of tests/nvml_sim; "sim" is in its name, and "Sim" in that of its GPUs), one stopped by its budget, one killed, and a
`measure`. What is kept of each is what its pictures need: no checkpoints, no tokenizer, no logs.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "docs"), str(ROOT / "tests" / "nvml_sim")]

import terminal  # noqa: E402
import webpages  # noqa: E402
from build import build  # noqa: E402
from pictures import LIVE  # noqa: E402

from energy.records.record import write_record  # noqa: E402
from energy.runs import LOCK, RunFolder  # noqa: E402

SAMPLE = ROOT / "docs" / "sample"
COLUMNS = 96
KEPT = ("run.json", "experiment.yaml", "plan.json", "live.json", "metrics", "energy", "grid")
# Steps of training with a checkpoint now and then; the third draws less, the fourth is lost for a while.
GPUS = """
gpu uuid=GPU-51000001-0000-0000-0000-000000000001 trace=steps low=95 mid=240 high=385 step=0.9 every=14 dip=2.5
gpu uuid=GPU-51000002-0000-0000-0000-000000000002 trace=steps low=95 mid=240 high=380 step=0.9 every=14 dip=2.5
gpu uuid=GPU-51000003-0000-0000-0000-000000000003 trace=steps low=90 mid=200 high=290 step=0.9 every=14 dip=2.5
gpu uuid=GPU-51000004-0000-0000-0000-000000000004 trace=steps low=95 mid=240 high=382 step=0.9 every=14 counter=0
"""


def environment(simulated: Path | None = None) -> dict[str, str]:
    """That of the commands; simulated: a folder for the NVML stand-in, which the real pynvml then loads."""
    found = {**os.environ, "PATH": f"{ROOT / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    if simulated is not None:
        simulated.mkdir(exist_ok=True)
        build(simulated / "lib")
        (simulated / "gpus.txt").write_text(GPUS)
        found |= {
            "LD_LIBRARY_PATH": str(simulated / "lib"),
            "NVML_SIM": str(simulated / "gpus.txt"),
            "NVML_SIM_EPOCH": str(int(time.time())),
        }
    return found


def workspace(folder: Path) -> Path:
    """A folder in which the commands of the pictures are typed: experiments/ and an empty runs/."""
    shutil.copytree(ROOT / "experiments", folder / "experiments")  # makes `folder` too
    shutil.copy(SAMPLE / "small.yaml", folder / "experiments" / "small.yaml")
    (folder / "runs").mkdir()
    return folder


def train(name: str, folder: Path, env: dict[str, str], *more: str) -> int:
    """A run without its screen; its exit code."""
    command = ["hoofprint", "run", "experiments/small.yaml", "--name", name, *more]
    return subprocess.run(command, cwd=folder, env=env, stdout=subprocess.DEVNULL).returncode


def killed(name: str, folder: Path, env: dict[str, str]) -> None:
    """A run whose process is killed in the middle: it cannot say a word any more."""
    command = ["hoofprint", "run", "experiments/small.yaml", "--name", name, "--set", "purpose=development"]
    process = subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.DEVNULL, start_new_session=True)
    metrics = folder / "runs" / name / "metrics" / "rank-0.jsonl"
    until = time.monotonic() + 120
    while time.monotonic() < until and not (metrics.exists() and '"step": 40,' in metrics.read_text()):
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run(["hoofprint", "report", f"runs/{name}"], cwd=folder, env=env, stdout=subprocess.DEVNULL, check=True)


def watched(name: str, folder: Path, env: dict[str, str]) -> None:
    """A run on a terminal, with `top` and the pages beside it; keeps their screens from its middle, and how it ends."""
    screens = SAMPLE / "screens"
    screens.mkdir(exist_ok=True)
    live: list[str] = []
    over = threading.Event()

    def look(screen: terminal.Screen) -> None:
        if "ends" in screen.text():
            live.append(screen.text())

    def top() -> None:
        while len(live) < 20 and not over.wait(0.1):
            pass
        seen, _ = terminal.record(["hoofprint", "top", name, "--once"], 80, folder, env)
        (screens / "top.ansi").write_text(seen.text() + "\n", encoding="utf-8")
        with webpages.opened() as chromium, webpages.dashboard(folder, env) as address:
            for picture in LIVE:
                png = webpages.photograph(chromium, picture, f"{address}{picture.address}")
                (screens / f"{picture.name}.png").write_bytes(png)

    beside = threading.Thread(target=top)
    beside.start()
    command = ["hoofprint", "run", "experiments/small.yaml", "--name", name, "--set", "purpose=final"]
    try:
        ended, code = terminal.record(command, COLUMNS, folder, env, look)
    finally:
        over.set()
        beside.join()
    assert code == 0 and live, ended.text()
    for file, shown in (("run.ansi", live[2 * len(live) // 3]), ("run-ended.ansi", ended.text())):
        (screens / file).write_text(shown.replace(f"{folder}/", "") + "\n", encoding="utf-8")


def keep(run: Path, to: Path) -> None:
    """What the pictures need of a run, without where it was made; its record is computed again, from what is kept."""
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir()
    for name in KEPT:
        if (run / name).is_dir():
            shutil.copytree(run / name, to / name, ignore=shutil.ignore_patterns("*.lock", ".*"))
        elif (run / name).exists():
            text = (run / name).read_text(encoding="utf-8")
            for place, said in ((str(run.parents[1]), "."), (sysconfig.get_path("stdlib"), "lib/python")):
                text = text.replace(place, said)
            (to / name).write_text(text, encoding="utf-8")
    write_record(RunFolder(to))
    (to / LOCK).unlink(missing_ok=True)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="hoofprint-docs-") as text:
        folder = workspace(Path(text) / "work")
        plain, simulated = environment(), environment(Path(text) / "nvml")

        def made(name: str) -> None:  # each as it is done: one that fails leaves the others
            keep(folder / "runs" / name, SAMPLE / name)
            print(name, flush=True)

        watched("sim-4-gpus", folder, simulated)
        made("sim-4-gpus")
        for name, rate in (("cpu-high-lr", "8e-3"), ("cpu-low-lr", "1e-3")):
            assert train(name, folder, plain, "--set", f"training.peak_lr={rate}", "--set", "purpose=development") == 0
            made(name)
        limit = ("--set", "energy.budget.energy=0.25 Wh", "--set", "purpose=development")
        assert train("cpu-budget", folder, plain, *limit) == 3
        made("cpu-budget")
        killed("cpu-killed", folder, plain)
        made("cpu-killed")
        command = ["sh", "-c", "seq 2000000 | sort -R | md5sum"]
        subprocess.run(["hoofprint", "measure", "--name", "sort", "--", *command], cwd=folder, env=plain, check=True)
        made("sort")


if __name__ == "__main__":
    main()
