"""How many sequences of a period each source gives: asked by the stream, and by the spec before anything starts."""

import math
from collections.abc import Sequence

PERIOD = 10_000  # sequences: proportions are exact to four decimals over each period


def shares(weights: Sequence[float]) -> list[int]:
    """Places of each weight in a period, PERIOD together: rounded down, then up where the most was cut off."""
    total = sum(weights)
    exact = [weight / total * PERIOD for weight in weights]
    counts = [math.floor(each) for each in exact]
    by_rest = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
    for i in by_rest[: PERIOD - sum(counts)]:
        counts[i] += 1
    return counts
