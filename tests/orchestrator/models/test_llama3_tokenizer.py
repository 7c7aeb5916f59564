"""Llama 3's tokenizer, from a file of ranks and from tokenizer.json: small ones, really trained, in the formats."""

import base64
import json
import random
import sys
from pathlib import Path

import pytest
import regex
import tokenizers
import torch
from click.testing import CliRunner
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from orchestrator.cli import cli
from orchestrator.data import byte_pairs
from orchestrator.data.byte_pairs import BytePairTokenizer
from orchestrator.data.tokenizer import Tokenizer

TEXT = [f"def {a}{b}ing({b}{a}): return {n} + '{a}é'\n\n" for a in "abcdefgh" for b in "aeiou" for n in (7, 12, 345)]
DRAW = random.Random(1)
TEXT += [" ".join("".join(DRAW.choices("abcdefgh", k=DRAW.randint(2, 6))) for _ in range(9)) for _ in range(300)]
AWKWARD = [
    "",
    "   leading and trailing  ",
    "a\r\nb\rc\n\n",
    "".join(map(chr, range(32))) + "\x7f\x85",
    "👩‍👩‍👧‍👦 1234567 e\u0301 ﬁ \ufeff\u2028\u3000",
    "<|begin_of_text|>they're<|eot_id|></s>",
    "".join(DRAW.choices("abcdefghinrtu():' 0123", k=600)),  # words that are no tokens: pairs are joined
]
SPECIAL = byte_pairs._LLAMA3_SPECIAL


