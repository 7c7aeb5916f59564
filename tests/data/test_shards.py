"""The token files hold every document once, are built once, and are rebuilt when something changes."""

import errno
import hashlib
import os
import resource
import shutil

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from orchestrator.data import shards
from orchestrator.data.shards import TokenizerSpec, build
from orchestrator.data.sources import SourceSpec, documents


def split(corpus, ids):
    ends = np.flatnonzero(ids == corpus.tokenizer.eos_id) + 1
    return [corpus.tokenizer.decode(part.tolist()) for part in np.split(ids, ends)[:-1]]


def test_every_document_is_in_exactly_one_part(corpus, specs):
    for spec, part in zip(specs, corpus.parts, strict=True):
        train, validation = split(corpus, part.train), split(corpus, part.validation)
        assert sorted(train + validation) == sorted(documents(spec))
        assert validation and len(validation) < len(train)
        assert part.train.dtype == np.uint16 and part.train[0] == corpus.tokenizer.bos_id


def test_where_bos_is_eos_one_token_lies_between_two_documents(corpus, specs, tmp_path):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|endoftext|>"])
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.txt").write_text("a single document")
    sources = [*specs, SourceSpec("one", "text-folder", str(tmp_path / "one"))]
    found = build(sources, TokenizerSpec(str(tmp_path / "tokenizer.json")), tmp_path / "cache", 0.1)
    end = found.tokenizer.eos_id
    assert found.tokenizer.bos_id == end
    for spec, part in zip(sources, found.parts, strict=True):
        files, texts = [part.train, part.validation], []
        if spec.name == "one":
            assert part.stats["held_out"] == "tail"  # which begins within the document
            files = [np.concatenate(files)]
        for ids in files:
            first, *others = split(found, ids)
            assert (first, ids[0], ids[-1]) == ("", end, end)
            texts += others
        assert sorted(texts) == sorted(documents(spec))  # no other is empty
    # Files of before, with two between documents, are not used; those of any other tokenizer are.
    for each, of, older in ((found, sources, False), (corpus, specs, True)):
        digest = hashlib.sha256(each.tokenizer.model).hexdigest()
        key = shards._key("shards", [shards._describe(spec) for spec in of], digest, 0.1, 0)
        assert (key == each.folder.name) == older


def test_stats_and_entropy(corpus, specs):
    for spec, stats in zip(specs, corpus.sources, strict=True):
        texts = list(documents(spec))
        assert stats["bytes"] == sum(len(text.encode()) for text in texts)
        assert (stats["name"], stats["documents"], stats["skipped_files"]) == (spec.name, len(texts), [])
    assert sum(s["tokens"] for s in corpus.sources) == corpus.train_tokens + corpus.validation_tokens
    ids = np.concatenate([part.validation for part in corpus.parts])
    shares = np.unique(ids, return_counts=True)[1] / len(ids)
    assert corpus.unigram_entropy_nats == pytest.approx(-(shares * np.log(shares)).sum())


def test_the_cache_is_used_and_leaves_nothing_partial(corpus, specs, cache, monkeypatch):
    monkeypatch.setattr(shards, "_write", lambda *a: pytest.fail("built again"))
    assert build(specs, TokenizerSpec(vocab_size=300), cache, 0.1).folder == corpus.folder
    assert not list(cache.glob("partial-*"))


def test_what_a_killed_build_left_is_removed_and_what_another_writes_is_not(specs, cache, tmp_path):
    there = tmp_path / "cache"
    for name in ("partial-killed", "partial-written", "partial-new"):
        (there / name).mkdir(parents=True)
        (there / name / "tokens.bin").write_bytes(b"12")
        if name != "partial-new":
            os.utime(there / name, (1, 1))
    written = shards._held(there / "partial-written")
    assert written is not None
    build(specs, TokenizerSpec(vocab_size=300), there, 0.1)
    os.close(written)
    assert {path.name for path in there.glob("partial-*")} == {"partial-written", "partial-new"}


def test_a_changed_file_is_tokenised_again_and_a_failed_build_leaves_nothing(tmp_path):
    path = tmp_path / "in" / "a.txt"
    path.parent.mkdir()
    path.write_text("some words to learn from this little document " * 50)
    spec = SourceSpec("a", "text-folder", str(path.parent))
    tokenizer = TokenizerSpec(vocab_size=280)
    first = build([spec], tokenizer, tmp_path / "cache", 0.1)
    assert first.sources[0]["held_out"] == "tail"
    assert len(first.parts[0].validation) == round(0.1 * first.sources[0]["tokens"])
    os.utime(path, ns=(1, 1))
    assert build([spec], tokenizer, tmp_path / "cache", 0.1).folder != first.folder

    def stop(done, total, text):
        if "tokenising" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build([spec], tokenizer, tmp_path / "cache", 0.2, stop)
    assert not list((tmp_path / "cache").glob("partial-*"))


@pytest.mark.parametrize("room", [2_000, 8_000])  # for the tokenizer too little; or for the tokens
def test_a_cache_without_room_is_named_and_keeps_nothing_half(room, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("some words to learn from this little document " * 500)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises(OSError) as raised:
            build(
                [SourceSpec("a", "text-folder", str(tmp_path / "in"))],
                TokenizerSpec(vocab_size=280),
                tmp_path / "cache",
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (raised.value.errno, raised.value.filename) == (errno.EFBIG, str(tmp_path / "cache"))
    assert not [path for path in (tmp_path / "cache").iterdir() if "partial" in path.name]


@pytest.mark.parametrize("name", ["index.json", "00-train.bin", "01-validation.bin", "tokenizer.model"])
def test_a_damaged_cache_is_named_and_made_again_when_it_is_removed(name, specs, tmp_path):
    whole = build(specs, TokenizerSpec(vocab_size=300), tmp_path, 0.1)
    path = whole.folder / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=f"{whole.folder.name}, .* is damaged .*: remove it"):
        build(specs, TokenizerSpec(vocab_size=300), tmp_path, 0.1)
    shutil.rmtree(whole.folder)
    assert build(specs, TokenizerSpec(vocab_size=300), tmp_path, 0.1).train_tokens == whole.train_tokens


def test_progress_reaches_the_end(specs, tmp_path):
    calls = []
    build(specs, TokenizerSpec(vocab_size=300), tmp_path, 0.1, lambda *call: calls.append(call))
    done = [call[0] for call in calls]
    assert done == sorted(done) and done[-1] == calls[-1][1]


def test_bad_input(specs, cache, corpus, tmp_path):
    tokenizer = TokenizerSpec(vocab_size=300)
    with pytest.raises(ValueError, match=f"{corpus.train_tokens} training tokens, fewer than the 10000000"):
        build(specs, tokenizer, cache, 0.1, min_tokens=10_000_000)
    for fraction in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="validation_fraction"):
            build(specs, tokenizer, cache, fraction)
    for wrong in ([], [specs[0], specs[0]]):
        with pytest.raises(ValueError, match="at least one source"):
            build(wrong, tokenizer, cache)
    (tmp_path / "t.model").write_text("nonsense")
    with pytest.raises(ValueError, match="t.model"):
        build(specs, TokenizerSpec(path=str(tmp_path / "t.model")), cache)
