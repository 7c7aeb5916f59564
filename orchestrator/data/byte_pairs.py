"""Llama 3's kind of tokenizer: byte pairs, from a file of ranks (Meta) or from tokenizer.json (Hugging Face).

The work is done by the library `tokenizers` (an optional extra: `pip install hoofprint[llama3]`). Text is text: what
reads like a special token in it is cut like any other characters, and decoding restores it.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Sequence
from typing import Any

from orchestrator.data.tokenizer import Tokenizer, require_text

_RANKS = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")
# How Llama 3 cuts a text before it pairs bytes, and the 256 tokens behind its ranks: meta-llama/llama3, tokenizer.py
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_RESERVED = "<|reserved_special_token_{}|>"
_LLAMA3_SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    *(_RESERVED.format(number) for number in range(4)),
    "<|start_header_id|>",
    "<|end_header_id|>",
    _RESERVED.format(4),
    "<|eot_id|>",
    *(_RESERVED.format(number) for number in range(5, 251)),
)
# Names of the tokens that begin and end a text: tokenizer.json has them, and does not say which they are.
_ENDS = (("<|begin_of_text|>", "<|end_of_text|>"), ("<s>", "</s>"), ("<|endoftext|>", "<|endoftext|>"))
_END_OF_TURN = "<|eot_id|>"
_AWKWARD = " a  b\r\n\té✓ 1234567 <s>Ａe\u0301 \0"


def takes(model: bytes) -> bool:
    """Whether a file's content is of this kind, whatever its name."""
    return is_json(model) or _RANKS.match(model) is not None


def is_json(model: bytes) -> bool:
    return model.lstrip().startswith(b"{")


class BytePairTokenizer(Tokenizer):
    """Text to ids and back, as `Tokenizer`."""

    def __init__(self, model: bytes) -> None:
        """model: the content of either file. ValueError where the library is missing, or it is of another kind."""
        try:
            import tokenizers
        except ImportError as error:
            raise ValueError(
                "a byte-pair tokenizer (Llama 3's kind), which needs tokenizers: pip install 'hoofprint[llama3]'"
            ) from error
        self.model = model
        self.description = _checked(model) if is_json(model) else _from_ranks(model)
        try:
            self._pairs = tokenizers.Tokenizer.from_str(self.description)
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"a tokenizer.json that tokenizers cannot read: {error}") from error
        self._pairs.encode_special_tokens = True
        self._pairs.no_padding()
        self._pairs.no_truncation()
        ids = self._pairs.get_vocab(with_added_tokens=True)
        self.vocab_size = max(ids.values()) + 1
        self.unk_id = -1  # every byte has a token
        names = next((pair for pair in _ENDS if all(name in ids for name in pair)), None)
        if names is None:
            known = "; ".join(" and ".join(pair) for pair in _ENDS)
            raise ValueError(f"a tokenizer without known tokens that begin and end a text; known are {known}")
        self.bos_id, self.eos_id = (ids[name] for name in names)
        self.end_ids = tuple({self.eos_id, ids.get(_END_OF_TURN, self.eos_id)})
        added = self._pairs.get_added_tokens_decoder()
        self._piece_bytes = [b""] * self.vocab_size
        bytes_of = {character: byte for byte, character in _characters().items()}
        for piece, token in ids.items():
            if token not in added:
                self._piece_bytes[token] = bytes(bytes_of[character] for character in piece)
            elif not added[token].special:
                self._piece_bytes[token] = piece.encode()
        if self.decode(self.encode(_AWKWARD)) != _AWKWARD:
            raise ValueError("a tokenizer.json that changes texts: give the model's SentencePiece file instead")

    def name_of(self, token: int) -> str:
        """How a special token is written."""
        name = self._pairs.id_to_token(token)
        assert name is not None
        return name

    def encode_batch(self, texts: Sequence[str], bos: bool = False, eos: bool = False) -> list[list[int]]:
        require_text(texts)
        before, after = [self.bos_id] * bos, [self.eos_id] * eos
        found = self._pairs.encode_batch(list(texts), add_special_tokens=False)
        return [[*before, *each.ids, *after] for each in found]


def _checked(model: bytes) -> str:
    """The content of a tokenizer.json of byte pairs; ValueError for others."""
    try:
        found = json.loads(model)
        kind, vocabulary = found["model"]["type"], found["model"]["vocab"]
        characters = set("".join(vocabulary))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        said = f"it has no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"no tokenizer.json of byte pairs: {said}") from error
    if kind != "BPE" or not characters <= set(_characters().values()):
        raise ValueError("a tokenizer.json that is not of byte pairs: give the model's SentencePiece file instead")
    missing = set(_characters().values()) - set(vocabulary)
    if missing:
        raise ValueError(
            f"a tokenizer.json without a token for {len(missing)} of the 256 bytes: it cannot encode every text"
        )
    return model.decode()


def _from_ranks(model: bytes) -> str:
    """The same of a file of ranks: a line for each token, its bytes in base64 and its rank."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(model.splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise ValueError(f"a file of ranks whose line {number} is none: {line[:40]!r}") from error
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise ValueError(f"a file of ranks that does not have each of 0 to {len(ranks) - 1} once: it is cut or damaged")
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise ValueError(f"a file of ranks without {len(missing)} of the 256 bytes: it cannot encode every text")
    characters = _characters()

    def piece(token: bytes) -> str:
        return "".join(characters[byte] for byte in token)

    # The lowest rank is joined first, so that a pair's place among the merges is the rank of what it makes.
    merges: list[tuple[str, str]] = []
    for token in sorted(ranks, key=ranks.__getitem__):
        halves = [(token[:at], token[at:]) for at in range(1, len(token))]
        known = [pair for pair in halves if pair[0] in ranks and pair[1] in ranks]
        known.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges += [(piece(first), piece(second)) for first, second in known]
    special = [
        {"id": len(ranks) + place, "content": name, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for place, name in enumerate(_LLAMA3_SPECIAL)
    ]  # fmt: skip
    bytes_as_characters = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": _LLAMA3_SPLIT}, "behavior": "Isolated", "invert": False}
    bos = _LLAMA3_SPECIAL[0]
    begun = [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    said: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": special,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytes_as_characters]},
        "post_processor": {  # not for us: whoever loads an export begins texts as we do
            "type": "TemplateProcessing",
            "single": begun,
            "pair": [*begun, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {bos: {"id": bos, "ids": [len(ranks)], "tokens": [bos]}},
        },
        "decoder": bytes_as_characters,
        "model": {
            "type": "BPE",
            "ignore_merges": True,  # a whole word that is a token stays one
            "vocab": {piece(token): rank for token, rank in ranks.items()},
            "merges": merges,
        },
    }
    return json.dumps(said)


def _characters() -> dict[int, str]:
    """The character that stands for each byte in pieces (GPT-2): itself where it can be seen, else one from 256 on."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {byte: chr(byte) for byte in seen} | {byte: chr(256 + place) for place, byte in enumerate(hidden)}
