"""Generation: a batch of prompts of different lengths, each as if it were alone, and as transformers has it."""

import gc
import math
import random
import weakref
from collections import Counter

import pytest
import torch
from weights_fakes import to_hf_state_dict

from model.cache import Cache
from model.config import LlamaConfig
from model.generate import Generation, Sampling, pick
from model.init import init_weights
from model.transformer import Llama
from model.weights.hf_config import config_dict

CONTEXT = 48


def build(n_kv_heads: int = 2, tied: bool = False) -> Llama:
    # A large init_std: of nearly even probabilities rounding would decide.
    model = Llama(
        LlamaConfig(
            dim=64, n_layers=3, n_heads=4, n_kv_heads=n_kv_heads, vocab_size=97, sequence_length=CONTEXT, init_std=0.2,
            tie_embeddings=tied,
        )
    )  # fmt: skip
    init_weights(model, seed=1)
    return model.eval()


def draw_prompts(*lengths: int) -> list[list[int]]:
    draw = random.Random(7)
    return [[draw.randrange(3, 97) for _ in range(length)] for length in lengths]


def texts(generation: Generation) -> list[list[int]]:
    rows = [list(row) for row in zip(*generation, strict=True)]
    return [[token for token in row if token is not None] for row in rows]


def transformers_greedy(model: Llama, prompts: list[list[int]], new: int) -> list[list[int]]:
    transformers = pytest.importorskip("transformers")
    config = model.config
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig.from_dict(config_dict(config) | {"pad_token_id": 0})
    ).eval()
    state = to_hf_state_dict(model.state_dict())
    missing = theirs.load_state_dict(state, strict=not config.tie_embeddings).missing_keys
    assert set(missing) <= {"lm_head.weight"}
    longest = max(map(len, prompts))
    padded = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    seen = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    out = theirs.generate(padded, attention_mask=seen, max_new_tokens=new, do_sample=False)
    return out[:, longest:].tolist()


@pytest.mark.parametrize(("n_kv_heads", "tied"), [(4, False), (2, False), (1, True)])
def test_greedy_text_equals_transformers(n_kv_heads: int, tied: bool) -> None:
    model, prompts = build(n_kv_heads, tied), draw_prompts(5, 17, 1, 9)
    found = texts(Generation(model, prompts, max_new_tokens=30))
    assert found == transformers_greedy(model, prompts, 30)
    assert len({tuple(row) for row in found}) == 4 and all(len(set(row)) > 5 for row in found)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.3, top_p=0.9, seed=5)])
def test_a_batch_is_what_each_prompt_gives_alone(sampling: Sampling) -> None:
    model, prompts, limits = build(), draw_prompts(3, 20, 1, 11), [12, 28, 40, 5]
    together = texts(Generation(model, prompts, max_new_tokens=limits, sampling=sampling))
    assert [len(row) for row in together] == limits
    for row, prompt in enumerate(prompts):
        own = Sampling(temperature=sampling.temperature, top_p=sampling.top_p, seed=sampling.seed + row)
        assert texts(Generation(model, [prompt], max_new_tokens=limits[row], sampling=own)) == [together[row]]


def test_logits_equal_those_of_the_whole_text() -> None:
    model, prompts = build(), draw_prompts(4, 7)
    more = torch.tensor([[50, 51, 52], [60, 61, 62]])
    cache = Cache([4, 7], 12, model.config, model.embedding.weight.detach())
    with torch.inference_mode():
        said = [model(torch.tensor([prompts[0] + [0] * 3, prompts[1]]), cache=cache)]
        for column in range(3):
            cache.advance()
            said.append(model(more[:, column : column + 1], cache=cache))
        for row, prompt in enumerate(prompts):
            whole = model(torch.tensor([prompt + more[row].tolist()]))[0]
            for step, logits in enumerate(said):
                torch.testing.assert_close(logits[row, 0], whole[len(prompt) - 1 + step], atol=1e-5, rtol=1e-5)


def test_a_stride_looks_further_and_changes_nothing() -> None:
    model, prompts = build(), draw_prompts(6, 6)
    said = []
    for stride in (1, 8):
        cache = Cache([6, 6], 20, model.config, model.embedding.weight.detach(), stride=stride)
        with torch.inference_mode():
            model(torch.tensor(prompts), cache=cache)
            cache.advance()
            said.append(model(torch.tensor([[9], [8]]), cache=cache))
            assert cache.end == (7 if stride == 1 else 8)
    torch.testing.assert_close(said[1], said[0], atol=1e-5, rtol=1e-5)