@pytest.fixture(scope="module")
def released() -> tokenizers.Tokenizer:
    """As Hugging Face's Llama 3 is made: the same split, byte pairs, special tokens behind them."""
    made = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(tokenizers.Regex(byte_pairs._LLAMA3_SPLIT), "isolated")
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([split, plain])
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False))
    made.add_special_tokens([tokenizers.AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    first = made.token_to_id(SPECIAL[0])
    made.post_processor = processors.TemplateProcessing(f"{SPECIAL[0]} $A", special_tokens=[(SPECIAL[0], first)])
    return made


@pytest.fixture(scope="module")
def files(released: tokenizers.Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """tokenizer.json, and the same tokens as lines of base64 and rank."""
    folder = tmp_path_factory.mktemp("llama3")
    byte_of = {character: byte for byte, character in byte_pairs._characters().items()}
    pieces = sorted(released.get_vocab(with_added_tokens=False).items(), key=lambda item: item[1])
    lines = [
        base64.b64encode(bytes(byte_of[c] for c in piece)).decode() + f" {rank}\n"
        for rank, (piece, _) in enumerate(pieces)
    ]
    (folder / "tokenizer.model").write_text("".join(lines))
    released.save(str(folder / "tokenizer.json"))
    return {"ranks": folder / "tokenizer.model", "json": folder / "tokenizer.json"}


def by_ranks(text: str, path: Path) -> list[int]:
    """The definition: within each piece, join the neighbours of lowest rank until none has one."""
    ranks = {base64.b64decode(line.split()[0]): int(line.split()[1]) for line in path.read_text().splitlines()}
    found = []
    for piece in regex.findall(byte_pairs._LLAMA3_SPLIT, text):
        parts = [bytes([byte]) for byte in piece.encode()]
        while True:
            joined = [
                (ranks[a + b], i) for i, (a, b) in enumerate(zip(parts, parts[1:], strict=False)) if a + b in ranks
            ]
            if not joined:
                break
            _, i = min(joined)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        found += [ranks[part] for part in parts]
    return found


@pytest.mark.parametrize("text", [*AWKWARD, *TEXT[::45]])
def test_both_files_cut_as_the_ranks_define_and_restore_the_text(files: dict[str, Path], text: str) -> None:
    expected = by_ranks(text, files["ranks"])
    for path in files.values():
        tokenizer = Tokenizer.load(path)
        assert tokenizer.encode(text) == expected
        whole = tokenizer.encode(text, bos=True, eos=True)
        assert whole == [tokenizer.bos_id, *expected, tokenizer.eos_id]
        assert tokenizer.decode(whole) == text


def test_special_tokens_lie_behind_the_ranks_as_in_metas_code(files: dict[str, Path]) -> None:
    for path in files.values():
        tokenizer = Tokenizer.load(path)
        count = len(files["ranks"].read_text().splitlines())
        assert tokenizer.vocab_size == count + 256
        assert (tokenizer.bos_id, tokenizer.eos_id) == (count, count + 1)
        assert set(tokenizer.end_ids) == {count + 1, count + 9}  # <|eot_id|> ends a turn of the chat models


def test_a_cut_character_waits_for_its_rest(files: dict[str, Path]) -> None:
    tokenizer = Tokenizer.load(files["ranks"])
    ids = tokenizer.encode("✓")
    assert len(ids) == 3 and tokenizer.decode(ids[:2]) == "\ufffd" and tokenizer.decode(ids) == "✓"


def test_a_trained_corpus_keeps_it_under_its_own_name(files: dict[str, Path], tmp_path: Path) -> None:
    for path in files.values():
        Tokenizer.load(path).save(tmp_path / "tokenizer.model")
        assert isinstance(Tokenizer.load(tmp_path / "tokenizer.model"), BytePairTokenizer)


def test_what_it_cannot_use_is_refused_with_the_reason(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = files["ranks"].read_text().splitlines(keepends=True)
    said = json.loads(files["json"].read_text())

    def refused(content: str) -> str:
        (tmp_path / "t").write_text(content)
        with pytest.raises(ValueError) as refusal:
            Tokenizer.load(tmp_path / "t")
        return str(refusal.value)

    assert "line 3 is none" in refused("".join([*lines[:2], "a!b 2\n", *lines[3:]]))
    assert "cut or damaged" in refused("".join(lines[:300] + lines[301:]))
    assert "without 56 of the 256 bytes" in refused("".join(lines[:200]))
    assert "no tokenizer.json of byte pairs" in refused("{}")
    assert "changes texts" in refused(json.dumps(said | {"normalizer": {"type": "Lowercase"}}))
    assert "begin and end a text" in refused(json.dumps(said | {"added_tokens": []}))
    model = said["model"] | {"vocab": {"▁a": 0}, "merges": []}
    assert "not of byte pairs" in refused(json.dumps(said | {"model": model}))
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert "pip install 'hoofprint[llama3]'" in refused("".join(lines))


def test_a_released_llama_3_generates_as_transformers_does(files: dict[str, Path], tmp_path: Path) -> None:
    """Tied matrices, grouped heads, slowed rope, tokenizer.json; and back out with a file of ranks."""
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(files["json"]), bos_token=SPECIAL[0], eos_token=SPECIAL[1]
    )
    torch.manual_seed(0)
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192}  # fmt: skip
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, rope_parameters=rope, tie_word_embeddings=True,
        initializer_range=0.3, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    theirs = transformers.LlamaForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path / "released")
    tokenizer.save_pretrained(tmp_path / "released")
    prompt = tokenizer("def bading(", return_tensors="pt")
    new = theirs.generate(**prompt, max_new_tokens=9, do_sample=False)[0, prompt.input_ids.shape[1] :]

    def hoofprint(*arguments: object) -> dict:
        done = CliRunner().invoke(cli, [*map(str, arguments), "--json"])
        assert done.exit_code == 0, (done.output, done.exception)
        return json.loads(done.stdout)

    def text_of(model: Path) -> str:
        said = hoofprint("generate", model, "--prompt", "def bading(", "--max-tokens", 9, "--temperature", 0)
        return said["completions"][0]["text"]

    assert hoofprint("import", tmp_path / "released", "-o", tmp_path / "model")["tokenizer"][0] == "tokenizer.json"
    expected = tokenizer.decode(new, skip_special_tokens=True)
    assert len(expected) > 5 and text_of(tmp_path / "model") == expected
    (tmp_path / "model" / "tokenizer.json").unlink()
    (tmp_path / "model" / "tokenizer.model").write_bytes(files["ranks"].read_bytes())
    assert text_of(tmp_path / "model") == expected
    hoofprint("export", tmp_path / "model", "-o", tmp_path / "back", "--format", "meta")
    assert (tmp_path / "back" / "tokenizer.model").read_bytes() == files["ranks"].read_bytes()
    (tmp_path / "model" / "tokenizer.model").write_bytes(files["json"].read_bytes())  # as a run keeps it
    hoofprint("export", tmp_path / "model", "-o", tmp_path / "again", "--format", "meta")
    assert not (tmp_path / "again" / "tokenizer.model").exists()
    hoofprint("import", tmp_path / "again", "-o", tmp_path / "there", "--sequence-length", 64,
              "--rope-scaling-factor", 8)  # fmt: skip
    assert (tmp_path / "there" / "tokenizer.json").read_bytes() == files["json"].read_bytes()
    for kind, content in files.items():
        (tmp_path / "model" / "tokenizer.model").write_bytes(content.read_bytes())
        said = hoofprint("export", tmp_path / "model", "-o", tmp_path / kind)
        assert said["tokenizer"][:2] == ["tokenizer.json", "tokenizer_config.json"]
        assert not (tmp_path / kind / "tokenizer.model").exists()
        again = transformers.AutoTokenizer.from_pretrained(tmp_path / kind)
        assert again("def bading(").input_ids == prompt.input_ids[0].tolist()
