"""Compute of a run: model FLOP and hardware FLOP, MFU and HFU, device-hours, what was useful and what was lost.

Model FLOP are those that the mathematics of the model asks for, by a named convention; hardware FLOP also count what
activation checkpointing computes a second time. MFU and HFU are their rates over the devices' peak, and say nothing
without both names beside them. Tokens that a crash threw away were computed all the same: they are in the rates and in
the hardware FLOP, and not in the model FLOP of the result.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from energy.accounting.held import Held
from energy.factors import common_accelerator, match_accelerator
from energy.factors import peak_flops as peak_by_name

PALM = "PaLM: 6 N_matmul + 12 L d s per token, embedding look-up excluded"
CAUSAL = "causal: 6 N_matmul + 6 L d s per token, the masked half of attention not counted"
SIX_N = "6ND: 6 x all parameters per token, attention not counted"
CONVENTIONS = {"palm": PALM, "causal": CAUSAL, "six_n": SIX_N}
HARDWARE = {
    "none": "nothing is computed twice",
    "selective": "products and attention are kept; what is computed twice is element-wise and counts as 0",
    "full": "every block's forward but its last product is computed twice: 2 N_blocks - 2 L d h + 4 L d s per token",
}
NOT_COUNTED = "the forward passes of evaluations, and what is element-wise: norms, activations, the optimiser"

Row = Mapping[str, Any]


def checkpointing_of(run: Row, attempt: int | None = None) -> str | None:
    """none, selective or full, as run.json says of an attempt or else of the last one; None where it does not."""
    said = (run.get("training") or {}).get("activation_checkpointing")
    said = (run.get("checkpointing_of_attempts") or {}).get(str(attempt), said)
    if said is not None and said not in HARDWARE:
        raise ValueError(f"training.activation_checkpointing is {said!r}, expected one of {', '.join(HARDWARE)}")
    return said


def peak_of(stored: Row | None, gpu_names: Iterable[str], on_gpus: bool) -> tuple[dict[str, Any] | None, str | None]:
    """(dense BF16 peak of one device as a factor, a warning): that of the metered GPUs, by their drivers' names.

    stored: the peak of the accelerator that the spec names (its `geography`): it stands where the tables do not know
    the names, and not for a run on CPUs, which have no such peak.
    """
    names = sorted(set(gpu_names))
    named = str((stored or {}).get("geography") or "")
    kind, said = common_accelerator(names), match_accelerator(named)
    if not on_gpus and said is not None:
        return None, f"the spec names the accelerator {named}, and the run was on CPUs: no peak and no MFU"
    if kind is not None:
        differs = said is not None and said != kind
        text = f"the spec names the accelerator {named}, and {kind.name} was metered: peak and MFU are of {kind.name}"
        return peak_by_name(kind.name).as_dict(), text if differs else None
    if said is not None and names:
        return dict(stored or {}), f"peak and MFU are of {named}, which the spec names; metered were {', '.join(names)}"
    return (dict(stored) if stored else None), None


def flop_per_token(model: Row) -> dict[str, float | None]:
    """Training FLOP per token, forward and backward, by convention: palm (Chowdhery et al. 2022, appendix B), causal
    (half the attention, as FlashAttention counts: Dao 2023), six_n (Kaplan et al. 2020 with all parameters, as most
    tables have it). They differ by up to 15 % for the same training.

    model: `flop_per_token` (palm), `matmul_params` and `params`, as in run.json; what is missing there is None here.
    """
    palm, matmul, params = (model.get(key) for key in ("flop_per_token", "matmul_params", "params"))
    attention = None if palm is None or matmul is None else palm - 6 * matmul
    return {
        "palm": palm,
        "causal": None if palm is None or attention is None else palm - attention // 2,  # exact: it is even
        "six_n": None if params is None else 6 * params,
    }


def recomputed_per_token(model: Row, checkpointing: str | None) -> float | None:
    """FLOP per token that activation checkpointing computes a second time; None where that is not known.

    full: the forward of every block (Korthikanti et al. 2022), but for the last product of each (of h hidden channels
    with d), at which PyTorch stops because nothing behind it needs what it would give. The output projection is in no
    block.
    """
    if checkpointing is None:
        return None
    if checkpointing != "full":
        return 0.0
    keys = ("matmul_params", "vocab_size", "dim", "ffn_hidden", "n_layers", "sequence_length")
    if any(model.get(key) is None for key in keys):
        return None
    matmul, vocabulary, dim, hidden, layers, length = (model[key] for key in keys)
    return float(2 * (matmul - vocabulary * dim) - 2 * layers * dim * hidden + 4 * layers * dim * length)


def tokens_of(steps: Sequence[Row]) -> tuple[float, float]:
    """(tokens that count in the result, tokens computed, which include those that a crash threw away)."""
    useful = float(steps[-1]["tokens"]) if steps else 0.0
    return useful, max(useful, math.fsum(_computed_by_attempt(steps).values()))


def _computed_by_attempt(steps: Sequence[Row]) -> dict[int, float]:
    """Tokens that each attempt computed."""
    attempts: dict[int, list[Row]] = {}
    for step in steps:
        attempts.setdefault(int(step.get("attempt") or 1), []).append(step)
    computed = {}
    for attempt, rows in attempts.items():
        first, last = rows[0], rows[-1]
        of_first = first["tokens"] / max(1, first["step"])  # an attempt's first row holds the tokens before it too
        computed[attempt] = last["tokens"] - first["tokens"] + of_first
    return computed


def _is_within(step: Row, spans: Sequence[tuple[float, float]]) -> bool:
    """Whether the middle of a step's time is in one of the spans: their edges may differ by a write to the disk."""
    middle_s = float(step.get("time_unix_s") or 0.0) - (step.get("seconds") or 0.0) / 2
    return any(start <= middle_s <= end for start, end in spans)


