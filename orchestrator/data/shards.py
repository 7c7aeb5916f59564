"""Build token files: each source tokenised once, kept under a key of everything that decides its content."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.data.corpus import SourceTokens, TokenizedCorpus
from orchestrator.data.sources import SourceSpec, batches, documents, files
from orchestrator.data.tokenizer import Tokenizer, TokenizerSpec

VERSION = 1  # of the files' format: raise it when the same input would give other files
BATCH_CHARACTERS = 2_000_000
NEW_S = 60.0
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
Progress = Callable[[int, int | None, str], None]


def build(
    sources: Sequence[SourceSpec],
    tokenizer_spec: TokenizerSpec,
    cache_dir: str | Path,
    validation_fraction: float = 0.01,
    progress: Progress | None = None,
    *,
    seed: int = 0,
    min_tokens: int = 0,
) -> TokenizedCorpus:
    """Tokenise the sources, or open them from the cache.

    validation_fraction: share of documents held out, chosen by a hash of (seed, document index). A source
    with too few documents for that gives the last part of its tokens (stats: held_out "documents" or "tail").
    progress: called with (bytes of text done, bytes in all or None if unknown, what is being done).
    min_tokens: ValueError if fewer training tokens than this (one batch) come out.
    """
    if not sources or len({spec.name for spec in sources}) != len(sources):
        raise ValueError(f"expected at least one source, each with its own name, got {[s.name for s in sources]}")
    if not 0 < validation_fraction <= 0.5:
        raise ValueError(f"validation_fraction must be above 0 and at most 0.5, got {validation_fraction}")
    report = progress or (lambda done, total, text: None)
    cache = Path(cache_dir)
    described = [_describe(spec) for spec in sources]
    total_bytes = _total_bytes(sources, described)
    with _place_named(cache):
        tokenizer = _tokenizer(sources, described, tokenizer_spec, cache, total_bytes, report)
        digest = hashlib.sha256(tokenizer.model).hexdigest()
        layout = ["one token between documents"] if _is_shared(tokenizer) else []  # older files have two
        folder = cache / _key("shards", described, digest, validation_fraction, seed, *layout)
        if not folder.exists():
            cache.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(cache)
            partial = Path(tempfile.mkdtemp(prefix="partial-", dir=cache))
            held = _held(partial)
            try:
                _write(partial, sources, tokenizer, validation_fraction, seed, total_bytes, report)
                try:
                    os.rename(partial, folder)
                except OSError:
                    if not folder.exists():  # otherwise another process built the same files first: use its copy
                        raise
            finally:
                shutil.rmtree(partial, ignore_errors=True)
                if held is not None:
                    os.close(held)
    corpus = _open(folder, sources, tokenizer)
    if corpus.train_tokens < min_tokens:
        raise ValueError(
            f"the corpus has {corpus.train_tokens} training tokens, fewer than the {min_tokens} of one "
            "batch; add text, or make training.batch_tokens smaller"
        )
    return corpus


def open_corpus(folder: str | Path, sources: Sequence[SourceSpec]) -> TokenizedCorpus:
    """The corpus that `build` made of `sources` in `folder`, memory-mapped: what a worker opens."""
    return _open(Path(folder), sources, Tokenizer.load(Path(folder) / "tokenizer.model"))


def _held(folder: Path) -> int | None:
    """A lock on a folder, which ends with the process however that dies; None where it is held, or cannot be had."""
    opened = None
    try:
        opened = os.open(folder, os.O_RDONLY)
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # somebody's, gone, or on storage without locks
        if opened is not None:
            os.close(opened)
        return None
    return opened


def _remove_abandoned(cache: Path) -> None:
    """What a process left that was killed while it wrote."""
    for partial in cache.glob("partial-*"):
        with suppress(FileNotFoundError):  # its writer was faster
            if time.time() - partial.stat().st_mtime < NEW_S:  # perhaps not locked yet
                continue
        held = _held(partial)
        if held is not None:
            shutil.rmtree(partial, ignore_errors=True)
            os.close(held)


@contextmanager
def _place_named(cache: Path) -> Iterator[None]:
    """Of a write that finds no room the system does not say where it went."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno not in NO_ROOM:
            raise
        raise OSError(error.errno, error.strerror, str(cache)) from error


def _tokenizer(
    sources: Sequence[SourceSpec],
    described: list,
    spec: TokenizerSpec,
    cache: Path,
    total_bytes: int | None,
    report: Progress,
) -> Tokenizer:
    if spec.path is not None:
        return Tokenizer.load(spec.path)
    path = cache / (_key("tokenizer", described, spec.vocab_size, spec.sample_bytes) + ".model")
    if path.exists():
        return Tokenizer.load(path)
    report(0, total_bytes, f"training a tokenizer of {spec.vocab_size} pieces")
    texts = (text for source in sources for text in documents(source))
    return Tokenizer.train(texts, spec.vocab_size, path, sample_bytes=spec.sample_bytes, total_bytes=total_bytes)


