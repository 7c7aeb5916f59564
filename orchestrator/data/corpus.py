"""A tokenised corpus, as training reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class SourceTokens:
    """One tokenised source. train and validation are memory-mapped ids: bos, document, eos, bos, ...

    Where the tokenizer's bos is its eos, one such token lies between two documents: E, document, E, document, E.
    """

    name: str
    kind: str
    proportion: float
    stats: dict[str, Any]
    train: np.ndarray
    validation: np.ndarray


@dataclass(frozen=True)
class TokenizedCorpus:
    """The tokenised sources with their tokenizer.

    unigram_entropy_nats: entropy, in nats per token, of the held-out tokens under their own unigram
    distribution; a model gets below it only by using context.
    """

    folder: Path
    tokenizer: Tokenizer
    parts: tuple[SourceTokens, ...]
    unigram_entropy_nats: float

    @property
    def sources(self) -> list[dict[str, Any]]:
        """Per source {name, kind, proportion, bytes, documents, tokens, skipped_files, held_out}."""
        return [
            {"name": part.name, "kind": part.kind, "proportion": part.proportion, **part.stats} for part in self.parts
        ]

    @property
    def train_tokens(self) -> int:
        return sum(len(part.train) for part in self.parts)

    @property
    def validation_tokens(self) -> int:
        return sum(len(part.validation) for part in self.parts)
