"""How a preflight looks on a terminal, from 80 columns on (rich): nodes, GPUs, and what is wrong with which."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.padding import Padding
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from energy.human import digits, human_time

MOST_ROWS = 32  # of more nodes or GPUs, only those with a finding are shown
MOST_FINDINGS = 24
NONE = Text("-", "dim")
Document = Mapping[str, Any]


class Stages:
    """What the preflight is at, on stderr, while Ray has the process's own streams: one line that changes on a
    terminal, else a line for each stage."""

    def __init__(self) -> None:
        self._console = Console(file=os.fdopen(os.dup(2), "w", buffering=1), highlight=False)
        self._live = Live(
            console=self._console,
            transient=True,
            redirect_stdout=False,  # both are Ray's while it runs
            redirect_stderr=False,
        )
        self._spinner = Spinner("dots")
        self._stage = ""

    def __enter__(self) -> Stages:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._console.is_terminal:
            self._live.stop()
        self._console.file.close()

    def __call__(self, done: float, total: float | None, text: str) -> None:
        if self._console.is_terminal:
            of = f": {done:g} of {total:g}" if total else ""
            self._spinner.update(text=Text(f"{text}{of}"))
            self._live.update(self._spinner)
        elif text != self._stage:
            self._console.print(Text(text), soft_wrap=True)
        self._stage = text


def print_preflight(result: Document, console: Console) -> None:
    """The whole of a `doctor --cluster`."""
    nodes, findings = result["nodes"], result["findings"]
    gpus = sum(len(node["gpus"]) for node in nodes)
    counted = [_count(len(nodes), "node"), *([_count(gpus, "GPU")] if gpus else [])]
    title = Text(f"Preflight of {', '.join(counted)}", "bold")
    console.print(title.append(f"  {human_time(result['duration_s'])}", "not bold"))
    console.print(Padding(_nodes(result), (0, 0, 0, 2)))
    if gpus:
        console.print()
        console.print(Padding(_gpus(result), (0, 0, 0, 2)))
    fleet = result["all_reduce"]
    if fleet["bus_gb_per_s"] is not None:
        said = (
            f"all-reduce over {_count(fleet['nodes'], 'node')}: {digits(fleet['bus_gb_per_s'])} GB/s "
            f"({fleet['backend']}, bus bandwidth, {fleet['bytes'] / 1e6:.0f} MB of float32)"
        )
        console.print(Padding(Text(said), (1, 0, 0, 2)))
    if findings:
        console.print()
        print_findings(findings, console)
        more = len(findings) - MOST_FINDINGS
        if more > 0:
            console.print(Text(f"  and {more} more: --json has all of them"))
    else:
        compared = f"no node is below {result['slow_below']:g} of the median" if len(nodes) > 1 else "nothing is wrong"
        console.print(Padding(Text(f"{compared}, and no GPU is capped or throttled", "green"), (1, 0, 0, 2)))


def print_findings(findings: Sequence[Document], console: Console) -> None:
    """Node and GPU, what was found, and what to do about it."""
    shown = ("", "")
    for finding in findings[:MOST_FINDINGS]:
        if shown != (shown := (finding["node"], finding["gpu"])):
            head = Text(finding["node"], "bold yellow")
            if finding["gpu"]:
                head.append(f"  {finding['gpu']}", "not bold")
            console.print(Padding(head, (0, 0, 0, 2)))
        console.print(Padding(Text(finding["said"]), (0, 0, 0, 4)))
        console.print(Padding(Text(finding["todo"], "italic dim"), (0, 0, 0, 4)))


def in_lines(result: Document) -> list[str]:
    """For the log of a run: a line that says how it went, and two for each finding."""
    findings = result["findings"]
    took, nodes = human_time(result["duration_s"]), _count(len(result["nodes"]), "node")
    lines = [f"preflight of {nodes} in {took}: {_count(len(findings), 'finding') if findings else 'nothing is wrong'}"]
    for finding in findings[:MOST_FINDINGS]:
        gpu = f" {finding['gpu']}" if finding["gpu"] else ""
        lines += [f"  {finding['node']}{gpu}: {finding['said']}", f"    {finding['todo']}"]
    if len(findings) > MOST_FINDINGS:
        lines.append(f"  and {len(findings) - MOST_FINDINGS} more, in preflight.json")
    return lines


def _nodes(result: Document) -> Table:
    counts = Counter(finding["node"] for finding in result["findings"])
    scale, unit = _matmul_unit(result)
    suffix = _same_domain(result)
    table = _table()
    table.add_column("node", ratio=1, overflow="fold")
    table.add_column(f"matmul\n{unit}", justify="right", no_wrap=True)
    table.add_column("disk write\nMB/s", justify="right", no_wrap=True)
    table.add_column("all-reduce\nGB/s", justify="right", no_wrap=True)
    if any(node["all_reduce_within_gb_per_s"] is not None for node in result["nodes"]):
        table.add_column("within\nGB/s", justify="right", no_wrap=True)
    table.add_column("\nstate", no_wrap=True)
    shown = [n for n in result["nodes"] if len(result["nodes"]) <= MOST_ROWS or counts[n["node"]]][:MOST_ROWS]
    for node in shown:
        rates = [gpu["matmul_tflop_per_s"] for gpu in node["gpus"] if gpu.get("matmul_tflop_per_s") is not None]
        rates = rates or [rate for rate in (node["matmul_tflop_per_s"],) if rate is not None]
        cells = [
            Text(node["node"][: len(node["node"]) - suffix]),
            _range([rate * scale for rate in rates]),
            _figure(node["disk_write_mb_per_s"]),
            _figure(node["all_reduce_gb_per_s"]),
        ]
        if len(table.columns) == 6:
            cells.append(_figure(node["all_reduce_within_gb_per_s"]))
        table.add_row(*cells, _state(counts[node["node"]]))
    if len(shown) < len(result["nodes"]):
        table.add_row(Text(f"and {len(result['nodes']) - len(shown)} more", "dim"))
    return table


def _gpus(result: Document) -> Table:
    suffix = _same_domain(result)
    wrong = Counter(finding["gpu"] for finding in result["findings"])
    every = [(node["node"], gpu) for node in result["nodes"] for gpu in node["gpus"]]
    shown = [(name, gpu) for name, gpu in every if len(every) <= MOST_ROWS or wrong[gpu["uuid"]]][:MOST_ROWS]
    measured = any(gpu.get("matmul_tflop_per_s") is not None for _, gpu in every)
    table = _table()
    table.add_column("GPU", ratio=1, overflow="fold")
    if measured:
        table.add_column("matmul\nTFLOP/s", justify="right", no_wrap=True)
    table.add_column(f"clock {'at work' if measured else 'at rest'}\nof MHz", justify="right", no_wrap=True)
    table.add_column("power limit\nof W", justify="right", no_wrap=True)
    table.add_column("\n°C", justify="right", no_wrap=True)
    table.add_column("\nstate", no_wrap=True)
    above = None
    for name, gpu in shown:
        if name != above:
            above = name
            table.add_row(Text(name[: len(name) - suffix]))
        cells = [Text(f"  {'-' if gpu['index'] is None else gpu['index']}  ").append(gpu["uuid"][:12], "dim")]
        if measured:
            cells.append(_figure(gpu.get("matmul_tflop_per_s")))
        cells += [
            _of(gpu.get("sm_clock_mhz"), gpu.get("max_sm_clock_mhz")),
            _of(gpu.get("power_limit_w"), gpu.get("default_power_limit_w")),
            _figure(gpu.get("temperature_c")),
            _state(wrong[gpu["uuid"]]),
        ]
        table.add_row(*cells)
    if len(shown) < len(every):
        table.add_row(Text(f"and {len(every) - len(shown)} more", "dim"))
    return table


def _same_domain(result: Document) -> int:
    """How many characters of the nodes' names are a domain that all share: tables leave it out."""
    domains = {node["node"].partition(".")[1:] for node in result["nodes"]}
    hosts = {node["node"].partition(".")[0] for node in result["nodes"]}
    if len(domains) > 1 or len(hosts) < len(result["nodes"]) or any(host.isdigit() for host in hosts):
        return 0
    return len("".join(domains.pop()))


def _table() -> Table:
    return Table(box=None, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0), header_style="dim")


def _matmul_unit(result: Document) -> tuple[float, str]:
    """(units in a TFLOP/s, unit) of the matmul column: CPUs do less than one."""
    return (1.0, "TFLOP/s") if result["device"] == "cuda" else (1000.0, "GFLOP/s")


def _figure(value: float | None) -> Text:
    return NONE if value is None else Text(f"{value}" if isinstance(value, int) else digits(value))


def _range(values: Sequence[float]) -> Text:
    if not values:
        return NONE
    low, high = digits(min(values)), digits(max(values))
    return Text(low if low == high else f"{low} to {high}")


def _of(value: float | None, most: float | None) -> Text:
    if value is None:
        return NONE
    return Text(f"{value:,g}" if most is None else f"{value:,g} of {most:,g}")


def _state(findings: int) -> Text:
    return Text(_count(findings, "finding"), "yellow") if findings else Text("ok", "green")


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
