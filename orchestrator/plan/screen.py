"""How a plan looks on a terminal, from 80 columns on (rich)."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from energy.human import digits, human_count, human_flop, human_time
from model.memory import EACH
from orchestrator.plan.ranges import SAME

Plan = dict[str, Any]
_BAR = 24


def print_plan(plan: Plan, start_with: str, console: Console) -> None:
    """The whole screen; `start_with` is the command that would start the experiment."""
    _heading(plan, console)
    if any(row[0] for row in _quantities(plan)):
        console.print(_table(plan))
    if plan["budget"]:
        _budget(plan["budget"], console)
    for limit in plan.get("spec_budget") or ():  # of energy.budget, which would stop the run
        style = {True: "green", False: "red", None: "yellow"}[limit["fits"]]
        console.print(Text.assemble(("Spec's ", "bold"), (limit["words"], style)))
    if plan.get("spec_budget"):
        console.print()
    _memory(plan, console)
    if plan["failures"]:
        _failures(plan, console)
    if plan["loss"]:
        _loss(plan, console)
    _notes(plan, console)
    ending("it", start_with, console)


def _heading(plan: Plan, console: Console) -> None:
    tokens, params, flop = plan["tokens"], plan["params"], plan["flop"]
    workers = plan["workers"]
    where = (
        f"{workers:,} x {plan['accelerator']}"
        if plan["accelerator"]
        else f"{_many(workers, 'worker')}, "
        + ("on the CPU" if plan["device_type"] == "cpu" else "no accelerator named")
    )
    console.print(Text(f"Plan of {plan['name']}", style="bold"))
    ratio = tokens / params
    console.print(
        f"  {human_count(params)} parameters, {human_count(tokens)} tokens ({digits(ratio)} per parameter), "
        f"{plan['steps']:,} steps\n  {where}{', sharded by FSDP2' if workers > 1 else ''}\n"
        f"  {human_flop(plan['compute_flop'])} by the PaLM convention; "
        f"causal {human_flop(flop['causal']['flop'])}, 6ND {human_flop(flop['six_n']['flop'])}\n"
    )


def _quantities(plan: Plan) -> list[tuple[bool, str, str, float, str]]:
    """(known, label, key, size of the unit, source) of each row."""
    sources = plan["sources"]
    energy = next((plan[k] for k in ("energy_facility_kwh", "energy_it_kwh") if plan[k]), 0.0)
    energy_unit, energy_name = (1e3, "MWh") if energy >= 1e3 else (1.0, "kWh") if energy >= 0.1 else (1e-3, "Wh")
    carbon_unit, carbon_name = mass(plan["carbon_tco2eq"])
    embodied_unit, embodied_name = mass(plan["embodied_tco2eq"])
    days = plan["wall_days"] or 0.0
    time_unit, time_name = next(
        (unit, name) for unit, name in ((1.0, "days"), (1 / 24, "hours"), (1 / 1440, "minutes"), (1 / 86400, "seconds"))
        if days >= unit or name == "seconds"
    )  # fmt: skip
    per_gpu = plan["tokens_per_s_per_gpu"] is not None
    speed = ("tokens/s per GPU", "tokens_per_s_per_gpu") if per_gpu else ("tokens/s", "tokens_per_s")
    boundary = "" if plan["device_type"] == "cpu" else "IT "
    rows = [
        (*speed, 1.0, sources.get("tokens_per_s_per_gpu", "")),
        ("MFU, %", "mfu", 0.01, "tokens/s x FLOP (PaLM) / peak"),
        (f"time, {time_name}", "wall_days", time_unit, sources.get("wall_days", "tokens / tokens/s")),
        ("GPU-hours", "gpu_hours", 1.0, "time x GPUs"),
        (f"{boundary}energy, {energy_name}", "energy_it_kwh", energy_unit, sources.get("energy_it_kwh", "")),
        (f"facility, {energy_name}", "energy_facility_kwh", energy_unit, sources.get("energy_facility_kwh", "")),
        (f"carbon, {carbon_name} CO2eq", "carbon_tco2eq", carbon_unit, sources.get("carbon_tco2eq", "")),
        (f"embodied, {embodied_name}", "embodied_tco2eq", embodied_unit, sources.get("embodied_tco2eq", "")),
        ("cost", "cost", 1.0, sources.get("cost", "")),
    ]
    return [
        # On the CPU there are no GPU-hours.
        (plan[key] is not None and bool(plan[key] or key != "gpu_hours"), label, key, unit, source)
        for label, key, unit, source in rows
    ]


def mass(tonnes: float | None) -> tuple[float, str]:
    size = tonnes or 0.0
    return (1.0, "t") if size >= 0.1 else (1e-3, "kg") if size >= 1e-4 else (1e-6, "g")


def _table(plan: Plan) -> Padding:
    table = bare("", *("low", "likely", "high"), "from")
    for known, label, key, unit, source in _quantities(plan):
        if not known:
            continue
        low, likely, high = (side[key] / unit for side in (plan["low"], plan, plan["high"]))
        spread = high > low * (1 + SAME)
        outer = (_four(low), _four(high)) if spread else ("", "")
        table.add_row(label, outer[0], Text(_four(likely), style="bold"), outer[1], Text(source, style="dim"))
    failures = plan["failures"]
    if failures and failures["lost_share"]:
        low, likely, high = (digits(100 * failures["lost_share"][side]) for side in ("low", "likely", "high"))
        table.add_row(
            "lost on top, %", low, Text(likely, style="bold"), high, Text("interruptions, see below", style="dim")
        )
    return indented(table, below=1)


def _budget(budget: dict[str, Any], console: Console) -> None:
    share = budget["share"]
    if share is None:
        console.print(f"[bold]Budget[/] {budget['text']}: cannot be compared, {budget['key']} is not known\n")
        return
    style = "red" if share["likely"] > 1 else "yellow" if share["high"] > 1 else "green"
    drawn = bar(share["likely"], style)
    over = "over the budget" if share["likely"] > 1 else "of it"
    spread = f" ({100 * share['low']:.0f} to {100 * share['high']:.0f} %)" if share["high"] > share["low"] else ""
    says = f" {100 * share['likely']:.0f} % {over}{spread}"
    console.print(Text.assemble(("Budget ", "bold"), budget["text"], "  ", drawn, says))
    console.print()


def _memory(plan: Plan, console: Console) -> None:
    memory = plan["memory"]
    usable = memory["usable_gb"]  # without one there is nothing that a bar could be a part of
    most = usable or max(parts["total"] for parts in memory["choices"].values())
    scale, unit = (1.0, "GB") if most >= 1 else (1e3, "MB")
    per = "GPU" if plan["device_type"] == "cuda" else "worker"
    of = f", {memory['usable_gb']:g} of {memory['device_gb']:g} GB usable" if memory["usable_gb"] else ""
    batches = memory["micro_batches"]
    size = f"{memory['micro_batch_tokens']:,} tokens at a time" + (f", {batches} times a step" if batches > 1 else "")
    console.print(Text.assemble((f"Memory per {per}", "bold"), f"{of} ({size})"))
    table = bare("recompute", unit, " ", "", header=False)
    for name, parts in memory["choices"].items():
        fits, chosen = parts["fits"], name == memory["checkpointing"]
        style = "green" if fits else "cyan" if fits is None else "red"
        says = {True: "fits", False: "does not fit", None: ""}[fits] + (", planned" if chosen and fits else "")
        label = Text(f"checkpointing {name}", style="bold" if chosen else "")
        drawn = bar(parts["total"] / usable, style) if usable else ""
        table.add_row(label, f"{digits(parts['total'] * scale)} {unit}", drawn, says)
    console.print(indented(table))
    text = ", ".join(f"{name} {digits(size * scale)}" for name, size in memory["made_of_gb"].items() if size)
    text += "; gradients reduced with each micro-batch" if memory["gradient_reduction"] == EACH and batches > 1 else ""
    console.print(indented(Text(text, style="dim")))
    if memory["fits"] is False:
        console.print(indented(Text(memory["how_it_fits"], style="red")))
    console.print()


def _failures(plan: Plan, console: Console) -> None:
    failures = plan["failures"]
    expected = {side: digits(value) for side, value in failures["expected"].items()}
    console.print(Text("Interruptions and checkpoints", style="bold"))
    if failures["lost_share"] is None:
        console.print("  none expected: a failure rate of 0 was given\n")
        return
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_row("interruptions", f"{expected['likely']} ({expected['low']} to {expected['high']}), "
                  f"one in {human_time(failures['mtbf_hours'] * 3600)}")  # fmt: skip
    table.add_row("a checkpoint", f"{digits(failures['checkpoint_gb'])} GB, {human_time(failures['checkpoint_s'])}")
    table.add_row("best interval", f"{human_time(failures['best_interval_s'])} (Young/Daly): "
                  f"{digits(100 * failures['lost_share']['likely'])} % lost")  # fmt: skip
    table.add_row("the spec's", f"{human_time(failures['spec_interval_s'])}: "
                  f"{digits(100 * failures['lost_share_at_spec_interval'])} % lost")  # fmt: skip
    console.print(indented(table, below=1))


def _loss(plan: Plan, console: Console) -> None:
    loss = plan["loss"]
    nats = loss["nats_per_token"]
    others = ", ".join(f"{name} {value:.3f}" for name, value in nats.items() if name != loss["fit"])
    console.print(
        Text.assemble(
            ("Cheaper ways to the same loss", "bold"),
            f": {nats[loss['fit']]:.3f} nats/token ({loss['fit']} fit; {others})",
        )  # fmt: skip
    )
    energy = "energy_facility_kwh" if plan["energy_facility_kwh"] is not None else "energy_it_kwh"
    has_carbon = plan["carbon_tco2eq"] is not None
    unit, name = (1e3, "MWh") if (plan[energy] or 0) >= 1e3 else (1.0, "kWh")
    table = bare("", "parameters", "tokens", "compute", "days", name, *(["t CO2eq"] if has_carbon else []))
    for way in loss["same_loss"]:
        cells = [human_count(way["params"]), human_count(way["tokens"]), f"{100 * way['relative_compute']:.0f} %",
                 or_none(way["wall_days"]), or_none(way[energy], unit)]  # fmt: skip
        if has_carbon:
            cells.append(or_none(way["carbon_tco2eq"]))
        table.add_row(way["label"], *cells, style="bold" if way["label"] == "this plan" else "")
    console.print(indented(table))
    least = loss["least_relative_compute"]
    verdict = f"The least takes {100 * least:.1f} % of this plan's compute. " if least > 0.97 else ""
    console.print(
        Padding(Text(f"{verdict}{loss['caveat'][0].upper()}{loss['caveat'][1:]}.", style="dim"), (0, 0, 1, 2))
    )


def _notes(plan: Plan, console: Console) -> None:
    notes = [("not known", text) for text in plan["missing"]] + [("note", text) for text in plan["warnings"]]
    for kind, text in notes:
        console.print(Padding(Text.assemble((f"{kind}: ", "yellow"), text), (0, 0, 0, 2)))
    console.print(Text("  Every assumption with its source: --json\n", style="dim"))


def ending(what: str, start_with: str, console: Console) -> None:
    console.print(f"Nothing was started. Start {what} with:")
    console.print(Text(f"  {start_with}", style="bold"), soft_wrap=True)  # whole, so that it can be copied


def bare(*columns: str, header: bool = True) -> Table:
    """A table without lines: text to the left, numbers (all but the first, bars and sources) to the right."""
    table = Table(box=None, show_header=header, header_style="dim", padding=(0, 2, 0, 0), pad_edge=False)
    for index, column in enumerate(columns):
        left = index == 0 or column in ("from", " ", "")
        table.add_column(column, justify="left" if left else "right", no_wrap=column != "from")
    return table


def indented(table: Table | Text, below: int = 0) -> Padding:
    return Padding(table, (0, 0, below, 2))


def bar(share: float, style: str) -> Text:
    filled = min(_BAR, max(0, round(share * _BAR)))
    return Text.assemble(("█" * filled, style), ("░" * (_BAR - filled), "dim"))


def _four(value: float) -> str:
    """At least three, at most four significant digits, without a power of ten."""
    return digits(float(f"{value:.4g}"))


def or_none(value: float | None, unit: float = 1.0) -> str:
    return "-" if value is None else _four(value / unit)


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
