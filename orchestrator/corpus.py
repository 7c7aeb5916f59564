"""From the spec's data section to a tokenised corpus on disk, and what the run's record says of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.data.shards import Progress, TokenizerSpec, build
from orchestrator.data.sources import SourceSpec
from orchestrator.spec import Experiment


@dataclass(frozen=True)
class PreparedCorpus:
    """A corpus that workers can open."""

    path: Path
    tokenizer_path: Path
    vocab_size: int
    description: dict[str, Any]


def source_specs(experiment: Experiment) -> list[SourceSpec]:
    return [
        SourceSpec(
            name=source.name,
            kind=source.kind,
            path=str(source.path) if source.path else None,
            proportion=source.proportion,
            text_key=source.text_key,
            min_bytes=source.min_bytes,
        )
        for source in experiment.data.sources
    ]


def prepare_corpus(experiment: Experiment, progress: Progress) -> PreparedCorpus:
    """Tokenises the sources, or opens them from the cache; ValueError where text or tokenizer cannot be used."""
    tokenizer = experiment.data.tokenizer
    corpus = build(
        source_specs(experiment),
        TokenizerSpec(str(tokenizer.path) if tokenizer.path else None, tokenizer.vocab_size),
        experiment.data.cache.resolve(),
        experiment.data.validation_fraction,
        progress,
        seed=experiment.seed,
        min_tokens=experiment.training.batch_tokens + 1,
    )
    folder = Path(corpus.folder)
    description = {
        "train_tokens": corpus.train_tokens,
        "validation_tokens": corpus.validation_tokens,
        "unigram_entropy_nats": corpus.unigram_entropy_nats,
        "sources": corpus.sources,
    }
    return PreparedCorpus(folder, folder / "tokenizer.model", corpus.tokenizer.vocab_size, description)
