"""Tokens/s per accelerator: what was stated, own earlier runs, published anchors, in this order; or a refusal.

A figure that the user states on the command line wins, because it was asked for. Own runs of the same model on the
same hardware come next, then `throughput_anchors.csv`; a plan without any of them has no time and no energy.

Published anchors. Of the rows for the device, those whose parameters are within SAME_SIZE of the spec's are taken,
else those of the nearest size. A row of another structure or sequence length is scaled by FLOP per token at equal
MFU (PaLM convention) and marked so. The likely value is the row measured on a number of devices nearest to the
spec's (by ratio; of equals the one nearest in structure); low and high are the spread of the rows taken. So the
paper's own clusters of 2,048 get the paper's own tokens/s, and a node of 8 gets what was measured on 8.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from energy.factors import Accelerator, match_accelerator, read_table
from model.config import LlamaConfig
from orchestrator.plan.ranges import Basis, Range

SAME_SIZE = 0.10  # parameters that differ by less are called the same size
FARTHEST = 10.0  # beyond this ratio of parameters an MFU says nothing about another model
MEASURED, SCALED, STATED = "measured", "scaled", "stated"
ASK = (
    "give --mfu (PaLM convention), --tokens-per-s-per-gpu, or --runs DIR with earlier runs of this model on this "
    "hardware"
)
ASK_ON_CPU = (
    "run it once, and the next plan finds it in --runs; or name cluster.accelerator; or give --tokens-per-s-per-gpu "
    "(of one worker)"
)


@dataclass(frozen=True)
class Throughput:
    """Tokens/s of one worker; `extrapolated` when it was not measured on this number of workers."""

    tokens_per_s: Range
    kind: str
    source: str
    short: str
    extrapolated: bool


@dataclass(frozen=True)
class Anchor:
    """One published row, converted to the planned model: `factor` is 1 where nothing was scaled."""

    row: dict[str, str]
    factor: float

    @property
    def tokens_per_s(self) -> float:
        return float(self.row["tokens_per_s_per_device"]) * self.factor

    @property
    def devices(self) -> int:
        return int(self.row["devices"])

    @property
    def params(self) -> int:
        return int(self.row["params"])

    @property
    def short(self) -> str:
        system = self.row["system"].partition(" (")[0]
        text = f"{system}, {self.row['model'].partition(' (')[0]} on {self.devices:,}"
        return text if self.factor == 1 else f"{text}, scaled at equal MFU"

    def describe(self) -> str:
        """The printed figure, and what was done to it."""
        row = self.row
        text = (
            f"{row['system']}: {row['tokens_per_s_per_device']} tokens/s per {row['device']}, {row['model']}, "
            f"{self.devices:,} devices, sequences of {row['sequence_length']}"
        )
        text += f", {row['setting']}" if row["setting"] else ""
        return text if self.factor == 1 else f"{text}; scaled x {self.factor:.3f} by FLOP per token at equal MFU"


def anchor_flop_per_token(row: dict[str, str]) -> int:
    """Training FLOP per token of a row's model at its sequence length (PaLM convention)."""
    attention = 12 * int(row["n_layers"]) * int(row["dim"]) * int(row["sequence_length"])
    return 6 * int(row["matmul_params"]) + attention


def anchors_for(config: LlamaConfig, device: Accelerator, only: str | None = None) -> list[Anchor]:
    """The published rows of the device (of one system, if `only` names it) that speak for this model."""
    rows = [row for row in read_table("throughput_anchors") if match_accelerator(row["device"]) == device]
    names = {row["anchor"] for row in read_table("throughput_anchors")}
    if only is not None and only not in names:
        raise ValueError(f"--throughput {only}: unknown; known: auto, runs, published, {', '.join(sorted(names))}")
    rows = [row for row in rows if only in (None, row["anchor"])]
    distance = {id(row): abs(math.log(int(row["params"]) / config.params)) for row in rows}
    nearest = min(distance.values(), default=math.inf)
    if nearest > math.log(FARTHEST):
        return []
    within = max(math.log1p(SAME_SIZE), nearest + math.log1p(SAME_SIZE) / 2)
    return [Anchor(row, _factor(config, row)) for row in rows if distance[id(row)] <= within]


