"""The dashboard beside CodeCarbon's board, TensorBoard and MLflow: cold loads in headless Chromium.

    python benchmarks/dashboard/run.py [--cache FOLDER] [--only GROUP ...] [--draws 3] [--no-peers] [--pictures FOLDER]
                                        [--results FOLDER]

Installs the peers into venvs under the cache folder (what cannot be installed is recorded as such), makes the data
there (8 GB; kept for the next time), and writes benchmarks/results/dashboard.json and dashboard.md. With --only the
rows of other groups stay as they were. The first time takes about a quarter of an hour, most of it for the data.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from browse import Load, busy_share, chromium, load
from data import BIG_START, DAYS, GPUS, NODES, ROOT, STEPS, big_run, compared_runs, long_runs, many_runs
from live import live_run
from peers import Cell, row
from playwright.sync_api import Browser
from servers import Board, Peer, hoofprint, install, peer, peer_data
from table import load_cell, markdown
from wide import HOURS, NAME, POWER_W, SPIKE_S, SPIKE_W, wide_live, wide_run

sys.path.append(str(ROOT / "benchmarks"))
from report import RESULTS, machine  # noqa: E402

Rows = list[dict[str, Any]]
LIST = {"list": "document.querySelectorAll('#list tbody tr').length >= 300"}
CHARTS = {
    "numbers": "document.querySelectorAll('.numbers .value').length >= 5",
    "power": "power && power.edges_unix_s.length > 50",
    "loss": "losses && losses.loss.length > 100",
}
TOTAL = {
    "sums": "document.querySelectorAll('#sums tbody tr').length > 0",
    "whole": "document.querySelectorAll('#sums tbody tr').length > 0 && !document.querySelector('.reading')",
}
COMPARED = {
    "compared": "document.querySelectorAll('main table th').length >= 9 && document.querySelector('main canvas')",
    "curves": "runs_.length === 8 && !document.getElementById('later')",
}
# What of a peer's page shows that the runs are there, which each draws its own way.
PEER_LIST = {
    "codecarbon": "document.querySelectorAll('.js-plotly-plot .main-svg').length > 0",
    "tensorboard": "document.body.innerText.includes('run-00')",
    "mlflow": "document.body.innerText.includes('run-00')",
}
PEER_LONG = {
    "tensorboard": "document.querySelectorAll('line-chart, scalar-card canvas').length > 1",
    "mlflow": "document.querySelectorAll('.js-plotly-plot .main-svg, canvas').length > 1",
}


@dataclass
class Bench:
    browser: Browser
    peers: dict[str, Peer]
    data: Path
    draws: int
    pictures: Path | None

    def ours(self, board: Board, path: str, shown: dict[str, str], name: str) -> list[Load]:
        print(f"  {name} ...", flush=True)
        pictures = [self.picture(name), *[""] * (self.draws - 1)]
        return [load(self.browser, board.address + path, shown, picture=each) for each in pictures]

    def theirs(self, folder: str, count: int, shown: dict[str, str], long: bool) -> dict[str, Cell]:
        """Each peer over the same runs, once it has read its data and rests."""
        cells: dict[str, Cell] = {}
        for name, about in self.peers.items():
            if name == "hoofprint":
                continue
            if about.missing or name not in shown:
                cells[name] = {"text": about.missing or "cannot show it"}
                continue
            try:
                data = peer_data(name, about.python, self.data / f"{name}-{folder}", count, long)
                with peer(name, about.python, data) as board:
                    settled_s = board.settle()
                    path = _peer_path(name, data, long)
                    print(f"  {name} ...", flush=True)
                    pictures = [self.picture(f"{name}-{folder}"), *[""] * (self.draws - 1)]
                    seen = {"shown": shown[name]}
                    loads = [load(self.browser, board.address + path, seen, picture=each) for each in pictures]
                    cells[name] = load_cell(loads, "shown", board.memory_mb()) | {"settled_s": settled_s}
            except Exception as error:  # of a peer: said in its cell, and the others are still measured
                cells[name] = {"text": f"failed: {str(error).splitlines()[0][:120]}"}
        return cells

    def picture(self, name: str) -> str:
        return str(self.pictures / f"{name}.png") if self.pictures else ""


def _peer_path(name: str, data: Path, long: bool) -> str:
    if name == "tensorboard":
        return "/#timeseries" if long else "/"
    if name == "mlflow":
        if long:
            experiment, run = (data / "long.txt").read_text().split()
            return f"/#/experiments/{experiment}/runs/{run}/model-metrics"
        return "/#/experiments/1/runs"
    return "/"


def run_list(bench: Bench) -> Rows:
    rows = []
    runs = many_runs(bench.data / "runs-1000", 1000)
    with hoofprint(runs) as board:
        board.settle()
        cell = load_cell(bench.ours(board, "/", LIST, "list of 1,000 runs"), "list", board.memory_mb())
    cell["ready_s"] = board.ready_s
    cell["text"] += f"; first answer {board.ready_s:.1f} s after the server's start"
    met = cell["worst_s"] is not None and cell["worst_s"] <= 1.0 and cell["kb"] < 400
    cells = {"hoofprint": cell} | bench.theirs("1000", 1000, PEER_LIST, False)
    rows.append(row("run list of 1,000 runs", "<= 1.0 s, < 400 kB", cells, met))
    runs = many_runs(bench.data / "runs-10000", 10_000)
    with hoofprint(runs) as board:
        board.settle()
        cell = load_cell(bench.ours(board, "/", LIST, "list of 10,000 runs"), "list", board.memory_mb())
    cell["ready_s"] = board.ready_s
    cell["text"] += f"; first answer {board.ready_s:.1f} s after the server's start"
    rows.append(
        row("run list of 10,000 runs (500 a page)", "is shown", {"hoofprint": cell}, cell["worst_s"] is not None)
    )
    with hoofprint(runs) as board:  # it has just answered its first page, and reads the folder
        print("  project total of 10,000 runs ...", flush=True)
        loads = [load(bench.browser, f"{board.address}/total", TOTAL, picture=bench.picture("total-first"))]
        cell = load_cell(loads, "sums", board.memory_mb())
    cell["whole_s"] = loads[0].shown_s.get("whole")
    cell["text"] += f"; of all runs {cell['whole_s']:.1f} s" if cell["whole_s"] else "; never of all runs"
    rows.append(
        row("project total of 10,000 runs: the first time", "<= 1.5 s", {"hoofprint": cell}, _within(cell, 1.5))
    )
    return rows


def long_run(bench: Bench) -> Rows:
    runs = big_run(bench.data / "big")
    with hoofprint(runs) as board:
        board.settle()  # it has listed the run, and looked at nothing of it
        print("  the run of 21 days, the first time ...", flush=True)
        first = [
            load(bench.browser, board.address + "/run/llama-65b/", CHARTS, picture=bench.picture("long-run-first"))
        ]
        read_s = board.settle()
        loads = bench.ours(board, "/run/llama-65b/", CHARTS, "long-run")
        memory_mb = board.memory_mb()
    cold, warm = load_cell(first, "power", None), load_cell(loads, "power", memory_mb)
    for cell, of in ((cold, first), (warm, loads)):
        cell["text"] += f"; loss {max(each.shown_s.get('loss', float('nan')) for each in of):.2f} s"
    warm["read_s"] = read_s
    warm["text"] += f"; the ledgers were read beside the pages in {read_s:.0f} s"
    name = f"page of a run of {DAYS} days on {NODES * GPUS:,} GPUs ({STEPS:,} steps)"
    target = "<= 1.5 s"
    rows = [
        row(f"{name}: the first time, power from a sketch", target, {"hoofprint": cold}, _within(cold, 1.5)),
        row(
            f"{name}: once its ledgers were read",
            target,
            {"hoofprint": warm} | bench.theirs("long", 0, PEER_LONG, True),
            _within(warm, 1.5),
        ),
        row(
            "memory of the server after that, at most", "< 400 MB", {"hoofprint": {"text": f"{memory_mb:.0f} MB"}},
            memory_mb < 400,
        ),
    ]  # fmt: skip
    return rows


def live(bench: Bench) -> Rows:
    with live_run(bench.data) as (runs, name), hoofprint(runs) as board:
        print("  live ...", flush=True)
        shown = "power && power.edges_unix_s.length > 5 && document.querySelector('#now .value')"
        shares = [busy_share(bench.browser, f"{board.address}/run/{name}/", shown, 20.0) for _ in range(bench.draws)]
        if bench.pictures:
            load(bench.browser, f"{board.address}/run/{name}/", {"power": shown}, picture=bench.picture("live"))
    cell = {"text": f"{100 * max(shares):.1f} %", "shares": shares}
    name = "live page: share of the browser's main thread, over 20 s"
    return [row(name, "< 5 %", {"hoofprint": cell}, max(shares) < 0.05)]


def compared_cell(loads: list[Load], board: Board) -> Cell:
    """When the figures of a comparison were there, and when its curves."""
    cell = load_cell(loads, "compared", board.memory_mb())
    curves_s = max(each.shown_s.get("curves", float("nan")) for each in loads)
    return cell | {"curves_s": curves_s, "text": f"{cell['text']}; its curves {curves_s:.2f} s"}


def compare(bench: Bench) -> Rows:
    runs = compared_runs(bench.data / "compared")
    query = "&".join(f"run=try-{number}" for number in range(8))
    with hoofprint(runs) as board:
        board.settle()
        cell = compared_cell(bench.ours(board, f"/compare?{query}", COMPARED, "compare"), board)
    return [row("compare 8 runs of 2,000 steps", "<= 1.5 s", {"hoofprint": cell}, _within(cell, 1.5))]


def compare_long(bench: Bench) -> Rows:
    runs = long_runs(bench.data / "long", big_run(bench.data / "big"))
    query = "&".join(f"run=long-{number}" for number in range(8))
    rows = []
    with hoofprint(runs) as board:
        board.settle()
        for draws, when in ((1, "the first time"), (bench.draws, "again")):
            loads = [
                load(bench.browser, f"{board.address}/compare?{query}", COMPARED,
                     picture=bench.picture(f"compare-long-{when}")) for _ in range(draws)
            ]  # fmt: skip
            cell = compared_cell(loads, board)
            met = _within(cell, 1.5) and cell["memory_mb"] < 400
            name = f"compare 8 runs of {DAYS} days on {NODES * GPUS:,} GPUs ({STEPS:,} steps each): {when}"
            rows.append(row(name, "<= 1.5 s, < 400 MB", {"hoofprint": cell}, met))
    return rows


def wide(bench: Bench) -> Rows:
    """The power of each second of hundreds of nodes: where one zooms, and at the end of a run that goes on."""
    runs = wide_run(bench.data / "wide")
    spike_s, rows = BIG_START + SPIKE_S, []
    about = f"{HOURS} hours on {NODES * GPUS:,} GPUs by the second"
    with hoofprint(runs) as board:
        zooms = []
        for when in ("while its ledgers are read", "once they were read"):
            for width_s in (7200.0, 600.0, 60.0):
                query = f"points=600&from={spike_s - width_s / 2}&to={spike_s + width_s / 2}"
                began = time.monotonic()
                found = board.ask(f"/run/{NAME}/power.json?{query}")
                zooms.append({"when": when, "width_s": width_s, "seconds": time.monotonic() - began, **_peak(found)})
                print(f"  {zooms[-1]}", flush=True)
            board.settle()
        near = [zoom for zoom in zooms if zoom["width_s"] <= 600]
        text = ", ".join(
            f"{zoom['width_s']:.0f} s wide in {zoom['seconds']:.1f} s ({zoom['step_s']:g} s a cell, {zoom['when']})"
            for zoom in near
        )
        seen = all(zoom["above_w"] > 0.9 * NODES * GPUS * (SPIKE_W - POWER_W) for zoom in near)
        cell = {"text": f"{text}; server {board.memory_mb():.0f} MB", "zooms": zooms}
        rows.append(row(f"zoom to a spike of one second in {about}", "is seen", {"hoofprint": cell}, seen))
    with wide_live(bench.data, runs) as live, hoofprint(live) as board:
        board.ask(f"/run/{NAME}/power.json")
        while board.ask(f"/run/{NAME}/power.json").get("by") == "sketch":
            time.sleep(1.0)
        ages, busy_s, began = [], board.cpu_s(), time.monotonic()
        while time.monotonic() - began < 40:
            found = board.ask(f"/run/{NAME}/power.json")
            ages.append(time.time() - found["run"][1])
            time.sleep(1.0)
        share = (board.cpu_s() - busy_s) / (time.monotonic() - began)
        text = f"{statistics.median(ages):.1f} s, at most {max(ages):.1f} s; {100 * share:.0f} % of a core, server "
        cell = {"text": f"{text}{board.memory_mb():.0f} MB", "ages_s": ages, "said": found["remarks"]}
        print(f"  {cell}", flush=True)
        name = f"live run of {about}: how old the end of its curve is (a reading a second)"
        rows.append(row(name, "<= 3 s", {"hoofprint": cell}, statistics.median(ages) <= 3.0))
    return rows


def _peak(found: dict[str, Any]) -> dict[str, Any]:
    """By how much the highest cell of all nodes together is above the middle one, and how long a cell is."""
    totals = [value for value in found["high_w"] if value is not None]
    above_w = max(totals) - statistics.median(totals) if totals else 0.0
    return {"above_w": above_w, "step_s": found["step_s"], "by": found["by"], "said": found["remarks"]}


def _within(cell: Cell, seconds: float) -> bool:
    return cell["worst_s"] is not None and cell["worst_s"] <= seconds


GROUPS: dict[str, Callable[[Bench], Rows]] = {"list": run_list, "long": long_run, "live": live, "compare": compare,
          "compare-long": compare_long, "wide": wide}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache", help="where the peers' venvs and the data are")
    parser.add_argument("--only", nargs="*", choices=list(GROUPS), default=list(GROUPS))
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--no-peers", action="store_true", help="of the others, keep what was measured before")
    parser.add_argument("--results", type=Path, default=RESULTS, help="a folder for the table")
    parser.add_argument("--pictures", type=Path, help="a folder for screenshots of what was measured")
    options = parser.parse_args()
    about = machine()
    data = options.cache.resolve() / "bench-dashboard"
    data.mkdir(parents=True, exist_ok=True)
    peers = install(options.cache.resolve() / "peers")
    for each in peers.values():
        print(f"{each.name}: {each.version or each.missing}")
    if options.pictures:
        options.pictures.mkdir(parents=True, exist_ok=True)
    file = options.results / "dashboard.json"
    with chromium() as browser:
        about["browser"] = f"Chromium {browser.version}"
        measured = {"hoofprint": peers["hoofprint"]} if options.no_peers else peers
        bench = Bench(browser, measured, data, options.draws, options.pictures)
        for group in options.only:
            print(group, flush=True)
            load_now = os.getloadavg()[0]
            made = [{"group": group, "load_before": load_now, **one} for one in GROUPS[group](bench)]
            before: Rows = json.loads(file.read_text())["rows"] if file.exists() else []
            rows = {each: [one for one in before if one["group"] == each] for each in GROUPS}
            if options.no_peers:
                kept = {one["row"]: one["peers"] for one in rows[group]}
                made = [one | {"peers": kept.get(one["row"], {})} for one in made]
            rows[group] = made
            # after each group, so that what was measured is not lost with the last
            versions = {name: each.version or each.missing for name, each in peers.items()}
            result = {"machine": about, "versions": versions, "rows": [one for part in rows.values() for one in part]}
            options.results.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            file.with_suffix(".md").write_text(markdown(result), encoding="utf-8")
    print(file.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
