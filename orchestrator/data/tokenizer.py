"""A SentencePiece BPE tokenizer as LLaMA's (arXiv:2302.13971, section 2.1), exact on any text.

LLaMA's settings: BPE, digits split, unknown characters as UTF-8 bytes. Two things differ, so that decoding
restores the text: no dummy prefix space, and a literal U+2581, which stands for a space in pieces, is emitted
as its bytes.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import sentencepiece

SPACE_MARK = "\u2581"
# Not learnable: SentencePiece's space and unknown marks, and NUL. They are encoded as bytes.
UNLEARNABLE = str.maketrans("", "", "\u2581\u2585\0")
LONGEST_SENTENCE = 1000  # characters; SentencePiece drops training sentences above max_sentence_length bytes


@dataclass(frozen=True)
class TokenizerSpec:
    """path: an existing tokenizer file; None trains one of vocab_size on sample_bytes of the sources."""

    path: str | None = None
    vocab_size: int = 4096
    sample_bytes: int = 10_000_000


class Tokenizer:
    """Text to ids and back. unk, bos and eos are 0, 1 and 2. `load` reads Llama 3's kind too (`data.byte_pairs`)."""

    def __init__(self, model: bytes) -> None:
        """model: a serialised SentencePiece model. ValueError if it is not one or has no byte fallback."""
        if not model:  # SentencePiece would make an unusable processor of it
            raise ValueError("an empty file")
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ValueError("something else than a SentencePiece model") from error
        self.model = model
        self.vocab_size: int = self._processor.vocab_size()
        self.unk_id: int = self._processor.unk_id()
        self.bos_id: int = self._processor.bos_id()
        self.eos_id: int = self._processor.eos_id()
        self.end_ids: tuple[int, ...] = (self.eos_id,)  # each ends a text that a model writes
        byte_ids = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in range(256)]
        if not all(self._processor.is_byte(i) for i in byte_ids) or min(self.bos_id, self.eos_id) < 0:
            raise ValueError("a SentencePiece model without byte fallback, bos and eos cannot encode every text")
        self._mark_ids = [byte_ids[byte] for byte in SPACE_MARK.encode()]
        self._piece_bytes = [self._bytes_of(i) for i in range(self.vocab_size)]

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a tokenizer file of any kind; ValueError with the path if it is missing or not a tokenizer."""
        from orchestrator.data import byte_pairs

        try:
            model = Path(path).read_bytes()
            return byte_pairs.BytePairTokenizer(model) if byte_pairs.takes(model) else cls(model)
        except OSError as error:
            raise ValueError(f"{path}: expected a tokenizer file ({error.strerror})") from error
        except ValueError as error:
            raise ValueError(f"{path}: expected a tokenizer file, got {error}") from error

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        path: str | Path,
        *,
        sample_bytes: int = 10_000_000,
        total_bytes: int | None = None,
    ) -> Tokenizer:
        """Learn a vocabulary from about sample_bytes of text at most and write it to path, atomically.

        total_bytes: size of all the texts, to spread the sample over them; None takes the first lines.
        """
        writer = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=_sample(texts, sample_bytes, total_bytes),
                model_writer=writer,
                model_type="bpe",
                vocab_size=vocab_size,
                split_digits=True,
                byte_fallback=True,
                normalization_rule_name="identity",
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                allow_whitespace_only_pieces=True,
                user_defined_symbols=[
                    "\n",
                    "\t",
                ],  # never learnt inside a piece, so each would cost a byte token
                unk_id=0,
                bos_id=1,
                eos_id=2,
                pad_id=-1,
                max_sentence_length=8 * LONGEST_SENTENCE,
                num_threads=2,
                minloglevel=2,
            )
        except (RuntimeError, OSError) as error:
            raise ValueError(
                f"cannot train a vocabulary of {vocab_size} pieces on this text: {_advice(error)}"
            ) from error
        tokenizer = cls(writer.getvalue())
        tokenizer.save(path)
        return tokenizer

    def save(self, path: str | Path) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
        try:
            partial.write_bytes(self.model)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)

    def encode(self, text: str, bos: bool = False, eos: bool = False) -> list[int]:
        """Ids of a text. ValueError for an unpaired surrogate, which no UTF-8 text can hold."""
        return self.encode_batch([text], bos, eos)[0]

    def encode_batch(self, texts: Sequence[str], bos: bool = False, eos: bool = False) -> list[list[int]]:
        """Ids of many texts, on two threads."""
        require_text(texts)
        segments = [text.split(SPACE_MARK) for text in texts]
        flat = [segment for parts in segments for segment in parts]
        encoded = iter(self._processor.encode(flat, out_type=int, num_threads=2 if len(flat) > 1 else 1))
        result = []
        for parts in segments:
            ids = [self.bos_id] if bos else []
            ids += next(encoded)
            for _ in parts[1:]:
                ids += self._mark_ids
                ids += next(encoded)
            result.append(ids + [self.eos_id] if eos else ids)
        return result

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; bos, eos and unk are left out. Bytes of a cut character become U+FFFD."""
        pieces = []
        for token in ids:
            if not 0 <= token < self.vocab_size:
                raise ValueError(f"token id {token} is outside the vocabulary 0..{self.vocab_size - 1}")
            pieces.append(self._piece_bytes[token])
        return b"".join(pieces).decode("utf-8", errors="replace")

    def _bytes_of(self, token: int) -> bytes:
        piece = self._processor.id_to_piece(token)
        if self._processor.is_byte(token):
            return bytes([int(piece[1:-1], 16)])
        if self._processor.is_control(token) or self._processor.is_unknown(token):
            return b""
        return piece.replace(SPACE_MARK, " ").encode()


def require_text(texts: Sequence[str]) -> None:
    """ValueError for an unpaired surrogate, which no UTF-8 text can hold."""
    for number, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"text {number}: unpaired surrogate at character {error.start}; expected Unicode text"
            ) from error


def _advice(error: Exception) -> str:
    """SentencePiece's message in our words where it is about too large or too small a vocabulary."""
    text = str(error)
    for words, advice in ((r"set it to a value <= (\d+)", "at most"), (r"required_chars\. \d+ vs (\d+)", "at least")):
        limit = re.search(words, text)
        if limit:
            return f"expected {advice} {limit[1]}; set data.tokenizer.vocab_size (300 or more), or give other text"
    return text


def _sample(texts: Iterable[str], sample_bytes: int, total_bytes: int | None) -> Iterator[str]:
    """Lines spread evenly over the texts: a line is taken whenever the sample has fallen behind its share."""
    share = min(1.0, sample_bytes / total_bytes) if total_bytes else 1.0
    seen = taken = 0
    for text in texts:
        for line in text.split("\n"):
            for start in range(0, len(line), LONGEST_SENTENCE):
                sentence = line[start : start + LONGEST_SENTENCE].translate(UNLEARNABLE)
                size = len(sentence.encode())
                if sentence and taken <= share * seen:
                    taken += size
                    yield sentence
                seen += size
                if taken >= sample_bytes:
                    return