def _factor(config: LlamaConfig, row: dict[str, str]) -> float:
    same = (
        int(row["params"]) == config.params
        and int(row["dim"]) == config.dim
        and int(row["sequence_length"]) == config.sequence_length
    )
    return 1.0 if same else anchor_flop_per_token(row) / config.flop_per_token


def from_anchors(anchors: list[Anchor], config: LlamaConfig, workers: int, basis: Basis) -> Throughput:
    """The likely row and the spread of all (see the top of the file); `anchors` is not empty."""

    def far(anchor: Anchor) -> tuple[float, float, float]:
        ratio = abs(math.log(anchor.devices / workers))
        return ratio, abs(math.log(anchor.params / config.params)), abs(math.log(anchor.factor))

    likely = min(anchors, key=far)
    spread = Range.around(likely.tokens_per_s, [anchor.tokens_per_s for anchor in anchors])
    source = likely.describe()
    if len(anchors) > 1:
        ends = [choose(anchors, key=lambda anchor: anchor.tokens_per_s) for choose in (min, max)]
        others = "; ".join(anchor.describe() for anchor in ends if anchor is not likely)
        source += f" (low and high: the spread of {len(anchors)} published rows of this size, to {others})"
    ratio = likely.params / config.params
    if max(ratio, 1 / ratio) > 1 + SAME_SIZE:
        basis.warnings.append(
            f"no published throughput of this size on this device: scaled from {likely.params / 1e9:.1f} B parameters, "
            f"{max(ratio, 1 / ratio):.1f} times {'larger' if ratio > 1 else 'smaller'}, at equal MFU"
        )
    if likely.devices != workers:
        basis.warnings.append(
            f"the throughput was measured on {likely.devices:,} devices; the same per device is taken on {workers:,}"
        )
    kind = MEASURED if likely.factor == 1 else SCALED
    short = likely.short + (f"; {len(anchors)} published" if len(anchors) > 1 else "")
    return Throughput(spread, kind, source, short, extrapolated=kind != MEASURED or likely.devices != workers)


def stated(
    config: LlamaConfig, device: Accelerator | None, mfu: float | None, tokens_per_s: float | None
) -> Throughput | None:
    """The figure from the command line, checked against the device's peak; None when none was given."""
    if mfu is not None and tokens_per_s is not None:
        raise ValueError("give --mfu or --tokens-per-s-per-gpu, not both")
    if mfu is not None:
        if device is None:
            raise ValueError("--mfu needs a peak: name cluster.accelerator in the spec, or give --tokens-per-s-per-gpu")
        value = mfu * device.peak_flops / config.flop_per_token
        text = f"stated: MFU {mfu:g} of {device.peak_flops:.4g} FLOP/s (PaLM convention)"
        return Throughput(Range.exact(value), STATED, text, f"--mfu {mfu:g}", extrapolated=True)
    if tokens_per_s is None:
        return None
    if device is not None and tokens_per_s * config.flop_per_token > device.peak_flops:
        most = device.peak_flops / config.flop_per_token
        raise ValueError(
            f"--tokens-per-s-per-gpu {tokens_per_s:g} is more than {device.name} can do: "
            f"at its peak it makes {most:,.0f} tokens/s of this model"
        )
    text = f"stated: {tokens_per_s:g} tokens/s per accelerator"
    return Throughput(Range.exact(tokens_per_s), STATED, text, "--tokens-per-s-per-gpu", extrapolated=True)


def describe_kind(throughput: Throughput | None) -> dict[str, Any]:
    """The keys of the plan that say how far the throughput can be trusted."""
    if throughput is None:
        return {"throughput_basis": None, "extrapolated": None}
    return {"throughput_basis": throughput.kind, "extrapolated": throughput.extrapolated}
