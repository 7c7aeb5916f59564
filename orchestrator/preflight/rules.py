"""What of a preflight's figures is wrong, in words: which node and GPU, what was measured, what the others have, and
what to do. Pure functions of the documents of the nodes.

Like is compared with like: GPUs of one name, CPUs of one model, disks and networks of all. Of an even number of figures
the upper one of the middle two is the median, so that the slower one of two nodes is named.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from energy.human import digits, percent

SLOW_BELOW = 0.85
WATT = 1.0  # limits are told in mW, and rounded by boards
HARMFUL = ("HW slowdown", "SW thermal slowdown", "HW thermal slowdown", "HW power brake slowdown")
HEAT = ("SW thermal slowdown", "HW thermal slowdown")
Document = Mapping[str, Any]


@dataclass(frozen=True)
class Finding:
    """Something to put right before a training. `measured` and `others` (the median) are in `unit`; None: no figure."""

    node: str
    gpu: str | None  # UUID
    check: str
    said: str
    todo: str
    measured: float | None = None
    others: float | None = None
    unit: str = ""

    @property
    def share(self) -> float | None:
        """Of what the others have."""
        return self.measured / self.others if self.measured is not None and self.others else None

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"share": self.share}


@dataclass(frozen=True)
class _Figure:
    check: str
    unit: str
    kind: str  # compared with others of the same
    node: str
    gpu: str | None
    value: float


TODO = {
    "matmul": "see what else computes there (top, nvidia-smi), its clocks and its cooling; leave it out until then",
    "clock": "see nvidia-smi -q -d CLOCK,PERFORMANCE and the cooling of that node",
    "disk write": "see how the storage is mounted there (mount, nfsstat) and how full it is (df)",
    "all-reduce": "see its network: ethtool or ibstat for the link's speed, and which one NCCL_SOCKET_IFNAME or "
    "GLOO_SOCKET_IFNAME names",
    "all-reduce within": "see nvidia-smi topo -m and nvidia-smi nvlink -s: links may be down",
}


def find_faults(nodes: Sequence[Document], fleet: Document, slow_below: float = SLOW_BELOW) -> list[Finding]:
    """All that is wrong, node by node; `fleet` is what the nodes did together."""
    faults = [
        *_not_measured(nodes),
        *_slow(list(_figures(nodes)), slow_below),
        *_power_caps(nodes),
        *_clocks(nodes, slow_below),
        *_sensors(nodes),
    ]
    if fleet.get("fault"):
        todo = "see that every node reaches every other at the address that Ray knows it by (ray status -v)"
        faults.append(Finding("all", None, "all-reduce", f"over all nodes it failed: {fleet['fault']}", todo))
    order = {node["node"]: number for number, node in enumerate(nodes)}
    return sorted(faults, key=lambda fault: (order.get(fault.node, len(order)), fault.gpu or ""))


def _figures(nodes: Sequence[Document]) -> Iterator[_Figure]:
    for node in nodes:
        name, cpu = node["node"], str(node["cpu_name"])
        for check, key, unit, kind in (
            ("matmul", "matmul_tflop_per_s", "TFLOP/s", cpu),
            ("disk write", "disk_write_mb_per_s", "MB/s", ""),
            ("all-reduce", "all_reduce_gb_per_s", "GB/s", ""),
            ("all-reduce within", "all_reduce_within_gb_per_s", "GB/s", ",".join(g["name"] for g in node["gpus"])),
        ):
            if node[key] is not None:
                yield _Figure(check, unit, kind, name, None, node[key])
        for gpu in node["gpus"]:
            if gpu.get("matmul_tflop_per_s") is not None:
                yield _Figure("matmul", "TFLOP/s", gpu["name"], name, gpu["uuid"], gpu["matmul_tflop_per_s"])
                if gpu.get("sm_clock_mhz") is not None:
                    yield _Figure("clock", "MHz", gpu["name"], name, gpu["uuid"], gpu["sm_clock_mhz"])


def _slow(figures: Sequence[_Figure], below: float) -> Iterator[Finding]:
    groups: dict[tuple[str, str, bool], list[_Figure]] = defaultdict(list)
    for figure in figures:
        groups[figure.check, figure.kind, figure.gpu is not None].append(figure)
    for (check, _, _), members in groups.items():
        median = statistics.median_high(figure.value for figure in members)
        for figure in members:
            if figure.value >= below * median:
                continue
            what = "clock at work" if check == "clock" else check
            among = f"{len(members)} {'GPUs' if figure.gpu else 'nodes'}"
            measured, others = in_unit(figure.value, figure.unit), in_unit(median, figure.unit)
            said = f"{what} {measured}: {percent(figure.value / median)} of the median of {among}, {others}"
            yield Finding(figure.node, figure.gpu, check, said, TODO[check], figure.value, median, figure.unit)


def in_unit(value: float, unit: str) -> str:
    """Three digits; a CPU's TFLOP/s as GFLOP/s."""
    if unit == "TFLOP/s" and value < 1:
        return f"{digits(1000 * value)} GFLOP/s"
    return f"{digits(value)} {unit}"


