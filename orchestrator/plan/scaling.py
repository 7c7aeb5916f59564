"""Predicted loss from the scaling laws, and other sizes that reach the same loss.

L(N, D) = E + A / N^alpha + B / D^beta, in nats per token (Hoffmann et al. 2022, approach 3), with the constants of
`scaling_laws.csv`: `epoch` (Besiroglu et al. 2024, which repairs the published fit) unless told otherwise. The law
was fitted to models of 0.07 to 16 B parameters on another text with another tokenizer: it ranks plans, it does not
foretell the loss that a run will print.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from energy.factors import read_table
from orchestrator.plan.ranges import Basis, Range

DEFAULT = "epoch"
FITTED_PARAMS = (70e6, 16e9)  # Hoffmann et al. 2022: models from 70 M to over 16 B parameters
DISTINCT = 0.10
MOST_COMPUTE = 4.0  # nobody asks for a way that costs more than this many times the plan
CAVEAT = (
    "a prediction of the law on its own text and tokenizer, good for ranking; it counts the training only: a smaller "
    "model trained longer costs less wherever it is used (why the LLaMA paper trains past the optimum)"
)


@dataclass(frozen=True)
class Law:
    """One fit of the scaling law; N in parameters, D in tokens."""

    name: str
    a: float
    b: float
    e: float
    alpha: float
    beta: float
    note: str

    def loss(self, params: float, tokens: float) -> float:
        """Nats per token."""
        return self.e + self.a / params**self.alpha + self.b / tokens**self.beta

    def tokens_for(self, loss: float, params: float) -> float | None:
        """Tokens with which a model of `params` reaches `loss`; None where it cannot, however long it trains."""
        rest = loss - self.e - self.a / params**self.alpha
        return (self.b / rest) ** (1 / self.beta) if rest > 0 else None

    def cheapest(self, loss: float) -> tuple[float, float]:
        """(params, tokens) of the least 6ND with this loss.

        Minimising N D under A/N^alpha + B/D^beta = r gives alpha A/N^alpha = beta B/D^beta, hence the two terms are
        r beta/(alpha+beta) and r alpha/(alpha+beta).
        """
        rest = loss - self.e
        assert rest > 0
        both = self.alpha + self.beta
        params = (self.a * both / (rest * self.beta)) ** (1 / self.alpha)
        return params, (self.b * both / (rest * self.alpha)) ** (1 / self.beta)


def laws() -> dict[str, Law]:
    """Every fit of the table by name."""
    found = {}
    for row in read_table("scaling_laws"):
        a, b, e, alpha, beta = (float(row[key]) for key in ("A", "B", "E", "alpha", "beta"))
        found[row["fit"]] = Law(row["fit"], a, b, e, alpha, beta, row["note"])
    return found


def same_loss(law: Law, params: float, tokens: float) -> list[dict[str, Any]]:
    """Sizes along the curve of equal loss, smallest first, each with its training FLOP relative to the planned one.

    The planned size, the one of least training compute, one halfway to it, and half and twice the planned size; of
    two within DISTINCT of each other the first named stands. FLOP are taken as proportional to N D, so at equal MFU
    the relative FLOP are the relative energy, hours and cost.
    """
    loss = law.loss(params, tokens)
    best_params, _ = law.cheapest(loss)
    candidates = [
        ("this plan", params),
        ("least training", best_params),
        ("halfway to it", (params * best_params) ** 0.5),
        ("half the size", params / 2),
        ("twice the size", params * 2),
    ]
    rows: list[dict[str, Any]] = []
    for label, size in candidates:
        needed = law.tokens_for(loss, size)
        near = any(abs(math.log(size / row["params"])) < math.log1p(DISTINCT) for row in rows)
        if needed is None or near or size * needed > MOST_COMPUTE * params * tokens:
            continue
        needed = tokens if label == "this plan" else needed
        relative = size * needed / (params * tokens)
        rows.append({"label": label, "params": size, "tokens": needed, "relative_compute": relative})
    return sorted(rows, key=lambda row: row["params"])


def loss_plan(
    params: int, tokens: int, vocab_size: int, planned: dict[str, Any], basis: Basis
) -> dict[str, Any] | None:
    """Predicted nats per token by each fit, and sizes with the same loss with what each takes at the same MFU.

    None far outside what the law was fitted to.
    """
    law = laws()[DEFAULT]
    if params < FITTED_PARAMS[0] / 2 or law.loss(params, tokens) >= math.log(vocab_size):
        basis.missing.append(
            f"a predicted loss: the laws were fitted to models of {FITTED_PARAMS[0] / 1e6:g} M parameters and more"
        )
        return None
    basis.assume("scaling_law", DEFAULT, "", f"scaling_laws.csv: {law.note}")
    best_params, best_tokens = law.cheapest(law.loss(params, tokens))
    ways = same_loss(law, params, tokens)
    for way in ways:
        for key in ("compute_flop", "gpu_hours", "wall_days", "energy_it_kwh", "energy_facility_kwh", "carbon_tco2eq"):
            value = planned[key].likely if isinstance(planned[key], Range) else planned[key]
            way[key] = None if value is None else value * way["relative_compute"]
    return {
        "fit": DEFAULT,
        "nats_per_token": {name: fit.loss(params, tokens) for name, fit in laws().items()},
        "tokens_per_param": tokens / params,
        "least_relative_compute": best_params * best_tokens / (params * tokens),
        "same_loss": ways,
        "extrapolated": params > FITTED_PARAMS[1],
        "caveat": CAVEAT,
    }
