"""Every text comes back exactly, and what is no tokenizer is refused by name."""

import pytest

from orchestrator.data.tokenizer import SPACE_MARK, Tokenizer, _sample

LETTERS = "abcdefghij"
TEXT = [f"def {a}{b}{c}ing({c}{a}, {b}):\n    return {a}{c} + 37\n" for a in LETTERS for b in LETTERS for c in LETTERS]
AWKWARD = [
    "",
    " ",
    "   leading",
    "trailing  ",
    "a\r\nb\rc\n\n",
    "\0nul\0",
    "".join(map(chr, range(32))) + "\x7f\x85",
    "👩‍👩‍👧‍👦 emoji 🇨🇭",
    f"{SPACE_MARK}a{SPACE_MARK}{SPACE_MARK} b {SPACE_MARK}",
    "\u2585\u2047\ufeff\ufffd\ufffe",
    "<s></s><unk><0x0A>",
    "e\u0301 é ﬁ Ａ ①",
    "\u2028\u2029\u00a0\u3000",
    "\t\tx\t",
    "1234567890",
    "\U0010ffff",
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.train(TEXT, 400, tmp_path_factory.mktemp("tokenizer") / "t.model")


@pytest.mark.parametrize("text", AWKWARD)
def test_round_trip_is_exact(tokenizer, text):
    ids = tokenizer.encode(text, bos=True, eos=True)
    assert tokenizer.decode(ids) == text
    assert (ids[0], ids[-1]) == (1, 2)
    assert 0 not in ids


def test_every_code_point_of_the_first_plane_round_trips(tokenizer):
    text = "".join(chr(code) for code in range(0x10000) if not 0xD800 <= code < 0xE000)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_batch_equals_single_and_digits_are_split(tokenizer):
    assert tokenizer.encode_batch(AWKWARD) == [tokenizer.encode(text) for text in AWKWARD]
    assert len(tokenizer.encode("1234567")) == 7
    assert (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (0, 1, 2, 400)


def test_a_trained_tokenizer_is_the_same_again_and_loads(tokenizer, tmp_path):
    again = Tokenizer.train(TEXT, 400, tmp_path / "t.model")
    assert again.model == tokenizer.model == Tokenizer.load(tmp_path / "t.model").model


def test_unpaired_surrogates_and_foreign_ids_are_refused(tokenizer):
    with pytest.raises(ValueError, match="surrogate at character 2"):
        tokenizer.encode("ab\ud800")
    for foreign in (-1, 400):
        with pytest.raises(ValueError, match="outside the vocabulary"):
            tokenizer.decode([foreign])


@pytest.mark.parametrize("content", [b"", b"hello", b"\x00" * 100])
def test_what_is_no_tokenizer_is_named(tmp_path, content):
    path = tmp_path / "broken.model"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="broken.model"):
        Tokenizer.load(path)
    with pytest.raises(ValueError, match="missing.model"):
        Tokenizer.load(tmp_path / "missing.model")


def test_impossible_vocabularies_are_refused(tmp_path):
    for size in (10, 100_000):
        with pytest.raises(ValueError, match=f"vocabulary of {size}"):
            Tokenizer.train(TEXT[:5], size, tmp_path / "t.model")


def test_the_sample_is_bounded_and_spread():
    lines = [f"{i:09d}" for i in range(1000)]
    sample = list(_sample(lines, 900, 9000))
    assert sum(map(len, sample)) == pytest.approx(900, abs=9)
    assert int(sample[-1]) > 950
