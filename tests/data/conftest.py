"""A small corpus of two sources."""

import pytest

from orchestrator.data.shards import TokenizerSpec, build
from orchestrator.data.sources import SourceSpec


@pytest.fixture(scope="session")
def specs(tmp_path_factory):
    root = tmp_path_factory.mktemp("texts")
    words = [f"{a}{b}ing" for a in ("walk", "turn", "look", "sing", "mark") for b in "abcdefghij"]
    for name, count in (("code", 120), ("prose", 40)):
        (root / name).mkdir()
        for i in range(count):
            (root / name / f"{i:03d}.txt").write_text(
                f"{name} {i}: " + " ".join(words[i * j % 50] + str(i * j) for j in range(30))
            )
    return [
        SourceSpec("code", "text-folder", str(root / "code"), 3.0),
        SourceSpec("prose", "text-folder", str(root / "prose"), 1.0),
    ]


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def corpus(specs, cache):
    return build(specs, TokenizerSpec(vocab_size=300), cache, 0.1)