def _write(
    folder: Path,
    sources: Sequence[SourceSpec],
    tokenizer: Tokenizer,
    validation_fraction: float,
    seed: int,
    total_bytes: int | None,
    report: Progress,
) -> None:
    dtype, shared = _dtype(tokenizer), _is_shared(tokenizer)
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    stats, done_bytes = [], 0
    for number, spec in enumerate(sources):
        report(done_bytes, total_bytes, f"tokenising {spec.name}")
        skipped: list[str] = []
        document = source_bytes = 0
        train_path, validation_path = _paths(folder, number)
        with train_path.open("wb") as train, validation_path.open("wb") as validation:
            for texts in batches(documents(spec, skipped), BATCH_CHARACTERS):
                source_bytes += sum(len(text.encode()) for text in texts)
                for ids in tokenizer.encode_batch(texts, bos=True, eos=not shared):
                    held_out = _draw(seed, document) < validation_fraction
                    (validation if held_out else train).write(np.asarray(ids, dtype).tobytes())
                    document += 1
                report(done_bytes + source_bytes, total_bytes, f"tokenising {spec.name}")
            for file in (train, validation):
                if shared and file.tell():  # no document follows that would end the last one
                    file.write(np.asarray([tokenizer.eos_id], dtype).tobytes())
        done_bytes += source_bytes
        by_documents = train_path.stat().st_size > 0 and validation_path.stat().st_size > 0
        if not by_documents:
            tokens = np.concatenate([np.fromfile(path, dtype) for path in (train_path, validation_path)])
            cut = len(tokens) - max(1, round(len(tokens) * validation_fraction))
            for path, part in ((train_path, tokens[:cut]), (validation_path, tokens[cut:])):
                with path.open("wb") as file:  # numpy's `tofile` would not say that the disk is full
                    file.write(part.data)
        counts += np.bincount(np.fromfile(validation_path, dtype), minlength=len(counts))
        size = train_path.stat().st_size + validation_path.stat().st_size
        stats.append(
            {
                "bytes": source_bytes,
                "documents": document,
                "tokens": size // dtype.itemsize,
                "skipped_files": skipped,
                "held_out": "documents" if by_documents else "tail",
            }
        )
    shares = counts[counts > 0] / counts.sum()
    index = {
        "version": VERSION,
        "sources": stats,
        "unigram_entropy_nats": float(-(shares * np.log(shares)).sum()),
    }
    (folder / "index.json").write_text(json.dumps(index, indent=1))
    tokenizer.save(folder / "tokenizer.model")


def _open(folder: Path, sources: Sequence[SourceSpec], tokenizer: Tokenizer) -> TokenizedCorpus:
    """ValueError where a file is not as it was written: a machine that lost its power may leave it empty."""
    parts = []
    try:
        index = json.loads((folder / "index.json").read_text())
        for number, (spec, stats) in enumerate(zip(sources, index["sources"], strict=True)):
            train, validation = (np.memmap(path, _dtype(tokenizer), "r") for path in _paths(folder, number))
            if len(train) + len(validation) != stats["tokens"]:
                raise ValueError(f"source {spec.name!r} has {len(train) + len(validation)} of {stats['tokens']} tokens")
            parts.append(SourceTokens(spec.name, spec.kind, spec.proportion, stats, train, validation))
        if (folder / "tokenizer.model").read_bytes() != tokenizer.model:
            raise ValueError("tokenizer.model is another")
        return TokenizedCorpus(folder, tokenizer, tuple(parts), index["unigram_entropy_nats"])
    except (FileNotFoundError, ValueError, KeyError) as error:
        raise ValueError(
            f"{folder}, the text as it was tokenised before, is damaged ({error}): remove it, and it is made again"
        ) from error


def _describe(spec: SourceSpec) -> tuple[dict[str, Any], list[tuple[str, int, int]]]:
    """What decides the text of a source; its name and its proportion do not."""
    options = {key: value for key, value in asdict(spec).items() if key not in ("name", "proportion")}
    listed = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files(spec)]
    return options, listed


def _total_bytes(sources: Sequence[SourceSpec], described: list) -> int | None:
    """Bytes of text to expect; None with parquet, whose files are compressed."""
    if any(spec.kind == "parquet" for spec in sources):
        return None
    sizes = (sum(size for _, size, _ in listed) for _, listed in described)
    return sum(min(size, spec.max_bytes or size) for spec, size in zip(sources, sizes, strict=True))


def _key(what: str, *parts: object) -> str:
    return f"{what}-{hashlib.sha256(json.dumps([VERSION, *parts]).encode()).hexdigest()[:24]}"


def _paths(folder: Path, number: int) -> tuple[Path, Path]:
    return folder / f"{number:02d}-train.bin", folder / f"{number:02d}-validation.bin"


def _dtype(tokenizer: Tokenizer) -> np.dtype:
    return np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")


def _is_shared(tokenizer: Tokenizer) -> bool:
    """Whether one token both ends a document and begins the next.

    With two of them between documents, document masking would make a document of the first, whose next token is
    the second: a model would learn that every other document has no text.
    """
    return tokenizer.bos_id == tokenizer.eos_id


def _draw(seed: int, document: int) -> float:
    """A number in [0, 1) that depends on nothing but its arguments."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{document}".encode()).digest()[:6], "big") / 2**48
