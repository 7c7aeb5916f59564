"""What only a GPU can show of generation: steps that are recorded, and a batch beside prompts alone.

Run by hand on one: `pytest gpu_tests`. In float32, where rounding decides nothing.
"""

import random

import pytest
import torch

from model.config import LlamaConfig
from model.float8 import to_float8
from model.generate import Generation, Sampling
from model.init import init_weights
from model.transformer import Llama

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
CONFIG = LlamaConfig(dim=256, n_layers=4, n_heads=4, n_kv_heads=2, vocab_size=512, sequence_length=1024, init_std=0.1)


@pytest.fixture(scope="module")
def model() -> Llama:
    built = Llama(CONFIG)
    init_weights(built, seed=3)
    return built.cuda().eval()


def prompts(*lengths: int) -> list[list[int]]:
    draw = random.Random(5)
    return [[draw.randrange(3, 512) for _ in range(length)] for length in lengths]


def texts(generation: Generation) -> list[list[int]]:
    return [[token for token in row if token is not None] for row in zip(*generation, strict=True)]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, top_p=0.9, seed=2)])
def test_recorded_steps_draw_the_same_across_strides(model: Llama, sampling: Sampling) -> None:
    given = prompts(200, 3, 90)
    plain, recorded = (
        texts(Generation(model, given, max_new_tokens=400, sampling=sampling, recorded=recorded))
        for recorded in (False, True)
    )
    assert recorded == plain and len({len(row) for row in plain}) == 1


def test_a_batch_is_what_each_prompt_gives_alone_and_on_the_cpu(model: Llama) -> None:
    given = prompts(40, 1, 17)
    together = texts(Generation(model, given, max_new_tokens=60))
    for prompt, row in zip(given, together, strict=True):
        assert texts(Generation(model, [prompt], max_new_tokens=60)) == [row]
    on_cpu = Llama(CONFIG)
    on_cpu.load_state_dict(model.state_dict())
    assert texts(Generation(on_cpu.eval(), given, max_new_tokens=60)) == together


def test_a_stop_costs_one_step_that_nobody_sees(model: Llama) -> None:
    [given] = prompts(30)
    free = texts(Generation(model, [given], max_new_tokens=50))[0]
    stopped = texts(Generation(model, [given], max_new_tokens=50, stop_ids=[free[20]]))[0]
    assert stopped == free[: free.index(free[20])]


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9), reason="needs a GPU with float8"
)
def test_float8_is_near_bfloat16() -> None:
    pytest.importorskip("torchao")
    tokens = torch.randint(512, (2, 256), device="cuda", generator=torch.Generator("cuda").manual_seed(1))
    losses = []
    for float8 in (False, True):
        built = Llama(CONFIG)
        init_weights(built, seed=3)
        if float8:
            to_float8(built)
        built = built.to("cuda", torch.bfloat16)
        built.reset_buffers()
        losses.append(built(tokens[:, :-1], tokens[:, 1:]).item())
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.05)
