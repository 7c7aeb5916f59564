"""The plan of an experiment: its predicted FLOP, memory, time, energy, carbon and cost, before anything starts.

Read are the spec, the tokenizer's and the grid series' files that it names, the factor tables, earlier run folders, and
this machine's name, by which the runs of a machine without a named accelerator are found. Each quantity has a low, a
likely and a high value of its own (the low of tokens/s belongs to the high of the hours); what cannot be known is None
and is named in `missing`. Import nothing heavy here: `hoofprint plan` answers without torch and ray.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from energy.accounting.compute import CONVENTIONS, PALM, flop_per_token, recomputed_per_token
from energy.boundaries import planned_quantities
from energy.factors import Accelerator, accelerator, peak_flops
from model.config import LlamaConfig
from orchestrator.driver.accounting import model_figures
from orchestrator.plan.choices import fewest_workers, how_it_fits, step_memory
from orchestrator.plan.costs import budget_plan, embodied_tco2eq, energy_of, price_of_gpu_hour
from orchestrator.plan.earlier_runs import Evidence, find_evidence, throughput_from
from orchestrator.plan.failures import Reliability, failure_plan
from orchestrator.plan.memory import RESERVE, RESERVE_SOURCE, state_gb
from orchestrator.plan.planned_model import planned_config
from orchestrator.plan.ranges import Basis, Range, positive, product
from orchestrator.plan.scaling import loss_plan
from orchestrator.plan.throughput import ASK, ASK_ON_CPU, Throughput, anchors_for, describe_kind, from_anchors, stated
from orchestrator.spec.experiment import Experiment

SCHEMA = "hoofprint/plan/1"
# The contract's keys, and the quantities beside them that have an interval too.
CONTRACT = (
    "params", "tokens", "compute_flop", "flop_convention", "gpu_hours", "wall_days", "tokens_per_s_per_gpu", "mfu",
    "memory_gb_per_gpu", "fits", "energy_it_kwh", "energy_facility_kwh", "carbon_tco2eq",
)  # fmt: skip
BESIDE = ("tokens_per_s", "device_hours", "device_power_w", "energy_rated_it_kwh", "embodied_tco2eq", "cost")


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What the command line adds to the spec.

    throughput: `auto`, `runs`, `published`, or the name of a system in `throughput_anchors.csv`.
    strict: refuse (ValueError) an accelerator's plan without a throughput; otherwise it is listed as missing.
    vocab_size: the tokenizer's, where it is known; otherwise its file is read, if reads_tokenizer.
    """

    throughput: str = "auto"
    mfu: float | None = None
    tokens_per_s_per_gpu: float | None = None
    gpu_hour_price: float | None = None
    budget: str | None = None
    reliability: Reliability = field(default_factory=Reliability)
    strict: bool = True
    vocab_size: int | None = None
    reads_tokenizer: bool = True

    def __post_init__(self) -> None:
        positive("--mfu", self.mfu, most=1.0)
        positive("--tokens-per-s-per-gpu", self.tokens_per_s_per_gpu)
        positive("--gpu-hour-price", self.gpu_hour_price, zero=True)


