"""Training sequences by their global index, so that the order of data does not depend on ranks or batch size.

Sequence i belongs to one source, fixed by a periodic schedule; the n-th sequence of a source is the n-th of a
permutation that changes every epoch of that source. Both follow from (seed, i) alone: a run resumes anywhere.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from orchestrator.data.corpus import TokenizedCorpus
from orchestrator.data.shares import PERIOD, shares


class TokenStream:
    """Packed sequences of a corpus: sequence_length + 1 tokens each, neighbours sharing one token.

    proportions: relative weight of each source of the corpus, in its order; the sources' own where None.
    position: how many sequences were dealt, which `state` tells; `batch` gives any.
    """

    def __init__(
        self,
        corpus: TokenizedCorpus,
        proportions: Sequence[float] | None,
        sequence_length: int,
        seed: int,
        position: int = 0,
    ) -> None:
        if sequence_length < 1 or position < 0 or seed < 0:
            raise ValueError(
                f"sequence_length must be positive, seed and position not negative: got "
                f"{sequence_length}, {seed}, {position}"
            )
        self.corpus, self.sequence_length, self.seed, self.position = corpus, sequence_length, seed, position
        self.lengths = [(len(source.train) - 1) // sequence_length for source in corpus.parts]
        for source, length in zip(corpus.parts, self.lengths, strict=True):
            if length < 1:
                raise ValueError(
                    f"source {source.name!r} has {len(source.train)} training tokens, "
                    f"fewer than one sequence of {sequence_length} + 1"
                )
        weights = [source.proportion for source in corpus.parts] if proportions is None else list(proportions)
        if len(weights) != len(corpus.parts) or not all(0 < weight < float("inf") for weight in weights):
            raise ValueError(f"expected {len(corpus.parts)} positive proportions, one for each source, got {weights}")
        self._schedule = _schedule(weights)
        # _before[k, j]: how many of the first j places of a period belong to source k.
        places = self._schedule == np.arange(len(weights))[:, None]
        self._before = np.concatenate([np.zeros((len(weights), 1), np.int64), places.cumsum(1)], axis=1)
        self._orders: dict[int, tuple[int, np.ndarray]] = {}  # source: the epoch it is in, and its order in that

    def source_of(self, index: int) -> tuple[int, int]:
        """(source, number of its sequences dealt before) of global sequence `index`."""
        period, place = divmod(index, PERIOD)
        source = int(self._schedule[place])
        return source, period * int(self._before[source, -1]) + int(self._before[source, place])

    def batch(self, start_index: int, count: int) -> np.ndarray:
        """Sequences start_index .. start_index + count - 1: int64, (count, sequence_length + 1)."""
        if start_index < 0 or count < 0:
            raise ValueError(f"start_index and count must not be negative, got {start_index} and {count}")
        result = np.empty((count, self.sequence_length + 1), np.int64)
        for row in range(count):
            source, dealt = self.source_of(start_index + row)
            epoch, place = divmod(dealt, self.lengths[source])
            first = int(self._order(source, epoch)[place]) * self.sequence_length
            result[row] = self.corpus.parts[source].train[first : first + self.sequence_length + 1]
        return result

    def _order(self, source: int, epoch: int) -> np.ndarray:
        if source not in self._orders or self._orders[source][0] != epoch:
            name = self.corpus.parts[source].name
            self._orders[source] = epoch, _permutation(self.lengths[source], self.seed, name, epoch)
        return self._orders[source][1]

    @property
    def epoch(self) -> int:
        """Sequences dealt over sequences in the corpus, whole (a small source may be further)."""
        return self.position // sum(self.lengths)

    def state(self) -> dict[str, int]:
        return {"seed": self.seed, "epoch": self.epoch, "position": self.position}

    def validation_batches(self, sequence_length: int, max_sequences: int, batch_size: int = 8) -> Iterator[np.ndarray]:
        """Held-out sequences, spread evenly over that text: int64, (<= batch_size, sequence_length + 1)."""
        if min(sequence_length, max_sequences, batch_size) < 1:
            raise ValueError(
                f"sequence_length, max_sequences and batch_size must be positive, got "
                f"{sequence_length}, {max_sequences}, {batch_size}"
            )
        firsts = [
            (part.validation, first)
            for part in self.corpus.parts
            for first in range(0, len(part.validation) - sequence_length, sequence_length)
        ]
        if not firsts:
            raise ValueError(
                f"{self.corpus.validation_tokens} held-out tokens are fewer than one sequence of "
                f"{sequence_length} + 1; raise validation_fraction or add text"
            )
        count = min(max_sequences, len(firsts))
        chosen = [firsts[i * len(firsts) // count] for i in range(count)]
        rows = (tokens[first : first + sequence_length + 1].astype(np.int64) for tokens, first in chosen)
        for start in range(0, count, batch_size):
            yield np.stack([next(rows) for _ in range(min(batch_size, count - start))])


def _schedule(weights: Sequence[float]) -> np.ndarray:
    """Source of each place of a period, evenly mixed: the c-th of n of a source stands at (c + 1/2) / n."""
    counts = shares(weights)
    if min(counts) < 1:
        raise ValueError(f"a proportion of {min(weights) / sum(weights):.2g} is below one sequence in {PERIOD}")
    places = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
    owners = np.repeat(np.arange(len(counts)), counts)
    return owners[np.argsort(places, kind="stable")]


def _permutation(length: int, seed: int, name: str, epoch: int) -> np.ndarray:
    """Order by a hash (splitmix64): the stream of numpy's generators may change between versions."""
    key = zlib.crc32(f"{seed}:{epoch}:{name}".encode()) << 32 | zlib.crc32(f"{name}:{epoch}:{seed}".encode())
    mixed = (np.arange(length, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return np.argsort(mixed ^ (mixed >> np.uint64(31)), kind="stable")