def test_texts_end_at_a_stop_token_at_their_limit_or_from_outside() -> None:
    model, prompts = build(), draw_prompts(5, 17, 9)
    free = texts(Generation(model, prompts, max_new_tokens=20))
    stop = free[0][7]
    generation = Generation(model, prompts, max_new_tokens=20, stop_ids=[stop, 10**6])
    given = []
    for number, step in enumerate(generation):
        given.append(step)
        if number == 3:
            generation.end(2)
    rows = [[token for token in row if token is not None] for row in zip(*given, strict=True)]
    assert rows[0] == free[0][: free[0].index(stop)]
    assert rows[1] == (free[1][: free[1].index(stop)] if stop in free[1] else free[1])
    assert rows[2] == free[2][:4]
    assert generation.endings == ["stop", "stop" if stop in free[1] else "length", "stop"]
    only = Generation(model, prompts[:1], max_new_tokens=20, stop_ids=[stop])
    assert len(list(only)) == free[0].index(stop) + 1  # no step after the last text has ended


def test_tokens_that_arrive_a_step_late_are_the_same() -> None:
    model, prompts = build(), draw_prompts(5, 17, 9)
    free = texts(Generation(model, prompts, max_new_tokens=[20, 8, 1]))
    for stop_ids in ((), (free[0][6],)):
        said = []
        for lag in (0, 1):  # as on a GPU, where the next step is at work before a token is here
            generation = Generation(model, prompts, max_new_tokens=[20, 8, 1], stop_ids=stop_ids)
            generation._lag = lag
            said.append((texts(generation), generation.endings))
        assert said[0] == said[1] and len(said[0][0][2]) <= 1


def test_inference_mode_does_not_leak_to_the_caller() -> None:
    for _ in Generation(build(), [[1]], max_new_tokens=2):
        assert not torch.is_inference_mode_enabled()


def test_the_cache_is_free_with_its_generation() -> None:
    """And not at some garbage collection: on a GPU it is gigabytes."""
    gc.collect()
    gc.disable()
    try:
        generation = Generation(build(), draw_prompts(5, 3), max_new_tokens=4)
        assert len(texts(generation)[0]) == 4
        kept = weakref.ref(generation._cache.layers[0].k_BSKD)
        assert kept() is not None
        del generation
        assert kept() is None
    finally:
        gc.enable()


def test_what_does_not_fit_is_refused() -> None:
    model = build()
    for prompts, limits, words in (
        ([], 4, "0 prompts"),
        ([[1], []], 4, "no tokens"),
        ([[1]], 0, "max_new_tokens must be positive"),
        ([[1], [1]], [1], "2 prompts and 1 max_new_tokens"),
        ([[1], [1] * 40], [4, 9], "40 prompt tokens .* exceed sequence_length"),
    ):
        with pytest.raises(ValueError, match=words):
            Generation(model, prompts, max_new_tokens=limits)
    for bad in ({"temperature": -1.0}, {"temperature": math.nan}, {"top_p": 0.0}, {"top_p": 1.5}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Sampling(**bad)


def test_top_p_keeps_the_likeliest_and_their_proportions() -> None:
    probs = torch.tensor([0.05, 0.4, 0.0, 0.3, 0.25])
    chance = torch.linspace(0, 1, 2001)[:-1, None]
    logits = probs.log().expand(2000, -1)
    for top_p, kept in ((1.0, [0, 1, 3, 4]), (0.9, [1, 3, 4]), (0.6, [1, 3]), (0.01, [1])):
        found = Counter(pick(logits, Sampling(temperature=1.0, top_p=top_p), chance).flatten().tolist())
        assert sorted(found) == kept
        for token, times in found.items():
            assert times / 2000 == pytest.approx(float(probs[token] / probs[kept].sum()), abs=0.002)


def test_a_low_temperature_is_greedy_and_chance_never_picks_the_impossible() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, -math.inf]])
    for chance in (0.0, 0.5, 1 - 2**-24):
        drawn = torch.tensor([[chance]])
        assert pick(logits, Sampling(temperature=1e-40), drawn).item() == 1
        for top_p in (1.0, 0.999):
            assert pick(logits, Sampling(temperature=1.0, top_p=top_p), drawn).item() != 3
