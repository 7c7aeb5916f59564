"""The live view of a run as text: pure functions of what is known and of the width of the terminal.

No line is ever longer than the terminal, and what changes keeps its place: that is what makes the view calm.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
Document = Mapping[str, Any]  # orchestrator.live.state.document
Budget = Mapping[str, Any]  # orchestrator.budget.watch.State.document


@dataclass(frozen=True)
class Shown:
    """A live state as it is drawn, of the run of this process or of another one. What is not known stays None; a run
    without a step stands at step 0."""

    document: Document

    def __getattr__(self, name: str) -> Any:
        return self.document[name]

    @property
    def step(self) -> int:
        return self.document["step"] or 0

    @property
    def tokens(self) -> int:
        return self.document["tokens"] or 0

    @property
    def validation(self) -> tuple[int, float] | None:
        step, loss = self.document["validation_step"], self.document["validation_loss"]
        return None if step is None or loss is None else (step, loss)

    @property
    def powers(self) -> list[float]:
        return self.document["history"]["power_w"]

    @property
    def losses(self) -> list[float]:
        return self.document["history"]["loss"]

    @property
    def ends_unix_s(self) -> float | None:
        return self.document["forecast"]["ends_unix_s"]


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


def starting(shown: Shown, width: int, now: float) -> list[Text]:
    waited = human_time(max(0.0, now - shown.started_unix_s) // 1)
    lines = [_line("starting", [f"the workers build the model and open the data ({waited})"])]
    lines += [*_power(shown, width), *_budgets(shown.budget, shown.total_steps, width)]
    return [cut(line, width) for line in lines]


def training(shown: Shown, width: int, now: float) -> list[Text]:
    """The view as lines no wider than `width`."""
    ends = shown.ends_unix_s
    loss = "--" if shown.loss is None else f"{shown.loss:.3f}"
    facts = [f"{shown.step:,} of {shown.total_steps:,}", f"loss [{loss}]"]
    if shown.validation is not None:
        facts.append(f"validation [{shown.validation[1]:.3f}]")
    rate = shown.tokens_per_s
    speed = [f"[{rate:,.0f}] tokens/s" if rate is not None else "-- tokens/s"]
    if shown.mfu is not None:
        speed.append(f"MFU [{percent(shown.mfu)}] (PaLM count, peak {human_flop(shown.peak_flops)}/s)")
    lines = [_line("step", facts), _line("speed", speed), *_power(shown, width)]
    losses = shown.losses
    if len(losses) > 1:
        lines.append(_line("loss", [spark(losses, _sparks(width)), f"{losses[0]:.3f} to {losses[-1]:.3f}"]))
    elapsed = max(0.0, now - shown.started_unix_s)
    whole = ends - shown.started_unix_s if ends is not None else None
    lines += [
        _bar_line(
            "tokens",
            shown.tokens / shown.total_tokens,
            f"{human_count(shown.tokens)} of {human_count(shown.total_tokens)}",
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
    lines += _expected(shown, clock(ends, now), width)
    lines += _budgets(shown.budget, shown.total_steps, width)
    lines += [_line(clock(event["time_unix_s"], now), [event["text"]], label_style="dim") for event in shown.events]
    return [cut(line, width) for line in lines]


def _expected(shown: Shown, ends: str, width: int) -> list[Text]:
    """Energy and carbon so far of what the whole run will take at the present pace."""
    lines = []
    for label, key, said in (("energy", "energy_it_kwh", human_energy), ("carbon", "carbon_tco2eq", human_carbon)):
        spent, whole = shown.document[key], shown.forecast[key]
        if spent is not None and whole:
            amount = f"{said(spent)} of {said(whole)}".replace(" CO₂eq", "")
            lines.append(_bar_line(label, spent / whole, amount, ends, width))
    return lines


def _budgets(budgets: Sequence[Budget], total_steps: int, width: int) -> list[Text]:
    """A bar for each limit; where the run will pass it, what that means, in a second line."""
    lines = []
    for budget in budgets:
        words, share = budget["words"], budget["share"]
        style = {"ok": "cyan", "warned": "yellow", "unknown": "yellow"}.get(budget["state"], "red")
        amount = f"{words['spent'].removesuffix(' CO₂eq')} of {words['limit'].removesuffix(' CO₂eq')}"
        right = f" {' --' if share is None else f'{100 * share:3.0f}'} %  {amount:<21} {words['of']}"
        room = max(8, min(60, width - len(INDENT) - LABEL - max(len(right), 46)))
        label = (f"{'budget':<{LABEL}}", "cyan")
        lines.append(Text.assemble(INDENT, label, bar(share or 0.0, room, style), right))
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


def key_values(shown: Shown, now: float) -> str:
    """The same for a file: one line of key=value, no spaces in the values, - for what is not known."""
    ends, energy_kwh = shown.ends_unix_s, shown.energy_it_kwh
    validation = shown.validation
    facts: dict[str, Any] = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(now)),
        "step": f"{shown.step}/{shown.total_steps}" if shown.step else None,
        "loss": None if shown.loss is None else f"{shown.loss:.4f}",
        "validation": None if validation is None else f"{validation[1]:.4f}",
        "tokens": shown.tokens or None,
        "tokens_per_s": None if shown.tokens_per_s is None else f"{shown.tokens_per_s:.0f}",
        "mfu": None if shown.mfu is None else f"{shown.mfu:.4f}",
        "power_w": None if shown.power_w is None else f"{shown.power_w:.1f}",
        "energy_j": None if energy_kwh is None else f"{energy_kwh * JOULE_PER_KWH:.1f}",
        "joule_per_token": None if shown.joule_per_token is None else f"{shown.joule_per_token:.3g}",
        "checkpoint_step": shown.checkpoint_step,
        "ends": None if ends is None else time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(ends)),
    }
    for budget in shown.budget:
        spent = "-" if budget["spent"] is None else f"{budget['spent']:.6g}"
        facts[f"budget_{budget['key']}"] = f"{spent}/{budget['limit']:.6g}"
        facts[f"budget_{budget['key']}_stops_at_step"] = budget["stops_at_step"]
    return " ".join(f"{key}={'-' if value is None else value}" for key, value in facts.items())


def _sparks(width: int) -> int:
    return max(10, min(MOST_SPARKS, width - 62))  # what else the widest line holds


def _power(shown: Shown, width: int) -> list[Text]:
    if shown.power_w is None:
        return []
    powers = shown.powers[-_sparks(width) :]
    facts = [f"[{digits(shown.power_w)} W]", spark(powers, len(powers), low=0.0)]
    if shown.joule_per_token is not None:
        facts.append(f"[{human_joule(shown.joule_per_token)}]/token")
    if shown.intensity_g_per_kwh is not None:
        facts.append(f"grid {digits(shown.intensity_g_per_kwh)} g/kWh")
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