def make_plan(
    experiment: Experiment, runs_dir: Path | None = None, options: PlanOptions | None = None
) -> dict[str, Any]:
    """The plan as a JSON document (keys: `plan --json` of the contract, more beside them); reads, starts nothing.

    ValueError for an unknown accelerator, an impossible option, or, when `options.strict`, a plan for an accelerator
    that nothing gives a throughput for.
    """
    options = options or PlanOptions()
    basis = Basis()
    workers, tokens = experiment.cluster.workers, experiment.training.tokens
    config = planned_config(experiment, basis.warnings, options.vocab_size, reads=options.reads_tokenizer)
    device, on_cpu = _device(experiment), experiment.cluster.device == "cpu"
    found, skipped = find_evidence(runs_dir, config, workers, device, socket.gethostname(), on_cpu)
    basis.warnings += [*experiment.doubts, *skipped]
    chosen, evidence = _throughput(experiment, config, device, found, options, basis)
    device_type = _device_type(experiment, device, evidence)
    memory = _memory(experiment, config, device, device_type, basis)
    if device is not None:
        basis.take(peak_flops(device.name))

    rate = chosen.tokens_per_s if chosen else None
    hours = _hours(experiment, rate, device_type, evidence, basis)
    energy = energy_of(hours.device_h, experiment.energy, device, evidence, basis)
    price, currency = price_of_gpu_hour(options.gpu_hour_price, experiment.cluster.gpu_hour_price, basis)
    on_gpu = hours.device_h if device_type == "cuda" else None
    ranges: dict[str, Range | None] = {
        "gpu_hours": Range.exact(0.0) if device_type == "cpu" else on_gpu,
        "device_hours": hours.device_h,
        "wall_days": product(hours.wall_h, 1 / 24),
        "tokens_per_s": product(rate, workers),
        "tokens_per_s_per_gpu": rate if device_type == "cuda" else None,
        "mfu": product(rate, config.flop_per_token / device.peak_flops) if device else None,
        "device_power_w": energy.power_w,
        "energy_it_kwh": energy.it_kwh,
        "energy_rated_it_kwh": energy.rated_it_kwh,
        "energy_facility_kwh": energy.facility_kwh,
        "carbon_tco2eq": energy.carbon_tco2eq,
        "embodied_tco2eq": embodied_tco2eq(on_gpu, device, experiment.energy.embodied_convention, basis),
        "cost": product(on_gpu, price),
    }
    exact: dict[str, Any] = {
        "params": config.params,
        "tokens": tokens,
        "compute_flop": config.flop_per_token * tokens,
        "flop_convention": PALM,
        "memory_gb_per_gpu": memory["memory_gb_per_gpu"],
        "fits": memory["fits"],
    }
    failures = _failures(experiment, config, on_gpu, rate, options.reliability, basis)
    likely = _values(exact, ranges, "likely")
    return {
        "schema": SCHEMA,
        "name": experiment.name,
        **likely,
        "low": _values(exact, ranges, "low"),
        "high": _values(exact, ranges, "high"),
        "flop": _flop(model_figures(config), memory["checkpointing"], tokens),
        "steps": experiment.total_steps,
        "workers": workers,
        "devices": hours.devices,
        "device_type": device_type,
        "accelerator": device.name if device else None,
        **describe_kind(chosen),
        "overhead": hours.overhead,
        "pue": experiment.energy.pue,
        "intensity_g_per_kwh": energy.intensity_g_per_kwh,
        "cost_currency": currency,
        "memory": memory,
        "failures": _plain(failures),
        "loss": loss_plan(config.params, tokens, config.vocab_size, exact | ranges, basis),
        "budget": budget_plan(options.budget, ranges),
        "quantities": planned_quantities(
            likely, "measured" if evidence else "assumed", energy.power_told, energy.rated_boundary
        ),
        "assumptions": basis.assumptions,
        "sources": basis.sources,
        "missing": list(dict.fromkeys(basis.missing)),
        "warnings": list(dict.fromkeys(basis.warnings)),
    }


def _device_type(experiment: Experiment, device: Accelerator | None, evidence: Evidence | None) -> str | None:
    """cpu or cuda as the spec has it, else as its earlier runs had it; None: not known before it starts."""
    if experiment.cluster.device == "cpu":
        return "cpu"
    if device or experiment.cluster.device == "cuda":
        return "cuda"
    return evidence.device_type if evidence else None


def _memory(
    experiment: Experiment, config: LlamaConfig, device: Accelerator | None, device_type: str | None, basis: Basis
) -> dict[str, Any]:
    """Of a step on each device, and where that is too much: the fewest workers with which it fits."""
    device_gb = device.memory_gb if device else None
    memory = step_memory(experiment, config, experiment.cluster.workers, device_type, device_gb)
    if device_gb is None:
        return memory
    basis.assume("memory_reserve", RESERVE, "1", RESERVE_SOURCE)
    if not memory["fits"]:
        memory["fewest_workers"] = fewest_workers(experiment, config, device_type, device_gb)
        memory["how_it_fits"] = how_it_fits(memory)
    return memory


class _Hours(NamedTuple):
    """Of the training steps alone, of the whole run, and of all its devices together; None where it is not known."""

    steps_h: Range | None
    wall_h: Range | None
    devices: int | None
    device_h: Range | None

    @property
    def overhead(self) -> float | None:
        return None if self.steps_h is None or self.wall_h is None else self.wall_h.likely / self.steps_h.likely


def _hours(
    experiment: Experiment, rate: Range | None, device_type: str | None, evidence: Evidence | None, basis: Basis
) -> _Hours:
    """rate: tokens/s of each worker."""
    cluster = experiment.cluster
    steps_h = rate.times(cluster.workers).dividing(experiment.training.tokens / 3600) if rate else None
    wall_h = _with_overhead(steps_h, evidence, basis)
    devices = cluster.workers if device_type == "cuda" else evidence.runs[-1].devices if evidence else None
    if devices is None and wall_h is not None:
        todo = (
            f"{'' if cluster.device == 'cpu' else 'name cluster.accelerator, or '}plan by a run of it on this machine"
        )
        basis.missing.append(f"how many devices draw power, and with it device-hours, energy and carbon: {todo}")
    return _Hours(steps_h, wall_h, devices, product(wall_h, devices))


