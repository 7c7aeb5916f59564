"""A sequence depends on its global index and the seed, on nothing else."""

from collections import Counter

import numpy as np
import pytest

from orchestrator.data import stream as stream_module
from orchestrator.data.corpus import SourceTokens, TokenizedCorpus
from orchestrator.data.stream import PERIOD, TokenStream, _permutation

LENGTH = 16


@pytest.fixture
def stream(corpus):
    return TokenStream(corpus, None, LENGTH, seed=7)


def test_batches_do_not_depend_on_how_they_are_cut(stream, corpus):
    whole = stream.batch(100, 24)
    assert whole.shape == (24, LENGTH + 1) and whole.dtype == np.int64
    for ranks in (1, 2, 3, 8):
        share = 24 // ranks
        other = TokenStream(corpus, None, LENGTH, seed=7)
        cut = [other.batch(100 + rank * share, share) for rank in reversed(range(ranks))]
        assert np.array_equal(np.concatenate(cut[::-1]), whole)
    assert not np.array_equal(TokenStream(corpus, None, LENGTH, seed=8).batch(100, 24), whole)


def test_an_epoch_of_a_source_shows_each_sequence_once(stream):
    dealt, seen, index = stream.lengths[1], [], 0
    while len(seen) < 2 * dealt:
        if stream.source_of(index)[0] == 1:
            seen.append(stream.batch(index, 1)[0].tobytes())
        index += 1
    assert Counter(seen[:dealt]) == Counter(seen[dealt:])
    assert seen[:dealt] != seen[dealt:]
    train = stream.corpus.parts[1].train.astype(np.int64)
    expected = [train[i * LENGTH : (i + 1) * LENGTH + 1].tobytes() for i in range(dealt)]
    assert Counter(seen[:dealt]) == Counter(expected)


@pytest.mark.parametrize("weights", [(3, 1), (0.67, 0.33), (0.9999, 0.0001), (1, 1)])
def test_proportions_hold_from_the_start(corpus, weights):
    stream = TokenStream(corpus, weights, LENGTH, 0)
    share, count = weights[1] / sum(weights), 0
    for index in range(2 * PERIOD):
        source, dealt = stream.source_of(index)
        assert dealt == (count if source else index - count)
        count += source
        assert abs(count - share * (index + 1)) <= 1 + 1e-6
    assert count == pytest.approx(2 * PERIOD * share)


def test_a_stream_tells_its_position(stream, corpus):
    stream.position = 1000
    assert stream.state() == {"seed": 7, "epoch": 1000 // sum(stream.lengths), "position": 1000}
    assert TokenStream(corpus, None, LENGTH, 7, 1000).state() == stream.state()
    with pytest.raises(ValueError, match="not negative"):
        TokenStream(corpus, None, LENGTH, -1)


def test_far_positions_are_reached_at_once(stream):
    assert stream.batch(10**12, 2).shape == (2, LENGTH + 1)


def test_validation_batches_are_held_out_bounded_and_spread(stream, corpus):
    batches = list(stream.validation_batches(LENGTH, 10, batch_size=4))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    everything = np.concatenate(list(stream.validation_batches(LENGTH, 10**9)))
    assert len(everything) == sum((len(part.validation) - 1) // LENGTH for part in corpus.parts)
    rows = {row.tobytes() for row in everything}
    assert all(row.tobytes() in rows for batch in batches for row in batch)
    with pytest.raises(ValueError, match="held-out tokens are fewer"):
        next(stream.validation_batches(10**6, 1))
    with pytest.raises(ValueError, match="must be positive"):
        next(stream.validation_batches(LENGTH, 0))


def test_permutations_are_permutations_and_fixed():
    assert sorted(_permutation(1000, 1, "a", 0)) == list(range(1000))
    assert not np.array_equal(_permutation(1000, 1, "a", 0), _permutation(1000, 1, "a", 1))
    # Written out, because a run that resumes under another numpy must see the same order.
    assert _permutation(8, 0, "a", 0).tolist() == [6, 7, 0, 3, 2, 4, 5, 1]


def test_a_source_is_put_in_order_once_an_epoch_however_many_there_are(corpus, monkeypatch):
    tokens = np.arange(5 * LENGTH + 1, dtype=np.uint16)  # 5 sequences
    parts = tuple(SourceTokens(f"source {i}", "jsonl", 1.0, {}, tokens, tokens) for i in range(40))
    stream = TokenStream(TokenizedCorpus(corpus.folder, corpus.tokenizer, parts, 0.0), None, LENGTH, seed=7)
    asked = []

    def counted(length, seed, name, epoch):
        asked.append((name, epoch))
        return _permutation(length, seed, name, epoch)

    monkeypatch.setattr(stream_module, "_permutation", counted)
    for start in range(0, 40 * 5 * 3, 8):
        stream.batch(start, 8)
    assert sorted(asked) == sorted((part.name, epoch) for part in parts for epoch in range(3))
    assert len(stream._orders) == 40  # of the epochs before nothing is kept


@pytest.mark.parametrize("weights", [(1,), (1, 0), (1, -1), (1, float("inf")), (1, 1e-9)])
def test_bad_proportions_are_refused(corpus, weights):
    with pytest.raises(ValueError, match="proportion"):
        TokenStream(corpus, weights, LENGTH, 0)


def test_bad_lengths_are_refused(corpus, stream):
    with pytest.raises(ValueError, match="fewer than one sequence"):
        TokenStream(corpus, None, 10**6, 0)
    with pytest.raises(ValueError, match="must be positive"):
        TokenStream(corpus, None, 0, 0)
    with pytest.raises(ValueError, match="not be negative"):
        stream.batch(-1, 1)
