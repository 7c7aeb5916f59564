import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from weights_fakes import to_hf_state_dict

from model import attention
from model.attention import repeats
from model.config import LlamaConfig
from model.generate import generate
from model.init import init_weights
from model.optim import lr_at, make_optimizer
from model.transformer import Llama
from model.weights.hf_config import config_dict


def build(n_kv_heads: int = 4) -> Llama:
    config = LlamaConfig(
        dim=64, n_layers=2, n_heads=4, n_kv_heads=n_kv_heads, vocab_size=97, sequence_length=32, init_std=0.2
    )
    model = Llama(config)
    init_weights(model, seed=1)
    return model


def draw_tokens(rows: int = 2, columns: int = 32) -> torch.Tensor:
    return torch.randint(0, 97, (rows, columns), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("n_kv_heads", [4, 2])
def test_logits_and_gradients_equal_transformers(n_kv_heads: int) -> None:
    transformers = pytest.importorskip("transformers")
    model = build(n_kv_heads)
    config = model.config
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_dict(config_dict(config)))
    theirs.load_state_dict(to_hf_state_dict(model.state_dict()))
    tokens = draw_tokens()
    torch.testing.assert_close(model(tokens), theirs(tokens).logits, atol=1e-5, rtol=1e-5)

    theirs(tokens, labels=tokens).loss.backward()
    (model(tokens[:, :-1], tokens[:, 1:]) / tokens[:, 1:].numel()).backward()
    found = to_hf_state_dict(dict(model.named_parameters()))
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(found.pop(name).grad, parameter.grad, atol=1e-5, rtol=1e-4)
    assert not found


def test_heads_that_are_repeated_attend_as_shared_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for device in ("cpu", "cuda"):  # as if on a GPU, where no kernel shares heads in float32
        monkeypatch.setattr(attention, "repeats", lambda *like, device=device: repeats(device, like[1]))
        monkeypatch.setattr(attention, "takes", lambda *_: False)
        model = build(n_kv_heads=2)
        tokens = torch.randint(97, (2, 33), generator=torch.Generator().manual_seed(1))
        model(tokens[:, :-1], tokens[:, 1:]).backward()
        found.append([p.grad.clone() for p in model.parameters()])
    for shared, repeated in zip(*found, strict=True):
        torch.testing.assert_close(repeated, shared, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("n_kv_heads", [4, 2])
def test_counted_flop_equal_the_formula(n_kv_heads: int) -> None:
    model = build(n_kv_heads)
    tokens = draw_tokens()
    # The MATH backend is made of plain products, which the counter sees in forward and backward alike.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(tokens, tokens).backward()
    assert counter.get_total_flops() == model.config.flop_per_token * tokens.numel()


def test_a_meta_model_is_the_same_once_filled() -> None:
    model = build()
    with torch.device("meta"):
        late = Llama(model.config)
    late.to_empty(device="cpu")
    init_weights(late, seed=1)
    torch.testing.assert_close(late(draw_tokens()), model(draw_tokens()), atol=0, rtol=0)


@pytest.mark.parametrize("n_kv_heads", [4, 2])
def test_cached_generation_equals_the_full_forward(n_kv_heads: int) -> None:
    model = build(n_kv_heads)
    tokens = draw_tokens(1, 8)[0].tolist()
    expected = list(tokens)
    with torch.no_grad():
        for _ in range(24):
            expected.append(int(model(torch.tensor([expected]))[0, -1].argmax()))
    assert list(generate(model, tokens, max_new_tokens=24)) == expected[8:]
    stop = expected[10]
    until_stop = expected[8 : expected.index(stop, 8)]
    assert list(generate(model, tokens, max_new_tokens=24, eos_id=stop)) == until_stop


def test_sampling_follows_its_seed_and_a_tiny_top_p_is_greedy() -> None:
    model = build()
    greedy = list(generate(model, [1, 2], max_new_tokens=10))
    assert list(generate(model, [1, 2], max_new_tokens=10, temperature=1.0, top_p=1e-6)) == greedy
    runs = [list(generate(model, [1, 2], max_new_tokens=20, temperature=2.0, seed=s)) for s in (3, 3, 4)]
    assert runs[0] == runs[1] != runs[2]
    with pytest.raises(ValueError, match="sequence_length"):
        generate(model, [1], max_new_tokens=32)


def test_the_learning_rate_warms_up_and_falls() -> None:
    lrs = [lr_at(s, peak_lr=1.0, warmup_steps=10, total_steps=110, final_fraction=0.1) for s in range(120)]
    assert lrs[0] == pytest.approx(0.1)
    assert lrs[9] == max(lrs) == 1.0
    assert lrs[59] == pytest.approx(0.55)
    assert lrs[109] == lrs[119] == pytest.approx(0.1)
    assert sorted(lrs[9:], reverse=True) == lrs[9:]


def test_only_matrices_decay() -> None:
    optimizer = make_optimizer(build(), lr=1e-3)
    assert {(p.dim(), g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]} == {
        (2, 0.1),
        (1, 0.0),
    }