def _failures(
    experiment: Experiment,
    config: LlamaConfig,
    gpu_hours: Range | None,
    rate: Range | None,
    declared: Reliability,
    basis: Basis,
) -> dict[str, Any] | None:
    """rate: tokens/s of each worker. None where hours on GPUs are not known."""
    if gpu_hours is None or rate is None:
        return None
    training, workers = experiment.training, experiment.cluster.workers
    checkpoint_s = training.checkpoint_every_steps * training.batch_tokens / (rate.likely * workers)
    return failure_plan(gpu_hours, workers, state_gb(config), checkpoint_s, declared, basis)


def _flop(model: dict[str, Any], checkpointing: str, tokens: int) -> dict[str, Any]:
    """FLOP of the whole training by each convention, and those that are computed twice."""
    by_convention = {name: each for name, each in flop_per_token(model).items() if each is not None}
    twice = recomputed_per_token(model, checkpointing)
    return {
        **{name: {"flop": each * tokens, "convention": CONVENTIONS[name]} for name, each in by_convention.items()},
        "recomputed": None if twice is None else twice * tokens,
    }


def _device(experiment: Experiment) -> Accelerator | None:
    name = experiment.cluster.accelerator
    if name is None or experiment.cluster.device == "cpu":
        return None
    try:
        return accelerator(name)
    except ValueError as error:
        raise ValueError(f"cluster.accelerator: {error}") from None


def _throughput(
    experiment: Experiment,
    config: LlamaConfig,
    device: Accelerator | None,
    found: Evidence | None,
    options: PlanOptions,
    basis: Basis,
) -> tuple[Throughput | None, Evidence | None]:
    """The throughput by the order in `throughput.py`, and the earlier runs where it rests on them."""
    workers, how = experiment.cluster.workers, options.throughput
    chosen = stated(config, device, options.mfu, options.tokens_per_s_per_gpu)
    evidence = None
    if chosen is None and how in ("auto", "runs") and found is not None and found.same_shape:
        chosen, evidence = throughput_from(found, config, workers), found
    if chosen is None and how != "runs" and device is not None:
        anchors = anchors_for(config, device, None if how in ("auto", "published") else how)
        chosen = from_anchors(anchors, config, workers, basis) if anchors else None
    if chosen is None and how in ("auto", "runs") and found is not None:
        chosen, evidence = throughput_from(found, config, workers), found
    if chosen is not None:
        basis.assume("tokens_per_s_per_worker", chosen.tokens_per_s.likely, "tokens/s", chosen.source)
        basis.sources["tokens_per_s_per_gpu"] = chosen.short
        return chosen, evidence
    if how != "auto" or (options.strict and device is not None):
        where = f"on {device.name}" if device else "without a named accelerator"
        raise ValueError(f"no {'' if how == 'auto' else how + ' '}throughput is known for this model {where}: {ASK}")
    ask = ASK if device else ASK_ON_CPU
    basis.missing.append(f"tokens/s, and with it time, energy and carbon: {ask}")
    return None, None


def _with_overhead(step_hours: Range | None, evidence: Evidence | None, basis: Basis) -> Range | None:
    """Wall hours: the training steps, and start-up, evaluation and checkpoints as earlier runs had them."""
    if step_hours is None:
        return None
    if evidence is None:
        return step_hours
    basis.sources["wall_days"] = "steps, and start-up and evaluation as before"
    startup_s, share = evidence.startup_s(), evidence.other_share()
    basis.assume("startup_s", startup_s, "s", f"median of the earlier runs ({evidence.names()})")
    basis.assume("evaluation_and_checkpoint_share", share, "1", f"per second of training step ({evidence.names()})")
    return step_hours.times(1 + share).plus(Range.exact(startup_s / 3600))


def _values(exact: dict[str, Any], ranges: dict[str, Range | None], which: str) -> dict[str, Any]:
    found = exact | {key: None if value is None else getattr(value, which) for key, value in ranges.items()}
    return {key: found[key] for key in (*CONTRACT, *BESIDE)}


def _plain(values: dict[str, Any] | None) -> dict[str, Any] | None:
    """Intervals as {low, likely, high}."""
    if values is None:
        return None
    return {
        key: {"low": v.low, "likely": v.likely, "high": v.high} if isinstance(v, Range) else v
        for key, v in values.items()
    }
