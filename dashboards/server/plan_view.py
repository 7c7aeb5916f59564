"""A plan (`hoofprint plan --json`) in words and cells, for its page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dashboards.server.parts import UNKNOWN
from energy import human

Plan = Mapping[str, Any]
_KWH: human.Scales = ((1e3, 1e3, "MWh"), (0.1, 1.0, "kWh"), (0.0, 1e-3, "Wh"))
_TONNE: human.Scales = ((0.1, 1.0, "t"), (1e-4, 1e-3, "kg"), (0.0, 1e-6, "g"))
_DAY: human.Scales = (
    (1.0, 1.0, "days"),
    (1 / 24, 1 / 24, "hours"),
    (1 / 1440, 1 / 1440, "minutes"),
    (0.0, 1 / 86400, "seconds"),
)
_ONE: human.Scales = ((0.0, 1.0, ""),)
_PERCENT: human.Scales = ((0.0, 0.01, "%"),)
SAME = 1.0005  # low and high that lie nearer to each other are one


def view(plan: Plan) -> dict[str, Any]:
    """Everything that the template shows."""
    workers = plan["workers"]
    where = f"{workers:,} × {plan['accelerator']}" if plan["accelerator"] else _workers(workers, plan["device_type"])
    return {
        "name": plan["name"],
        "summary": [
            f"{human.human_count(plan['params'])} parameters",
            f"{human.human_count(plan['tokens'])} tokens",
            f"{human.digits(plan['tokens'] / plan['params'])} tokens per parameter",
            f"{plan['steps']:,} steps",
            where,
            f"{human.human_flop(plan['compute_flop'])} (PaLM convention)",
        ],
        "rows": [*_rows(plan)],
        "budgets": _budgets(plan),
        "memory": _memory(plan),
        "failures": _failures(plan["failures"]),
        "loss": _loss(plan),
        "missing": plan["missing"],
        "warnings": plan["warnings"],
        "assumptions": [
            {"key": each["key"], "value": _plain(each["value"]), "unit": "" if each["unit"] == "1" else each["unit"],
             "source": each["source"]}
            for each in plan["assumptions"]
        ],
        "start_with": plan["start_with"],
    }  # fmt: skip


def _workers(count: int, device_type: str | None) -> str:
    plural = "" if count == 1 else "s"
    return f"{count:,} worker{plural} " + ("on the CPU" if device_type == "cpu" else "on no accelerator named")


def _rows(plan: Plan) -> Iterator[dict[str, Any]]:
    """{label, low, likely, high, source, and where they lie in per cent of the high} of each quantity that is known."""
    sources = plan["sources"]
    speed = "tokens_per_s_per_gpu" if plan["tokens_per_s_per_gpu"] is not None else "tokens_per_s"
    quantities = [
        ("Tokens/s per GPU" if speed.endswith("gpu") else "Tokens/s", speed, _ONE,
         sources.get("tokens_per_s_per_gpu", "")),
        ("MFU", "mfu", _PERCENT, "tokens/s × FLOP (PaLM) / peak"),
        ("Time", "wall_days", _DAY, sources.get("wall_days", "tokens / tokens/s")),
        ("GPU-hours", "gpu_hours", _ONE, "time × GPUs"),
        ("Energy" if plan["device_type"] == "cpu" else "IT energy", "energy_it_kwh", _KWH,
         sources.get("energy_it_kwh", "")),
        ("Facility energy", "energy_facility_kwh", _KWH, sources.get("energy_facility_kwh", "")),
        ("Carbon, CO₂eq", "carbon_tco2eq", _TONNE, sources.get("carbon_tco2eq", "")),
        ("Embodied, CO₂eq", "embodied_tco2eq", _TONNE, sources.get("embodied_tco2eq", "")),
        ("Cost", "cost", _ONE, sources.get("cost", "")),
    ]  # fmt: skip
    for label, key, scales, source in quantities:
        if plan[key] is not None and (plan[key] or key != "gpu_hours"):  # on the CPU there are none of these
            yield _row(label, scales, source, *(side[key] for side in (plan["low"], plan, plan["high"])))
    lost = (plan["failures"] or {}).get("lost_share")
    if lost:
        sides = (lost[side] for side in ("low", "likely", "high"))
        yield _row("Lost on top", _PERCENT, "interruptions, see below", *sides)


def _row(label: str, scales: human.Scales, source: str, low: float, likely: float, high: float) -> dict[str, Any]:
    size, unit = human.scale_of(likely, scales)
    spread = high > low * SAME
    most = high or 1.0
    return {
        "label": f"{label} ({unit})" if unit else label,
        "low": human.digits(low / size) if spread else "",
        "likely": human.digits(likely / size),
        "high": human.digits(high / size) if spread else "",
        "source": source,
        "from": round(100 * low / most, 1),
        "width": round(100 * (high - low) / most, 1),
        "at": round(100 * likely / most, 1),
    }


def _budgets(plan: Plan) -> list[dict[str, Any]]:
    """{text, says, width, most, state}: the limit that was asked about, and those of the spec."""
    found = []
    asked = plan["budget"]
    if asked:
        share = asked["share"]
        if share is None:
            found.append(_bar(asked["text"], f"cannot be compared: {asked['key']} is not known", None, None))
        else:
            over = ": over the budget" if share["likely"] > 1 else ""
            spread = (
                f" ({100 * share['low']:.0f} to {100 * share['high']:.0f} %)" if share["high"] > share["low"] else ""
            )
            says = f"{100 * share['likely']:.0f} % of it{spread}{over}"
            found.append(_bar(f"Budget of {asked['text']}", says, share["likely"], share["high"]))
    for limit in plan["spec_budget"]:
        shares = [None if limit[side] is None else limit[side] / limit["limit"] for side in ("likely", "high")]
        found.append(_bar("The spec's own", limit["words"], *shares))
    return found


def _bar(text: str, says: str, likely: float | None, high: float | None) -> dict[str, Any]:
    state = "unknown" if likely is None or high is None else "over" if likely > 1 else "close" if high > 1 else "ok"
    scale = max(1.0, high or 0.0)  # the bar ends at the limit, or at the most that it may come to
    return {
        "text": text,
        "says": says,
        "state": state,
        "width": round(100 * (likely or 0.0) / scale, 1),
        "most": round(100 * (high or 0.0) / scale, 1),
        "limit": round(100 / scale, 1),
    }


def _memory(plan: Plan) -> dict[str, Any]:
    memory = plan["memory"]
    usable = memory["usable_gb"]  # without one there is nothing that a bar could be a part of
    most = usable or max(parts["total"] for parts in memory["choices"].values())
    scale, unit = (1.0, "GB") if most >= 1 else (1e3, "MB")
    largest = max(most, *(parts["total"] for parts in memory["choices"].values()))
    choices = []
    for name, parts in memory["choices"].items():
        says = {True: "fits", False: "does not fit", None: ""}[parts["fits"]]
        planned = name == memory["checkpointing"]
        choices.append(
            {
                "name": name,
                "planned": planned,
                "total": f"{human.digits(parts['total'] * scale)} {unit}",
                "says": ", ".join(filter(None, (says, "planned" if planned else ""))),
                "state": {True: "ok", False: "over", None: "unknown"}[parts["fits"]],
                "width": round(100 * parts["total"] / largest, 1) if usable else None,
            }
        )
    hint = f"It {memory['how_it_fits']}." if "how_it_fits" in memory else ""
    often = f", {memory['micro_batches']} times a step" if memory["micro_batches"] > 1 else ""
    return {
        "per": "GPU" if plan["device_type"] == "cuda" else "worker",
        "of": f"{usable:g} of {memory['device_gb']:g} GB usable" if usable else "",
        "batch": f"{memory['micro_batch_tokens']:,} tokens at a time{often}",
        "choices": choices,
        "limit": round(100 * usable / largest, 1) if usable else None,
        "made_of": [
            f"{name} {human.digits(size * scale)} {unit}" for name, size in memory["made_of_gb"].items() if size
        ],
        "hint": hint,
    }


def _failures(failures: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if not failures:
        return []
    if failures["lost_share"] is None:
        return [("Interruptions", "none expected: a failure rate of 0 was given")]
    expected = {side: human.digits(value) for side, value in failures["expected"].items()}
    often = human.human_time(failures["mtbf_hours"] * 3600)
    lost, at_spec = failures["lost_share"]["likely"], failures["lost_share_at_spec_interval"]
    return [
        ("Interruptions", f"{expected['likely']} ({expected['low']} to {expected['high']}), one in {often}"),
        ("A checkpoint", f"{human.digits(failures['checkpoint_gb'])} GB, {human.human_time(failures['checkpoint_s'])}"),
        ("Best interval", f"{human.human_time(failures['best_interval_s'])} (Young/Daly): {human.percent(lost)} lost"),
        ("The spec's", f"{human.human_time(failures['spec_interval_s'])}: {human.percent(at_spec)} lost"),
    ]


def _loss(plan: Plan) -> dict[str, Any] | None:
    loss = plan["loss"]
    if not loss:
        return None
    nats = loss["nats_per_token"]
    key = "energy_facility_kwh" if plan["energy_facility_kwh"] is not None else "energy_it_kwh"
    others = ", ".join(f"{name} {value:.3f}" for name, value in nats.items() if name != loss["fit"])
    ways = [
        {"label": way["label"], "params": human.human_count(way["params"]), "tokens": human.human_count(way["tokens"]),
         "compute": f"{100 * way['relative_compute']:.0f} %",
         "time": UNKNOWN if way["wall_days"] is None else human.human_time(way["wall_days"] * 86400),
         "energy": UNKNOWN if way[key] is None else human.human_energy(way[key]),
         "carbon": UNKNOWN if way["carbon_tco2eq"] is None else human.human_carbon(way["carbon_tco2eq"])}
        for way in loss["same_loss"]
    ]  # fmt: skip
    caveat = str(loss["caveat"])
    said = f"{nats[loss['fit']]:.3f} nats per token by the {loss['fit']} fit" + (f" ({others})" if others else "")
    return {"said": said, "ways": ways, "caveat": f"{caveat[:1].upper()}{caveat[1:]}."}


def _plain(value: Any) -> str:
    if value is None:
        return "not known"
    return f"{value:.6g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)