def _mean_devices(steps: Sequence[Row], held: Held) -> float | None:
    """How many devices carried these steps in the mean over their time; None of none."""
    if not steps or not held.devices:
        return None
    counts = [held.by_attempt.get(int(step.get("attempt") or 1), held.devices) for step in steps]
    seconds = [float(step.get("seconds") or 0.0) for step in steps]
    if len(set(counts)) == 1 or not any(seconds):
        return float(counts[-1])
    return math.fsum(count * passed_s for count, passed_s in zip(counts, seconds, strict=True)) / math.fsum(seconds)


def _hardware(run: Row, model: Row, steps: Sequence[Row]) -> tuple[float | None, str | None]:
    """(hardware FLOP per token, activation checkpointing in words): of attempts that kept other things, the mean over
    the tokens that each computed."""
    palm, tokens = flop_per_token(model)["palm"], _computed_by_attempt(steps)
    modes = {attempt: checkpointing_of(run, attempt) for attempt in tokens} or {0: checkpointing_of(run)}
    found = {attempt: recomputed_per_token(model, mode) for attempt, mode in modes.items()}
    twice = {attempt: flop for attempt, flop in found.items() if flop is not None}
    said = ", then ".join(str(mode) for mode in dict.fromkeys(modes.values())) if all(modes.values()) else None
    if palm is None or len(twice) < len(found):
        return None, said
    if len(set(twice.values())) == 1:
        return palm + next(iter(twice.values())), said
    again = math.fsum(count * twice[attempt] for attempt, count in tokens.items())
    return palm + again / math.fsum(tokens.values()), said


def _times(value: float | None, factor: float | None) -> float | None:
    return None if value is None or factor is None else value * factor


def compute_account(
    run: Row,
    steps: Sequence[Row],
    held: Held,
    *,
    peak_flops: float | None,
    compiling: Sequence[tuple[float, float]] = (),
) -> dict[str, Any]:
    """The record's `compute`: a pure function of run.json and the steps of rank 0.

    held: the devices that carried the training. peak_flops: dense BF16 FLOP/s of one. What is not known is None. A rate
    is over the time in steps, so that it compares between runs of any length, without the steps that compile the model
    (the first of each attempt whose model is compiled): those are the ones that lie in a span of `compiling`, (start,
    end) in unix s. `mean_devices` is over the same time. `mfu_reserved` is over all device-hours and shows what
    compiling, waiting and crashes cost.
    """
    model = run.get("model") or {}
    per_token = flop_per_token(model)
    palm = per_token["palm"]
    hardware, checkpointing = _hardware(run, model, steps)
    useful, computed = tokens_of(steps)
    lost = computed - useful
    # Of the timed steps alone: one that was skipped is in the count of tokens, and has no time here.
    steady = [step for step in steps if not _is_within(step, compiling)]
    step_s = math.fsum(step.get("seconds") or 0.0 for step in steady)
    steady_tokens = math.fsum(step["tokens"] / max(1, step["step"]) for step in steady)
    tokens_per_s = steady_tokens / step_s if step_s > 0 else None
    carried = _mean_devices(steady or steps, held)
    peak_all = peak_flops * carried if peak_flops and carried else None

    def utilisation(flop: float | None) -> float | None:
        return tokens_per_s * flop / peak_all if tokens_per_s and flop and peak_all else None

    device_hours = held.device_hours
    reserved_flop = peak_flops * device_hours * 3600 if peak_flops and device_hours else None
    model_flop = _times(palm, useful)
    return {
        "compute_flop": model_flop,
        "recomputed_flop": _times(palm, lost),
        "flop_per_token": palm,
        "flop_convention": PALM,
        "compute_flop_causal": _times(per_token["causal"], useful),
        "compute_flop_6nd": _times(per_token["six_n"], useful),
        "flop_conventions": {"compute_flop": PALM, "compute_flop_causal": CAUSAL, "compute_flop_6nd": SIX_N},
        "hardware_flop": _times(hardware, computed),
        "hardware_flop_per_token": hardware,
        "activation_checkpointing": checkpointing,
        "hardware_convention": "; ".join(HARDWARE[mode] for mode in checkpointing.split(", then "))
        if checkpointing
        else "not known: no checkpointing is declared",
        "not_counted": NOT_COUNTED,
        "tokens_useful": useful,
        "tokens_lost": lost,
        "useful_share": useful / computed if computed else None,
        "tokens_per_s": tokens_per_s,
        "mfu": utilisation(palm),
        "hfu": utilisation(hardware),
        "mfu_reserved": model_flop / reserved_flop if model_flop and reserved_flop else None,
        "mfu_basis": "FLOP by the PaLM convention over dense BF16 peak, in the time of the steps after compiling",
        "peak_flops": peak_flops,
        "devices": held.devices,
        "mean_devices": carried,
        "device_hours": device_hours,
        "gpu_hours": held.gpu_hours,
        "hardware_days": None if device_hours is None else device_hours / 24,
    }