def _power_caps(nodes: Sequence[Document]) -> Iterator[Finding]:
    """Limits below the board's default, and below those of other boards of the same name."""
    for name, gpu, others in _beside_others(nodes, "power_limit_w"):
        limit, default = gpu["power_limit_w"], gpu.get("default_power_limit_w")
        capped = default is not None and limit <= default - WATT
        usual = statistics.median_high(others) if others else None
        if not capped and (usual is None or limit > usual - WATT):
            continue
        board = "" if default is None else f", default of the board {default:g} W"
        said = f"power limit {limit:g} W{board}{_of_the_others(gpu, others, 'W')}"
        if default is None:
            todo = f"nvidia-smi -q -d POWER says what it allows; sudo nvidia-smi -i {gpu['uuid']} -pl {usual:g}"
        elif capped:
            todo = f"sudo nvidia-smi -i {gpu['uuid']} -pl {default:g}, unless it is meant"
        else:
            todo = "it is another kind of board, though its name is the same: nvidia-smi -q -d POWER on both nodes"
        yield Finding(name, gpu["uuid"], "power cap", said, todo, limit, default if usual is None else usual, "W")


def _beside_others(nodes: Sequence[Document], key: str) -> Iterator[tuple[str, Document, list[float]]]:
    """(node, GPU, the figure `key` of the other GPUs of its name, sorted) of each GPU that has one."""
    known = [(node["node"], gpu) for node in nodes for gpu in node["gpus"] if gpu.get(key) is not None]
    of: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for _, gpu in known:
        of[gpu["name"]].append((gpu["uuid"], gpu[key]))
    for name, gpu in known:
        yield name, gpu, sorted(value for uuid, value in of[gpu["name"]] if uuid != gpu["uuid"])


def _of_the_others(gpu: Document, others: Sequence[float], unit: str) -> str:
    if not others:
        return ""
    span = f"{others[0]:g}" if others[0] == others[-1] else f"{others[0]:g} to {others[-1]:g}"
    return f"; the other {f'{len(others)} ' if len(others) > 1 else ''}{gpu['name']}: {span} {unit}"


def _clocks(nodes: Sequence[Document], below: float) -> Iterator[Finding]:
    """Throttling that no training should begin with, and clocks that neither heat nor power holds down."""
    for name, gpu, others in _beside_others(nodes, "max_sm_clock_mhz"):
        most, usual = gpu["max_sm_clock_mhz"], statistics.median_high(others) if others else 0
        if most < usual:
            said = f"its clock is at most {most} MHz{_of_the_others(gpu, others, 'MHz')}"
            todo = "compare nvidia-smi -q -d CLOCK and the VBIOS version with another node's"
            yield Finding(name, gpu["uuid"], "clock", said, todo, most, usual, "MHz")
    for node in nodes:
        for gpu in node["gpus"]:
            reasons = gpu.get("throttle_reasons")
            if reasons is None:
                continue
            at_work = gpu.get("matmul_tflop_per_s") is not None
            harmful = [each for each in reasons if each in HARMFUL]
            if harmful:
                hot = any(each in HEAT for each in harmful)
                degrees = f", {gpu['temperature_c']} °C" if hot and gpu.get("temperature_c") is not None else ""
                said = f"throttled {'at work' if at_work else 'at rest'}: {', '.join(harmful)}{degrees}"
                todo = (
                    "see the cooling of that node: fans, air or water, dust, its place in the rack"
                    if hot
                    else "see its power supplies and cables: the board asks for less power"
                )
                yield Finding(node["node"], gpu["uuid"], "throttle", said, todo)
            clock, most = gpu.get("sm_clock_mhz"), gpu.get("max_sm_clock_mhz")
            if at_work and clock and most and not harmful and "SW power cap" not in reasons and clock < below * most:
                said = f"clock {clock} of at most {most} MHz at work, and neither power nor heat holds it there"
                todo = f"sudo nvidia-smi -i {gpu['uuid']} -rgc (and -rac) lifts a lock of its clocks"
                yield Finding(node["node"], gpu["uuid"], "clock", said, todo, clock, most, "MHz")


