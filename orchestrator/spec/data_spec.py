"""Section `data` of a spec: the mixture of texts, and the tokenizer."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from orchestrator.spec import sense
from orchestrator.spec.quantities import Count, Number, Positive
from orchestrator.spec.section import Section


class TokenizerSpec(Section):
    """The tokenizer: a file, or one that is trained on the text."""

    vocab_size: Annotated[Count, Field(ge=300)] = Field(default=32000, description="Pieces of one that is trained")
    path: Path | None = Field(
        default=None,
        description="A `tokenizer.model` (SentencePiece's, Llama 3's) or a `tokenizer.json`; null: one is trained",
    )


class SourceEntry(Section):
    """One text source of the mixture."""

    name: str = Field(description="For the record; each source has its own")
    kind: Literal["text-folder", "jsonl", "parquet", "python-stdlib"] = Field(
        description="A folder of text files, one document each; JSON lines or Parquet files, one document a row; the "
        "Python sources of this machine"
    )
    proportion: Annotated[Number, Field(gt=0, le=1)] = Field(
        description="Share of the tokens that are trained; they add up to 1"
    )
    path: Path | None = Field(default=None, description="The folder or file; python-stdlib has none")
    text_key: str = Field(default="text", description="Key or column that holds a document's text")
    min_bytes: Positive | None = Field(
        default=None,
        description="Of python-stdlib: installed packages are added to the standard library until there are so many",
    )

    rules = (sense.path_where_needed, sense.min_bytes_where_understood)


class DataSpec(Section):
    """Where the text comes from, and what part is held out for the validation loss."""

    sources: Annotated[list[SourceEntry], Field(min_length=1)]
    tokenizer: TokenizerSpec = TokenizerSpec()
    document_masking: bool = Field(
        default=False, description="No token attends to another document of its sequence; positions begin anew"
    )
    validation_fraction: Annotated[Number, Field(gt=0, lt=0.5)] = Field(
        default=0.01, description="Share of the text that is held out"
    )
    cache: Path = Field(default=Path(".cache/hoofprint"), description="Folder of tokenised text")

    rules = (sense.proportions_add_up, sense.names_differ)
