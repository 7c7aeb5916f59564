"""Sampling from a model with a key/value cache: a batch of texts of different lengths, one token of each at a time.

Shapes: B texts, T steps, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from model.cache import Cache
from model.recording import RecordedSteps
from model.transformer import Llama

PADDING = 0  # any token: nothing that counts ever sees it
# Not cuDNN, which plans anew for every length that the cache grows to.
_BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
_RECORDED_STRIDE = 256  # positions: a recorded step is used for so many lengths of the cache
Ending = Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a token is drawn. temperature 0 is greedy; top_p keeps the likeliest tokens that together reach that
    probability; text number b of a batch draws by seed + b, so that it would be the same alone."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"temperature must not be negative, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], not {self.top_p}")


class Generation:
    """Continues a batch of prompts; iterate over it for the tokens.

    Each step gives a list with one token id for each prompt, None where that text has ended (a stop token is not
    given). `endings` says how: stop, or length. `end` ends a text from outside.

    On a GPU nothing waits for the token that was drawn last: it is copied here while the model computes on it, and
    given a step later, so that a text which stops costs one step that nobody sees.
    """

    def __init__(
        self,
        model: Llama,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int | Sequence[int],
        sampling: Sampling | None = None,
        stop_ids: Collection[int] = (),
        recorded: bool = False,
    ) -> None:
        """max_new_tokens: for all prompts, or one for each. recorded: on a GPU, replay steps as CUDA graphs.

        ValueError for an empty prompt, and for one that does not fit into the model's context with its new tokens.
        """
        limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
        _check(model, prompts, limits)
        self.endings: list[Ending | None] = [None] * len(prompts)
        self._model, self._prompts, self._limits = model, prompts, limits
        self._sampling, self._stop_ids = sampling or Sampling(), frozenset(stop_ids)
        self._weight = model.embedding.weight
        self._cuda = self._weight.device.type == "cuda"
        self._lag = 1 if self._cuda else 0  # steps
        self._recorded = recorded and self._cuda
        self._prepare()

    @torch.inference_mode()
    def _prepare(self) -> None:
        lengths, steps = [len(prompt) for prompt in self._prompts], max(self._limits)
        batch, device = len(lengths), self._weight.device
        room = max(length + limit for length, limit in zip(lengths, self._limits, strict=True))
        stride = _RECORDED_STRIDE if self._recorded else 1
        self._cache = Cache(lengths, room, self._model.config, self._weight, stride=stride)
        padded = [[*prompt, *[PADDING] * (max(lengths) - len(prompt))] for prompt in self._prompts]
        self._prompts_BL = torch.tensor(padded, device=device)
        self._tokens_B1 = torch.zeros((batch, 1), dtype=torch.long, device=device)
        self._here_TB = torch.empty((steps, batch), dtype=torch.long, pin_memory=self._cuda)
        # Drawn on the CPU, so that a seed means the same on every device, and before the first step.
        self._chance_TB1: torch.Tensor | None = None
        if self._sampling.temperature > 0:
            drawn = [torch.rand(steps, generator=_generator(self._sampling.seed + row)) for row in range(batch)]
            self._chance_TB1 = torch.stack(drawn, dim=1).unsqueeze(2).to(device)
        self._recordings = RecordedSteps(self._model, self._cache, self._tokens_B1) if self._recorded else None

    def __iter__(self) -> Iterator[list[int | None]]:
        assert self._cache.reads_prompts, "the texts are drawn once"
        waiting: deque[tuple[int, torch.cuda.Event | None]] = deque()
        for step in range(max(self._limits)):
            waiting.append((step, self._launch(step)))
            if len(waiting) > self._lag:
                yield self._arrived(*waiting.popleft())
            if all(self.endings):
                return
        while waiting and not all(self.endings):
            yield self._arrived(*waiting.popleft())

    def end(self, row: int) -> None:
        """No more tokens of this text."""
        self.endings[row] = self.endings[row] or "stop"

    # Not entered around the loop: a generator that yields inside it would leave it on for its caller.
    @torch.inference_mode()
    def _launch(self, step: int) -> torch.cuda.Event | None:
        """Draw the next token of each text and start its way here."""
        with sdpa_kernel(_BACKENDS, set_priority=True):
            logits_B1V = self._compute() if step else self._model(self._prompts_BL, cache=self._cache)
        self._cache.advance()
        chance_B1 = None if self._chance_TB1 is None else self._chance_TB1[step]
        self._tokens_B1.copy_(pick(logits_B1V[:, -1], self._sampling, chance_B1))
        self._here_TB[step].copy_(self._tokens_B1[:, 0], non_blocking=True)
        if not self._cuda:
            return None
        arrived = torch.cuda.Event()
        arrived.record()
        return arrived

    def _compute(self) -> torch.Tensor:
        return self._recordings() if self._recordings else self._model(self._tokens_B1, cache=self._cache)

    def _arrived(self, step: int, event: torch.cuda.Event | None) -> list[int | None]:
        if event is not None:
            event.synchronize()
        given: list[int | None] = []
        for row, token in enumerate(self._here_TB[step].tolist()):
            if self.endings[row] is None and token in self._stop_ids:
                self.endings[row] = "stop"
            given.append(token if self.endings[row] is None else None)
            if self.endings[row] is None and step + 1 == self._limits[row]:
                self.endings[row] = "length"
        return given


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
    """Yield token ids that continue one prompt, up to `eos_id` (not yielded) or `max_new_tokens`: see `Generation`."""
    sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed)
    stop_ids = () if eos_id is None else (eos_id,)
    steps = Generation(model, [tokens], max_new_tokens=max_new_tokens, sampling=sampling, stop_ids=stop_ids)
    return (token for [token] in steps if token is not None)


def pick(logits_BV: torch.Tensor, sampling: Sampling, chance_B1: torch.Tensor | None) -> torch.Tensor:
    """One token id for each row, (B, 1); `chance_B1`, in [0, 1), decides where the temperature is not 0."""
    if chance_B1 is None:
        return logits_BV.argmax(dim=-1, keepdim=True)
    logits_BV = logits_BV.float()
    # The largest becomes 0 first: divided by a very low temperature the others go to -inf, and nothing to +inf.
    probs_BV = ((logits_BV - logits_BV.amax(-1, keepdim=True)) / sampling.temperature).softmax(-1)
    ids_BV = None
    if sampling.top_p < 1:
        probs_BV, ids_BV = probs_BV.sort(dim=-1, descending=True)
        # Keep a token if those before it fall short of top_p; the first is always kept.
        probs_BV = probs_BV.where(probs_BV.cumsum(-1) - probs_BV < sampling.top_p, 0.0)
    reached_BV = probs_BV.cumsum(-1)
    # The first token at which more is reached than chance asks for, so that its own probability is not zero. Rounded,
    # chance may ask for all there is: that is reached by the last one which has any.
    whole_B1 = reached_BV[:, -1:]
    asked_B1 = (reached_BV <= chance_B1 * whole_B1).sum(-1, keepdim=True)
    place_B1 = asked_B1.minimum((reached_BV < whole_B1).sum(-1, keepdim=True))
    return place_B1 if ids_BV is None else ids_BV.gather(1, place_B1)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _check(model: Llama, prompts: Sequence[Sequence[int]], limits: Sequence[int]) -> None:
    context = model.config.sequence_length
    if not prompts or len(limits) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts and {len(limits)} max_new_tokens: expected as many, at least one")
    for prompt, limit in zip(prompts, limits, strict=True):
        if not prompt:
            raise ValueError("a prompt has no tokens: start from at least the bos id")
        if limit < 1:
            raise ValueError(f"max_new_tokens must be positive, not {limit}")
        if len(prompt) + limit > context:
            raise ValueError(
                f"{len(prompt)} prompt tokens + max_new_tokens ({limit}) exceed sequence_length ({context})"
            )