def _sensors(nodes: Sequence[Document]) -> Iterator[Finding]:
    """What is broken, what other nodes have and this one lacks, and software that is not that of most."""
    told = {node["node"]: {(c["section"], c["name"]): c for c in node["checks"]} for node in nodes if node["checks"]}
    for node in nodes:
        if node["sees_runs"] is False:
            todo = "mount the storage of the runs at the same path on every node, or name a shared one with --runs"
            said = "the folder of the runs is not there, or another one than the driver's"
            yield Finding(node["node"], None, "storage", said, todo)
        if node["gpus_counted"] and node["checks"] and not node["gpus"]:
            nvml = told[node["node"]].get(("GPU", "NVML"), {})
            said = f"Ray counts {node['gpus_counted']} GPUs and NVML shows none: {nvml.get('found', 'it is not there')}"
            yield Finding(node["node"], None, "sensors", said, nvml.get("todo") or "make nvidia-smi work there")
    yield from _unlike(told, [node["node"] for node in nodes if node["gpus_counted"] or node["gpus"]])


def _unlike(told: Mapping[str, Mapping[tuple[str, str], Document]], with_gpus: Sequence[str]) -> Iterator[Finding]:
    """told: the doctor's checks of each node by section and name. Those of GPUs compare between nodes that have any."""
    for section, name in dict.fromkeys(key for checks in told.values() for key in checks):
        of = {n: checks.get((section, name)) for n, checks in told.items() if section != "GPU" or n in with_gpus}
        good = [check["found"] for check in of.values() if check is not None and check["state"] == "ok"]
        usual, times = Counter(good).most_common(1)[0] if good else ("", 0)
        for node, check in of.items():
            state, found = ("missing", "not there") if check is None else (check["state"], check["found"])
            lacks = state != "ok" and 2 * len(good) >= len(of)
            if state == "broken" or lacks:
                others = f"; ok on {len(good)} of {len(of)} nodes" if lacks else ""
                todo = (check or {}).get("todo") or "compare with another node: hoofprint doctor"
                yield Finding(node, None, "sensors", f"{section} {name}: {found}{others}", todo)
            elif section == "software" and state == "ok" and found != usual and 2 * times >= len(of):
                said = f"{name} {found}, and {usual} on {times} of {len(of)} nodes"
                yield Finding(node, None, "software", said, "use the same image or environment on all nodes")


def _not_measured(nodes: Sequence[Document]) -> Iterator[Finding]:
    for node in nodes:
        by_why: dict[str, list[str]] = defaultdict(list)
        for what, why in node["missing"].items():
            by_why[why].append(what)
        for why, whats in by_why.items():
            yield Finding(node["node"], None, "not measured", f"{', '.join(whats)} not measured: {why}", _next(why))


def _next(why: str) -> str:
    if why.startswith("busy"):
        return "wait until the other jobs have ended; ray status says what is in use"
    if "No module named" in why:
        return "install hoofprint there with its dependencies, in the environment that Ray runs in"
    if why.startswith("held up by"):
        return "see to the node that is named, and look again"
    if why.startswith("no answer"):
        return "see dmesg and nvidia-smi there: what hangs now would hang the training; leave that node out"
    if "its process died" in why:
        return "see dmesg there: the kernel ends what takes more memory than there is; leave that node out until then"
    if any(words in why for words in ("No space left", "Disk quota", "File too large")):
        return "free some space there, or give another folder with --runs"
    if any(words in why for words in ("Permission denied", "Read-only file system", "Operation not permitted")):
        return "let the user that Ray runs as on that node write there, or give another folder with --runs"
    return "put that right on the node, and look again"
