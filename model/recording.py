"""Steps of generation as CUDA graphs: launching hundreds of small kernels takes the CPU longer than the GPU computes.

Shapes: B texts, V vocabulary.
"""

from __future__ import annotations

import torch

from model.cache import Cache
from model.transformer import Llama


class RecordedSteps:
    """The model on one new token of each text, recorded once for each end of the cache and then replayed.

    A recording reads and writes the same memory each time: the tokens, the cache and its positions are changed in
    place between replays. The logits are overwritten by the next one.
    """

    def __init__(self, model: Llama, cache: Cache, tokens_B1: torch.Tensor) -> None:
        self._model, self._cache, self._tokens_B1 = model, cache, tokens_B1
        self._recordings: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}
        self._pool = torch.cuda.graph_pool_handle()  # one for all: no two of them are at work at a time

    def __call__(self) -> torch.Tensor:
        """Logits, (B, 1, V)."""
        end = self._cache.end
        if end not in self._recordings:
            self._recordings[end] = self._record()
        graph, logits_B1V = self._recordings[end]
        graph.replay()
        return logits_B1V

    def _record(self) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        # Once without recording, on a stream of its own: libraries allocate at their first use, which none may while
        # it is recorded. It stores what the replay will store again.
        aside, here = torch.cuda.Stream(), torch.cuda.current_stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            self._model(self._tokens_B1, cache=self._cache)
        here.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Another thread may do as it likes meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            logits_B1V = self._model(self._tokens_B1, cache=self._cache)
        return graph, logits_B1V
