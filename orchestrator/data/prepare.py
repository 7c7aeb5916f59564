"""From the spec's data section to a tokenised corpus on disk, and what the run's record says of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.data.corpus import TokenizedCorpus
from orchestrator.data.shards import Progress, TokenizerSpec, build
from orchestrator.data.sources import SourceSpec
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.file import NOTHING, BadInput


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
    """Tokenises the sources, or opens them from the cache; BadInput where text or tokenizer cannot be used."""
    tokenizer = experiment.data.tokenizer
    try:
        corpus = build(
            source_specs(experiment),
            TokenizerSpec(str(tokenizer.path) if tokenizer.path else None, tokenizer.vocab_size),
            experiment.data.cache.resolve(),
            experiment.data.validation_fraction,
            progress,
            seed=experiment.seed,
            min_tokens=experiment.training.batch_tokens + 1,
        )
        _require_sequences(corpus, experiment.model.sequence_length)
    except ValueError as error:
        raise BadInput(f"{error}\n{NOTHING}") from error
    folder = Path(corpus.folder)
    description = {
        "train_tokens": corpus.train_tokens,
        "validation_tokens": corpus.validation_tokens,
        "unigram_entropy_nats": corpus.unigram_entropy_nats,
        "sources": corpus.sources,
    }
    return PreparedCorpus(folder, folder / "tokenizer.model", corpus.tokenizer.vocab_size, description)


def _require_sequences(corpus: TokenizedCorpus, length: int) -> None:
    """ValueError where a worker would find too little text: in its first step, or hours later in an evaluation."""
    for part in corpus.parts:
        if len(part.train) <= length:
            raise ValueError(
                f"source {part.name!r} has {len(part.train)} training tokens, fewer than one sequence of {length} + 1; "
                "add text to it, or make model.sequence_length smaller"
            )
    if all(len(part.validation) <= length for part in corpus.parts):
        raise ValueError(
            f"the held-out text has {corpus.validation_tokens} tokens, no source has a sequence of {length} + 1; "
            "raise data.validation_fraction, add text, or make model.sequence_length smaller"
        )
