"""Meta's layout: the rotary order, files split over ranks, and .pth files that are not what they say."""

import json
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from weights_fakes import BASE, CONFIGS, InMemory, assert_same_bits, build, draw_tokens, model_of, silent

from model.config import LlamaConfig, RopeScaling
from model.transformer import Llama
from model.weights import meta
from model.weights.meta import MetaFolder, half_split, interleaved, write_meta
from model.weights.meta_config import _ffn, _hidden, read_params, write_params
from model.weights.names import theirs
from model.weights.pth import load_pth

LENGTH = BASE["sequence_length"]


def written(folder: Path, model: Llama, shards: int = 1) -> Path:
    folder.mkdir()
    write_meta(folder, InMemory(model), shards, silent)
    return folder


def forward_as_meta(state: dict[str, torch.Tensor], config: LlamaConfig, tokens_BL: torch.Tensor) -> torch.Tensor:
    """Logits as in the first release's model.py: rotary positions by complex numbers over neighbouring channels."""

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + config.norm_eps) * weight

    length, head_dim = tokens_BL.shape[1], config.head_dim
    freqs = 1.0 / (config.rope_theta ** (torch.arange(0, head_dim, 2)[: head_dim // 2].float() / head_dim))
    angle = torch.outer(torch.arange(length).float(), freqs)
    turn = torch.polar(torch.ones_like(angle), angle).view(1, length, 1, head_dim // 2)

    def rotate(x: torch.Tensor) -> torch.Tensor:
        return torch.view_as_real(torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2)) * turn).flatten(3)

    x = F.embedding(tokens_BL, state["tok_embeddings.weight"])
    for layer in range(config.n_layers):
        of = {k.removeprefix(f"layers.{layer}."): v for k, v in state.items() if k.startswith(f"layers.{layer}.")}
        h = norm(x, of["attention_norm.weight"])
        q, k, v = (F.linear(h, of[f"attention.{w}.weight"]).unflatten(-1, (-1, head_dim)) for w in ("wq", "wk", "wv"))
        q, k = rotate(q), rotate(k)
        k, v = (each.repeat_interleave(config.n_heads // config.n_kv_heads, dim=2) for each in (k, v))
        out = F.scaled_dot_product_attention(*(each.transpose(1, 2) for each in (q, k, v)), is_causal=True)
        x = x + F.linear(out.transpose(1, 2).flatten(2), of["attention.wo.weight"])
        h = norm(x, of["ffn_norm.weight"])
        gate, up = F.linear(h, of["feed_forward.w1.weight"]), F.linear(h, of["feed_forward.w3.weight"])
        x = x + F.linear(F.silu(gate) * up, of["feed_forward.w2.weight"])
    return F.linear(norm(x, state["norm.weight"]), state["output.weight"])


@pytest.mark.parametrize("name", ["plain", "grouped", "tied"])
@torch.no_grad()
def test_metas_own_code_computes_the_same_logits(name: str, tmp_path: Path) -> None:
    model = build(CONFIGS[name])
    folder = written(tmp_path / "out", model)
    state = torch.load(folder / "consolidated.00.pth", weights_only=True)
    tokens = draw_tokens(model.config)
    torch.testing.assert_close(forward_as_meta(state, model.config, tokens), model(tokens), atol=2e-5, rtol=1e-5)
    # In float32 each of the two is 1e-5 from the truth. In float64 what is left is the turn, float32 in both.
    exact = forward_as_meta({name: each.double() for name, each in state.items()}, model.config, tokens)
    torch.testing.assert_close(exact, model.double()(tokens), atol=2e-6, rtol=1e-6)


def test_the_order_of_a_head() -> None:
    rows = torch.arange(12).unsqueeze(1)  # two heads of 6 channels
    assert half_split(rows, 6).flatten().tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
    assert torch.equal(interleaved(half_split(rows, 6), 6), rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "shards"), [("plain", 1), ("plain", 4), ("grouped", 2), ("tied", 1)])
def test_a_round_trip_is_exact(name: str, shards: int, dtype: torch.dtype, tmp_path: Path) -> None:
    model = build(CONFIGS[name], dtype)
    folder = written(tmp_path / "out", model, shards)
    assert len(list(folder.glob("*.pth"))) == shards
    found = MetaFolder(folder)
    assert found.config == LlamaConfig(**vars(model.config) | {"init_std": found.config.init_std})
    assert_same_bits(found, InMemory(model))


@pytest.mark.parametrize(
    ("rope", "shape"),
    [
        ({}, (100, 32)),
        ({"rope_theta": 1e6}, (100, 32)),  # Code Llama
        ({"rope_theta": 5e5}, (50, 64)),
        ({"rope_scaling": RopeScaling(kind="llama3", factor=8.0)}, (50, 64)),
    ],
)
def test_the_embedding_is_split_as_the_code_of_the_model_s_release_has_it(
    rope: dict[str, Any], shape: tuple[int, int], tmp_path: Path
) -> None:
    model = build(LlamaConfig(**BASE | rope))
    folder = written(tmp_path / "out", model, 2)
    for file in folder.glob("*.pth"):
        assert torch.load(file)["tok_embeddings.weight"].shape == shape
    assert_same_bits(MetaFolder(folder), InMemory(model))


def test_a_tied_model_split_by_columns_has_its_output_written_out(tmp_path: Path) -> None:
    model = build(LlamaConfig(**BASE | {"tie_embeddings": True}))
    found = MetaFolder(written(tmp_path / "out", model, 2))
    assert not found.config.tie_embeddings
    assert torch.equal(found.read("output.weight"), model.embedding.weight)


def test_a_tied_model_split_by_rows_stays_tied(tmp_path: Path) -> None:
    model = build(LlamaConfig(**BASE | {"tie_embeddings": True, "rope_theta": 5e5}))
    found = MetaFolder(written(tmp_path / "out", model, 2))
    assert found.config.tie_embeddings
    assert_same_bits(found, InMemory(model))


def test_scaled_rotary_positions_come_back(tmp_path: Path) -> None:
    scaling = RopeScaling(kind="llama3", factor=32.0)
    config = LlamaConfig(**BASE | {"rope_theta": 5e5, "rope_scaling": scaling})
    folder = written(tmp_path / "out", build(config))
    assert MetaFolder(folder).config.rope_scaling == scaling
    with pytest.raises(ValueError, match="has rope_scaling_factor 32.0: leave --rope-scaling-factor out"):
        MetaFolder(folder, rope_scaling_factor=8.0)
    assert MetaFolder(folder, rope_scaling_factor=32.0).config.rope_scaling == scaling
    params = json.loads((folder / "params.json").read_text())
    del params["rope_scaling_factor"], params["rope_theta"]  # as Meta has it; and its code that scales takes 500,000
    (folder / "params.json").write_text(json.dumps(params))
    with pytest.raises(ValueError, match="--rope-scaling-factor"):
        MetaFolder(folder)
    found = MetaFolder(folder, rope_scaling_factor=32.0).config
    assert (found.rope_scaling, found.rope_theta) == (scaling, 5e5)
    plain = written(tmp_path / "plain", build(CONFIGS["plain"]))
    with pytest.raises(ValueError, match="has no scaled rotary positions .* leave --rope-scaling-factor out"):
        MetaFolder(plain, rope_scaling_factor=8.0)
    with pytest.raises(ValueError, match="Meta's layout has no place for"):
        write_params(tmp_path, CONFIGS["linear"])


LLAMA1 = {"dim", "n_layers", "n_heads", "vocab_size", "multiple_of", "norm_eps"}  # of ModelArgs, what a file may say
LLAMA2 = LLAMA1 | {"n_kv_heads", "ffn_dim_multiplier"}
LLAMA3 = LLAMA2 | {"rope_theta"}


@pytest.mark.parametrize(
    ("of", "known"),
    [
        ({"ffn_hidden": 256}, LLAMA1),
        ({"n_kv_heads": 2, "ffn_hidden": 384}, LLAMA2),
        ({"n_kv_heads": 2, "ffn_hidden": 384, "rope_theta": 5e5}, LLAMA3),
    ],
    ids=["LLaMA", "Llama 2", "Llama 3"],
)
def test_metas_own_code_takes_the_parameters(of: dict[str, Any], known: set[str], tmp_path: Path) -> None:
    """It gives max_seq_len and max_batch_size itself: a file that says them too is a TypeError there."""
    config = LlamaConfig(**BASE | of)
    write_params(tmp_path, config)
    assert json.loads((tmp_path / "params.json").read_text()).keys() <= known
    read, warnings = read_params(tmp_path / "params.json", config.vocab_size, False, None, None)
    assert (replace(read, init_std=config.init_std), warnings) == (config, [])


def as_released(folder: Path, model: Llama, shards: int, by_rows: bool) -> Path:
    """Saved with torch.save, split by hand as Meta's ranks had it; `by_rows`: the embedding as in Llama 3."""
    folder.mkdir()
    for rank in range(shards):
        # The first 7B has the table in every layer, all others once.
        tables = [f"layers.{layer}.attention.inner_attention.rope.freqs" for layer in range(2)]
        state = {table: torch.ones(3) for table in ("rope.freqs", *tables)}
        for name, weight in model.state_dict().items():
            weight = interleaved(weight, model.config.head_dim) if name.endswith(("wq.weight", "wk.weight")) else weight
            part = name.removesuffix(".weight")
            axis = 0 if part.endswith(("wq", "wk", "wv", "w_gate", "w_up", "output")) else 1
            axis = 0 if part == "embedding" and by_rows else axis
            state[theirs(name, "meta")] = weight.chunk(shards, axis)[rank].clone() if weight.dim() > 1 else weight
        torch.save(state, folder / f"consolidated.{rank:02d}.pth")
    params = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "norm_eps": 1e-6, "vocab_size": -1,
              "multiple_of": 32, "ffn_dim_multiplier": 0.5, "rope_theta": model.config.rope_theta}  # fmt: skip
    (folder / "params.json").write_text(json.dumps(params))
    return folder


def shapes(folder: Path) -> dict[tuple[str, str], torch.Size]:
    """Of all weights in each file; tables that follow from the config are none."""
    return {
        (file.name, name): tensor.shape
        for file in folder.glob("*.pth")
        for name, tensor in torch.load(file).items()
        if "rope" not in name
    }


@pytest.mark.parametrize("by_rows", [False, True])
@torch.no_grad()
def test_files_as_meta_saved_them(by_rows: bool, tmp_path: Path) -> None:
    config = CONFIGS["grouped"] if by_rows else replace(CONFIGS["grouped"], rope_theta=1e4)
    model = build(config)
    folder = MetaFolder(as_released(tmp_path / "release", model, 2, by_rows), sequence_length=LENGTH)
    assert folder.config.vocab_size == 100 and folder.config.ffn_hidden == 96 and not folder.warnings
    assert_same_bits(folder, InMemory(model))
    assert torch.equal(model_of(folder)(draw_tokens(model.config)), model(draw_tokens(model.config)))
    assert "--sequence-length" in MetaFolder(tmp_path / "release").warnings[0]
    assert shapes(tmp_path / "release") == shapes(written(tmp_path / "back", model_of(folder), 2))


def test_a_file_mapped_anew_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(CONFIGS["plain"])
    folder = written(tmp_path / "out", model, 2)
    mapped = []
    monkeypatch.setattr(meta, "REMAP_BYTES", 20_000)
    monkeypatch.setattr(meta, "load_pth", lambda path, load=meta.load_pth: mapped.append(path) or load(path))
    assert_same_bits(MetaFolder(folder), InMemory(model))
    assert len(mapped) > 10


def test_what_we_write_is_a_sound_archive_that_torch_maps(tmp_path: Path) -> None:
    path = written(tmp_path / "out", build(CONFIGS["tied"], torch.bfloat16)) / "consolidated.00.pth"
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None  # its checksums hold
    state = torch.load(path, mmap=True, weights_only=True)
    assert all(tensor.data_ptr() % 64 == 0 for tensor in state.values())
    assert state["output.weight"].data_ptr() == state["tok_embeddings.weight"].data_ptr()
    assert torch.equal(state["norm.weight"], build(CONFIGS["tied"], torch.bfloat16).norm.weight)


class _Runs:
    """Unpickled without care, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def test_a_file_that_would_run_code_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    folder = written(tmp_path / "out", build(CONFIGS["plain"]))
    proof = tmp_path / "it-ran"
    state = torch.load(folder / "consolidated.00.pth")
    torch.save(state | {"norm.weight": _Runs(proof)}, folder / "consolidated.00.pth")
    with pytest.raises(ValueError, match="refused: it holds more than tensors and could run code .*system"):
        MetaFolder(folder)
    assert not proof.exists()
    (folder / "consolidated.00.pth").write_bytes(pickle.dumps(_Runs(proof)))
    with pytest.raises(ValueError, match="not a .pth file"):
        MetaFolder(folder)
    assert not proof.exists()


@pytest.mark.parametrize("kept", [0, 100, -1, -3000])
def test_a_file_that_is_cut_short_is_named(kept: int, tmp_path: Path) -> None:
    path = written(tmp_path / "out", build(CONFIGS["plain"])) / "consolidated.00.pth"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"consolidated\.00\.pth: (cut short|not a \.pth)"):
        MetaFolder(path.parent)


CUTS: dict[str, Callable[[bytes], int]] = {
    "in the name of a function": lambda data: data.index(b"_rebuild_tensor_v2") + 10,
    "in the length of a text": lambda data: data.index(b"X") + 3,
    "in a text": lambda data: data.index(b"X") + 10,
    "before its end": lambda data: len(data) - 1,
    "to nothing": lambda data: 0,
}


@pytest.mark.parametrize("cut", CUTS)
def test_a_pickle_that_is_cut_short_is_no_attack(cut: str, tmp_path: Path) -> None:
    path = written(tmp_path / "out", build(CONFIGS["plain"])) / "consolidated.00.pth"
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            archive.writestr(name, data[: CUTS[cut](data)] if name.endswith("data.pkl") else data)
    with pytest.raises(ValueError, match=r"consolidated\.00\.pth: cut short or damaged: its list of tensors"):
        MetaFolder(path.parent)


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        ([torch.ones(2)], "expected a dict"),
        ({"a": 1}, "expected a dict"),
        ({"tok_embeddings.weight": torch.ones(3, dtype=torch.int8)}, "int8: quantised"),
        ({"a": torch.eye(3).to_sparse()}, "a is sparse_coo, on device cpu"),
        ({"a": torch.ones(3, device="meta")}, "a is strided, on device meta"),
        ({"norm.weight": torch.ones(3)}, "no matrices tok_embeddings.weight"),
        ({"tok_embeddings.weight": torch.ones(3, 2), "output.weight": torch.tensor(1.0)}, "no matrices"),
    ],
)
def test_something_else_than_weights_is_refused(odd: Any, said: str, tmp_path: Path) -> None:
    folder = written(tmp_path / "out", build(CONFIGS["plain"]))
    torch.save(odd, folder / "consolidated.00.pth")
    with pytest.raises(ValueError, match=f"consolidated.00.pth: .*{said}"):
        MetaFolder(folder)


def test_missing_extra_and_misshapen_tensors_are_all_named(tmp_path: Path) -> None:
    folder = written(tmp_path / "out", build(CONFIGS["plain"]))
    state = torch.load(folder / "consolidated.00.pth")
    del state["norm.weight"]
    state |= {"layers.0.attention.wq.bias": torch.ones(64), "layers.1.feed_forward.w2.weight": torch.ones(64, 32)}
    torch.save(state, folder / "consolidated.00.pth")
    with pytest.raises(ValueError) as refusal:
        MetaFolder(folder)
    for line in (
        "missing: norm.weight 64",
        "not part of this model: layers.0.attention.wq.bias",
        "of another shape: layers.1.feed_forward.w2.weight is 64x32, expected 64x96",
    ):
        assert line in str(refusal.value)


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    folder = written(tmp_path / "out", build(CONFIGS["plain"]), 4)
    (folder / "consolidated.03.pth").unlink()
    with pytest.raises(ValueError, match="the weights have 75 rows: .*one of their files is missing"):
        MetaFolder(folder)
    (folder / "consolidated.01.pth").unlink()
    with pytest.raises(ValueError, match="consolidated.01.pth is missing"):
        MetaFolder(folder)
    mixed = written(tmp_path / "mixed", build(CONFIGS["plain"]), 4)
    other = written(tmp_path / "other", build(CONFIGS["plain"], torch.bfloat16), 4)
    (other / "consolidated.01.pth").replace(mixed / "consolidated.01.pth")
    with pytest.raises(ValueError, match="the files do not fit together in tok_embeddings.weight"):
        MetaFolder(mixed)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"moe": {"num_experts": 8}}, "moe: a mixture of experts"),
        ({"quantization_args": {"group_size": 256}}, "quantised"),
        ({"lora_args": {"rank": 16}}, "LoRA"),
        ({"vocab_size": 99}, "vocab_size is 99, but the weights have 100 rows"),
        ({"n_heads": 5}, "n_heads"),
        ({"dim": "64", "multiple_of": 0}, 'dim is "64", multiple_of is 0: expected positive whole numbers'),
        ({"ffn_dim_multiplier": float("inf")}, "ffn_dim_multiplier is Infinity: expected positive numbers"),
        ({"use_scaled_rope": "false"}, 'use_scaled_rope is "false": expected true or false'),
        ({"vocab_size": None}, "vocab_size is null: expected whole numbers"),
    ],
)
def test_parameters_of_other_models_are_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    write_params(tmp_path, CONFIGS["plain"])
    path = tmp_path / "params.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=said) as refusal:
        read_params(path, 100, False, None, None)
    assert str(path) in str(refusal.value)


def test_a_file_with_a_changed_byte_is_read_or_refused_by_name(tmp_path: Path) -> None:
    whole = tmp_path / "whole.pth"
    torch.save({"a": torch.ones(2), "b": torch.ones(2)}, whole)
    content, draw, refused = whole.read_bytes(), random.Random(1), 0
    broken = tmp_path / "broken.pth"
    for _ in range(400):
        changed = bytearray(content)
        for _ in range(2):
            changed[draw.randrange(len(content))] = draw.randrange(256)
        broken.write_bytes(changed)
        try:
            load_pth(broken)
        except ValueError as error:
            refused += 1
            assert str(broken) in str(error)
    assert refused > 40


def test_shards_that_cannot_share_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"3 files cannot share .*n_heads \(4\).*vocab_size \(100\)"):
        written(tmp_path / "out", build(CONFIGS["plain"]), 3)


def test_any_feed_forward_size_has_its_parameters() -> None:
    draw = random.Random(1)
    for _ in range(3000):
        dim, hidden = 2 * draw.randint(1, 10_000), draw.randint(1, 60_000)
        assert _hidden(dim, *_ffn(dim, hidden)) == hidden
    assert _ffn(4096, 11008) == (256, None)
    assert _hidden(8192, 4096, 1.3) == 28672  # Llama 2 70B
    assert _hidden(4096, 1024, 1.3) == 14336  # Llama 3 8B
