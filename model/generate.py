"""Sampling from a model, one token at a time, with a key/value cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from model.attention import KVCache
from model.transformer import Llama


def generate(
    model: Llama,
    tokens: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    eos_id: int | None = None,
    seed: int = 0,
) -> Iterator[int]:
    """Yield token ids that continue `tokens`, up to `eos_id` (not yielded) or `max_new_tokens`.

    temperature 0 is greedy. top_p keeps the likeliest tokens that together reach that probability.
    """
    if not tokens:
        raise ValueError("tokens is empty: start from at least the bos id")
    if len(tokens) + max_new_tokens > model.config.sequence_length:
        raise ValueError(
            f"{len(tokens)} prompt tokens + max_new_tokens ({max_new_tokens}) exceed "
            f"sequence_length ({model.config.sequence_length})"
        )
    if temperature < 0:
        raise ValueError(f"temperature must not be negative, not {temperature}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], not {top_p}")
    return _generate(model, list(tokens), max_new_tokens, temperature, top_p, eos_id, seed)


def _generate(
    model: Llama,
    tokens: list[int],
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    eos_id: int | None,
    seed: int,
) -> Iterator[int]:
    weight = model.embedding.weight
    length = len(tokens) + max_new_tokens
    caches = [KVCache(1, length, model.config, weight.detach()) for _ in model.blocks]
    generator = torch.Generator().manual_seed(seed)
    new = tokens
    for _ in range(max_new_tokens):
        # Entered anew for each token: a generator that yields inside it would leave it on for its caller.
        with torch.inference_mode():
            logits_BLV = model(torch.tensor([new], device=weight.device), caches=caches)
            token = pick(logits_BLV[0, -1], temperature, top_p, generator)
        if token == eos_id:
            return
        yield token
        new = [token]


def pick(logits_V: torch.Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """One token id from one position's logits."""
    if temperature == 0:
        return int(logits_V.argmax())
    # On the CPU, where one seed means one text whatever the device.
    probs_V, ids_V = torch.softmax(logits_V.float().cpu() / temperature, dim=-1).sort(descending=True)
    # Keep a token if those before it fall short of top_p; the first is always kept.
    probs_V[probs_V.cumsum(0) - probs_V >= top_p] = 0.0
    probs_V[0].clamp_(min=torch.finfo(probs_V.dtype).tiny)
    return int(ids_V[torch.multinomial(probs_V, 1, generator=generator)])
