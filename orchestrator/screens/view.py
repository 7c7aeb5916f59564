"""The live view of a run as text: pure functions of what is known and of the width of the terminal.

No line is ever longer than the terminal, and what changes keeps its place: that is what makes the view calm.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from rich.text import Text

from energy.human import (
    digits,
    human_carbon,
    human_count,
    human_energy,
    human_flop,
    human_joule,
    human_time,
    percent,
)
from energy.units import JOULE_PER_KWH
from orchestrator.budget.watch import forecast_words

SPARKS = "▁▂▃▄▅▆▇█"
INDENT = "  "
LABEL = 9
MOST_SPARKS = 60
DOT = ("  ·  ", "dim")
Budget = Mapping[str, Any]  # orchestrator.budget.watch.State.document


class Progress(Protocol):
    """What there is to show: of the run of this process, or of another one by its live state."""

    @property
    def started_unix_s(self) -> float: ...
    @property
    def step(self) -> int: ...
    @property
    def total_steps(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def total_tokens(self) -> int: ...
    @property
    def loss(self) -> float | None: ...
    @property
    def validation(self) -> tuple[int, float] | None: ...
    @property
    def checkpoint(self) -> int | None: ...
    @property
    def tokens_per_s(self) -> float | None: ...
    @property
    def mfu(self) -> float | None: ...
    @property
    def peak_flops(self) -> float | None: ...
    @property
    def power_w(self) -> float | None: ...
    @property
    def energy_j(self) -> float | None: ...
    @property
    def whole_energy_j(self) -> float | None: ...
    @property
    def joule_per_token(self) -> float | None: ...
    @property
    def grid_g_per_kwh(self) -> float | None: ...
    @property
    def powers(self) -> list[float]: ...
    @property
    def loss_points(self) -> list[float]: ...
    @property
    def events(self) -> Iterable[tuple[float, str]]: ...
    def carbon_t(self, energy_j: float) -> float | None: ...
    def ends_unix_s(self, now: float) -> float | None: ...


def metering(meters: Sequence[dict[str, Any]], gpus: int) -> str:
    """What is measured, in words: "energy counters on 8/8 GPUs, RAPL on 1/1 hosts"; what is modelled follows.

    gpus: how many GPUs train; 0 on the CPU.
    """
    sensors = [sensor for meter in meters for sensor in meter["sensors"]]
    hosts = len(meters)

    def on(kind: str, method: str) -> int:
        return sum(sensor["kind"] == kind and sensor["method"] == method for sensor in sensors)

    def hosts_with(kind: str, method: str) -> int:
        return sum(any(s["kind"] == kind and s["method"] == method for s in meter["sensors"]) for meter in meters)

    all_gpus = max(gpus, sum(sensor["kind"] == "gpu" for sensor in sensors))
    measured = []
    if on("gpu", "counter"):
        measured.append(f"energy counters on {on('gpu', 'counter')}/{all_gpus} GPUs")
    if on("gpu", "integrated"):
        measured.append(f"power integrated on {on('gpu', 'integrated')}/{all_gpus} GPUs")
    if gpus and not on("gpu", "counter") + on("gpu", "integrated"):
        measured.append(f"none of the {gpus} GPUs")
    if hosts_with("cpu", "counter"):
        memory = hosts_with("dram", "counter")
        of_memory = "" if memory == hosts_with("cpu", "counter") else f" (memory: {memory}/{hosts})"
        measured.append(f"RAPL on {hosts_with('cpu', 'counter')}/{hosts} hosts{of_memory}")
    modelled = [
        f"{word} on {hosts_with(kind, 'modelled')}/{hosts} hosts"
        for kind, word in (("cpu", "CPU"), ("dram", "memory"))
        if hosts_with(kind, "modelled")
    ]
    if len(modelled) == 2 and hosts_with("cpu", "modelled") == hosts_with("dram", "modelled"):
        modelled = [f"CPU and memory on {hosts_with('cpu', 'modelled')}/{hosts} hosts"]
    parts = [f"measured: {', '.join(measured) or 'nothing'}"]
    if modelled:
        parts.append(f"modelled: {', '.join(modelled)}")
    return "; ".join(parts)


def spark(values: Sequence[float], width: int, low: float | None = None) -> str:
    """The values as bars of eighths, averaged to at most `width` of them; from `low`, or from the least of them."""
    if not values:
        return ""
    count = min(width, len(values))
    edges = [round(i * len(values) / count) for i in range(count + 1)]
    shown = [sum(values[a:b]) / (b - a) for a, b in zip(edges, edges[1:], strict=False)]
    least = min(shown) if low is None else low
    span = max(max(shown) - least, 1e-12)
    return "".join(SPARKS[max(0, min(7, round((value - least) / span * 7)))] for value in shown)


def bar(share: float, width: int, style: str = "cyan") -> Text:
    full = max(0, min(width, round(share * width)))
    return Text.assemble(("━" * full, style), ("─" * (width - full), "dim"))


def clock(unix_s: float | None, now: float) -> str:
    """hh:mm today, with the date on another day, -- when it is not known."""
    if unix_s is None:
        return "--:--"
    then, today = time.localtime(unix_s), time.localtime(now)
    same_day = (then.tm_year, then.tm_yday) == (today.tm_year, today.tm_yday)
    return time.strftime("%H:%M" if same_day else "%d %b %H:%M", then)


def starting(progress: Progress, width: int, now: float, budgets: Sequence[Budget] = ()) -> list[Text]:
    waited = human_time(max(0.0, now - progress.started_unix_s) // 1)
    lines = [_line("starting", [f"the workers build the model and open the data ({waited})"])]
    lines += [*_power(progress, width), *_budgets(budgets, progress.total_steps, width)]
    return [cut(line, width) for line in lines]


def training(progress: Progress, width: int, now: float, budgets: Sequence[Budget] = ()) -> list[Text]:
    """The view as lines no wider than `width`."""
    ends = progress.ends_unix_s(now)
    loss = "--" if progress.loss is None else f"{progress.loss:.3f}"
    facts = [f"{progress.step:,} of {progress.total_steps:,}", f"loss [{loss}]"]
    if progress.validation is not None:
        facts.append(f"validation [{progress.validation[1]:.3f}]")
    rate = progress.tokens_per_s
    speed = [f"[{rate:,.0f}] tokens/s" if rate is not None else "-- tokens/s"]
    if progress.mfu is not None:
        speed.append(f"MFU [{percent(progress.mfu)}] (PaLM count, peak {human_flop(progress.peak_flops)}/s)")
    lines = [_line("step", facts), _line("speed", speed), *_power(progress, width)]
    losses = progress.loss_points
    if len(losses) > 1:
        lines.append(_line("loss", [spark(losses, _sparks(width)), f"{losses[0]:.3f} to {losses[-1]:.3f}"]))
    elapsed = max(0.0, now - progress.started_unix_s)
    whole = ends - progress.started_unix_s if ends is not None else None
    lines += [
        _bar_line(
            "tokens",
            progress.tokens / progress.total_tokens,
            f"{human_count(progress.tokens)} of {human_count(progress.total_tokens)}",
            clock(ends, now),
            width,
        ),
        _bar_line(
            "time",
            min(1.0, elapsed / whole) if whole else 0.0,
            f"{human_time(elapsed)} of {human_time(whole) if whole else '--'}",
            clock(ends, now),
            width,
        ),
    ]
    lines += _expected(progress, clock(ends, now), width)
    lines += _budgets(budgets, progress.total_steps, width)
    lines += [_line(clock(when, now), [text], label_style="dim") for when, text in progress.events]
    return [cut(line, width) for line in lines]


def _expected(progress: Progress, ends: str, width: int) -> list[Text]:
    """Energy and carbon so far of what the whole run will take at the present pace."""
    spent_j, whole_j = progress.energy_j, progress.whole_energy_j
    if spent_j is None or not whole_j:
        return []
    share = spent_j / whole_j
    spent, whole = human_energy(spent_j / JOULE_PER_KWH), human_energy(whole_j / JOULE_PER_KWH)
    lines = [_bar_line("energy", share, f"{spent} of {whole}", ends, width)]
    spent_t, whole_t = progress.carbon_t(spent_j), progress.carbon_t(whole_j)
    if spent_t is not None and whole_t is not None:
        of = human_carbon(whole_t).removesuffix(" CO₂eq")
        lines.append(_bar_line("carbon", share, f"{human_carbon(spent_t).removesuffix(' CO₂eq')} of {of}", ends, width))
    return lines


def _budgets(budgets: Sequence[Budget], total_steps: int, width: int) -> list[Text]:
    """A bar for each limit; where the run will pass it, what that means, in a second line."""
    lines = []
    for budget in budgets:
        words, share = budget["words"], budget["share"]
        style = {"ok": "cyan", "warned": "yellow"}.get(budget["state"], "red")
        amount = f"{words['spent'].removesuffix(' CO₂eq')} of {words['limit'].removesuffix(' CO₂eq')}"
        right = f" {100 * share:3.0f} %  {amount:<21} {words['of']}"
        room = max(8, min(60, width - len(INDENT) - LABEL - max(len(right), 46)))
        label = (f"{'budget':<{LABEL}}", "cyan")
        lines.append(Text.assemble(INDENT, label, bar(share, room, style), right))
        if (text := forecast_words(budget, total_steps)) is not None:
            lines.append(Text.assemble(INDENT, " " * LABEL, (text, style)))
    return lines


def preparing(text: str, done: float, total: float | None, width: int) -> list[Text]:
    size = f"{done / 1e6:,.1f}" + (f" of {total / 1e6:,.1f} MB" if total else " MB")
    line = Text.assemble(INDENT, f"{text}  ")
    if total:
        room = max(10, min(40, width - len(line) - len(size) - 10))
        line.append_text(bar(done / total, room))
        line.append(f" {100 * done / total:3.0f} %  ")
    line.append(size, "dim")
    return [cut(line, width)]


def key_values(progress: Progress, now: float, budgets: Sequence[Budget] = ()) -> str:
    """The same for a file: one line of key=value, no spaces in the values, - for what is not known."""
    ends = progress.ends_unix_s(now)
    validation = progress.validation
    facts: dict[str, Any] = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(now)),
        "step": f"{progress.step}/{progress.total_steps}" if progress.step else None,
        "loss": None if progress.loss is None else f"{progress.loss:.4f}",
        "validation": None if validation is None else f"{validation[1]:.4f}",
        "tokens": progress.tokens or None,
        "tokens_per_s": None if progress.tokens_per_s is None else f"{progress.tokens_per_s:.0f}",
        "mfu": None if progress.mfu is None else f"{progress.mfu:.4f}",
        "power_w": None if progress.power_w is None else f"{progress.power_w:.1f}",
        "energy_j": None if progress.energy_j is None else f"{progress.energy_j:.1f}",
        "joule_per_token": None if progress.joule_per_token is None else f"{progress.joule_per_token:.3g}",
        "checkpoint_step": progress.checkpoint,
        "ends": None if ends is None else time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(ends)),
    }
    for budget in budgets:
        facts[f"budget_{budget['key']}"] = f"{budget['spent']:.6g}/{budget['limit']:.6g}"
        facts[f"budget_{budget['key']}_stops_at_step"] = budget["stops_at_step"]
    return " ".join(f"{key}={'-' if value is None else value}" for key, value in facts.items())


def _sparks(width: int) -> int:
    return max(10, min(MOST_SPARKS, width - 62))  # what else the widest line holds


def _power(progress: Progress, width: int) -> list[Text]:
    if progress.power_w is None:
        return []
    shown = progress.powers[-_sparks(width) :]
    facts = [f"[{digits(progress.power_w)} W]", spark(shown, len(shown), low=0.0)]
    if progress.joule_per_token is not None:
        facts.append(f"[{human_joule(progress.joule_per_token)}]/token")
    if progress.grid_g_per_kwh is not None:
        facts.append(f"grid {digits(progress.grid_g_per_kwh)} g/kWh")
    return [_line("power", facts)]


def _line(label: str, facts: Sequence[str], label_style: str = "cyan") -> Text:
    """A label and facts between dots; [what stands in brackets] is bold."""
    line = Text.assemble(INDENT, (f"{label:<{LABEL}}", label_style))
    for number, fact in enumerate(facts):
        if number:
            line.append(*DOT)
        for index, part in enumerate(fact.replace("]", "[").split("[")):
            line.append(part, "bold" if index % 2 else "")
    return line


def _bar_line(label: str, share: float, amount: str, ends: str, width: int) -> Text:
    right = f" {100 * share:3.0f} %  {amount:<21} ends at {ends}"
    room = max(8, min(60, width - len(INDENT) - LABEL - max(len(right), 46)))
    return Text.assemble(INDENT, (f"{label:<{LABEL}}", "cyan"), bar(share, room), right)


def cut(line: Text, width: int) -> Text:
    """The line, no wider than `width`."""
    line.no_wrap = True
    line.truncate(width, overflow="ellipsis")
    return line
