"""Hugging Face's layout: transformers loads what we write and we what it saves, to the same logits."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from weights_fakes import BASE, CONFIGS, InMemory, assert_same_bits, build, draw_tokens, model_of, silent

from model.config import LlamaConfig
from model.weights.hf_config import read_config, write_config
from model.weights.huggingface import INDEX, HuggingFaceFolder, write_huggingface
from model.weights.safetensors_file import SafetensorsFile
from model.weights.tensors import Cast, as_dtype, rounds

transformers = pytest.importorskip("transformers")
library = pytest.importorskip("safetensors.torch")
TOKENS = {"bos_token_id": 1, "eos_token_id": 2}
# Logits here reach 6.5, and in float32 both models are up to 2.5e-5 away from what they compute in float64.
NEAR = {"atol": 3e-5, "rtol": 1e-5}


def written(folder: Path, source: Any, max_file_bytes: int = 10**9) -> Path:
    folder.mkdir()
    write_huggingface(folder, source, TOKENS, max_file_bytes, silent)
    return folder


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_transformers_loads_what_we_write(name: str, tmp_path: Path) -> None:
    model = build(CONFIGS[name])
    folder = written(tmp_path / "out", InMemory(model), max_file_bytes=60_000)
    theirs, notes = transformers.LlamaForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(notes[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert theirs.config.bos_token_id == 1 and theirs.generation_config.eos_token_id == 2
    tokens = draw_tokens(model.config)
    torch.testing.assert_close(model(tokens), theirs(tokens).logits, **NEAR)


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_what_transformers_saves_is_imported(name: str, tmp_path: Path) -> None:
    source = written(tmp_path / "out", InMemory(build(CONFIGS[name])))
    theirs = transformers.LlamaForCausalLM.from_pretrained(source)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="50KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    folder = HuggingFaceFolder(tmp_path / "theirs")
    assert folder.config == CONFIGS[name] and not folder.warnings and folder.special_tokens == TOKENS
    tokens = draw_tokens(folder.config)
    torch.testing.assert_close(model_of(folder)(tokens), theirs(tokens).logits, **NEAR)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_round_trip_is_exact_and_files_are_bounded(dtype: torch.dtype, tmp_path: Path) -> None:
    source = InMemory(build(CONFIGS["grouped"], dtype))
    bound = 60_000
    folder = written(tmp_path / "out", source, bound)
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 2
    for file in files:
        held = SafetensorsFile(file).tensors.values()
        assert len(held) == 1 or sum(info.nbytes for info in held) <= bound
    index = json.loads((folder / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(info.nbytes for info in source.tensors.values())
    assert {folder / name for name in index["weight_map"].values()} == set(files)
    assert_same_bits(source, HuggingFaceFolder(folder))


def test_a_dtype_is_chosen_and_rounding_is_known(tmp_path: Path) -> None:
    exact = InMemory(build(CONFIGS["plain"], torch.bfloat16))
    full = InMemory(build(CONFIGS["plain"]))
    assert as_dtype(full, "keep") is full
    assert [rounds(full, "bf16"), rounds(full, "fp32"), rounds(exact, "fp32"), rounds(exact, "keep")] == [
        True, False, False, False,
    ]  # fmt: skip
    halves = InMemory(build(CONFIGS["plain"], torch.float16))
    assert rounds(halves, "bf16") and not rounds(halves, "fp32")
    folder = written(tmp_path / "out", as_dtype(full, "bf16"))
    assert_same_bits(HuggingFaceFolder(folder), Cast(full, torch.bfloat16))
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == "bfloat16"


def config_file(folder: Path, **changes: Any) -> Path:
    write_config(folder, CONFIGS["plain"], torch.float32, TOKENS)
    path = folder / "config.json"
    raw = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in raw.items() if value != "gone"}))
    return path


LLAMA3_ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    write_config(tmp_path, CONFIGS[name], torch.float32, TOKENS)
    assert read_config(tmp_path / "config.json") == (CONFIGS[name], TOKENS, [])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "mistral", "architectures": ["MistralForCausalLM"]}, "architecture is MistralForCausalLM"),
        ({"model_type": "llama4", "architectures": ["Llama4ForCausalLM"]}, "architecture is Llama4ForCausalLM"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"attention_bias": True}, "attention_bias is true"),
        ({"mlp_bias": True}, "mlp_bias is true"),
        ({"sliding_window": 4096}, "sliding_window is 4096"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({"num_local_experts": 8}, "num_local_experts is 8"),
        ({"hidden_act": "gelu"}, 'hidden_act is "gelu"'),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"head_dim": 32}, "head_dim is 32"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "of type yarn is not supported"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "of type dynamic is not supported"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "lacks high_freq_factor, low_freq_factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "beta": 1}}, "not known here: beta"),
        ({"rope_scaling": {"factor": 8.0}}, "of type default has keys that are not known here: factor"),
        ({"rope_parameters": {"rope_type": "default", "factor": 8.0}}, "not known here: factor"),
        ({"rope_scaling": {"type": "linear", "rope_type": "default"}}, "of type linear and of rope_type default"),
        ({"hidden_size": "gone", "vocab_size": "gone"}, "hidden_size, vocab_size missing"),
        ({"num_key_value_heads": 3}, "n_kv_heads"),
        ({"hidden_size": "64", "vocab_size": 0}, 'hidden_size is "64", vocab_size is 0: expected positive'),
        ({"num_key_value_heads": 0}, "num_key_value_heads is 0: expected positive whole"),
        ({"rope_theta": "1e4"}, 'rope_theta is "1e4": expected positive numbers'),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps is Infinity: expected positive numbers"),
        ({"rope_scaling": "linear"}, 'rope_scaling is "linear": expected objects'),
        ({"rope_scaling": {"rope_type": "linear", "factor": None}}, "factor is null: expected positive numbers"),
        ({"rope_parameters": {"rope_type": ["llama3"]}}, r'rope_type is \["llama3"\]: expected text'),
        ({"rope_scaling": LLAMA3_ROPE | {"high_freq_factor": 0.5}}, "high_freq_factor .* must be more than"),
        ({"architectures": 1}, "architectures is 1: expected lists of names"),
        ({"layer_types": [1]}, r"layer_types is \[1\]: expected lists of names"),
        ({"model_type": "t5", "architectures": ["T5Model"], "rms_norm_eps": None}, "architecture is T5Model"),
        ({"tie_word_embeddings": "false"}, 'tie_word_embeddings is "false": expected true or false'),
        ({"eos_token_id": "</s>"}, 'eos_token_id is "</s>": expected a token'),
    ],
)
def test_what_our_model_would_not_compute_is_refused_by_name(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = config_file(tmp_path, **changes)
    with pytest.raises(ValueError, match=said) as refusal:
        read_config(path)
    assert str(path) in str(refusal.value)


def test_all_reasons_are_given_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as refusal:
        read_config(config_file(tmp_path, attention_bias=True, hidden_act="relu", rope_scaling={"type": "yarn"}))
    assert all(word in str(refusal.value) for word in ("attention_bias", "hidden_act", "yarn"))


def test_old_and_new_ways_of_saying_the_rotary_settings(tmp_path: Path) -> None:
    old = read_config(config_file(tmp_path, rope_theta=5e5, rope_scaling={"type": "linear", "factor": 2.0}))
    new = read_config(
        config_file(
            tmp_path,
            rope_theta="gone",
            rope_scaling="gone",
            rope_parameters={"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0},
        )  # fmt: skip
    )
    assert old == new and old[0].rope_theta == 5e5 and old[0].rope_scaling is not None
    both = {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}}
    assert read_config(config_file(tmp_path, **both, rope_scaling={"type": "linear", "factor": 2.0})) == old
    # Added to a config of transformers 5 for a longer context, as model cards advise: transformers follows it there.
    both = {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    with pytest.raises(ValueError, match="rope_parameters and rope_scaling say different things: leave one of them"):
        read_config(config_file(tmp_path, **both, rope_scaling={"type": "linear", "factor": 2.0}))


@pytest.mark.parametrize(("given", "expected"), [({}, 64), ({"original_max_position_embeddings": 16}, 16)])
def test_the_length_before_scaling_is_what_transformers_takes(
    given: dict[str, int], expected: int, tmp_path: Path
) -> None:
    found = read_config(config_file(tmp_path, rope_scaling=LLAMA3_ROPE | given))[0].rope_scaling
    assert found is not None and found.original_length == expected
    theirs = transformers.LlamaConfig.from_pretrained(tmp_path)
    assert theirs.rope_parameters["original_max_position_embeddings"] == expected


def test_all_ends_of_a_text_come_and_go(tmp_path: Path) -> None:
    folder = written(tmp_path / "out", InMemory(build(CONFIGS["plain"])))
    file = folder / "generation_config.json"
    file.write_text(json.dumps({"eos_token_id": [2, 7], "temperature": 0.6}))
    found = HuggingFaceFolder(folder)
    assert found.special_tokens == {"bos_token_id": 1, "eos_token_id": [2, 7]}
    (tmp_path / "again").mkdir()
    write_huggingface(tmp_path / "again", found, found.special_tokens, 10**9, silent)
    assert transformers.GenerationConfig.from_pretrained(tmp_path / "again").eos_token_id == [2, 7]
    for text, said in (
        ('{"eos_token_id": "</s>"}', "expected a token's number"),
        ("{", "not JSON"),
        ("[]", "expected"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=f"generation_config.json: .*{said}"):
            HuggingFaceFolder(folder)


def test_keys_that_nobody_knows_are_warned_of(tmp_path: Path) -> None:
    warnings = read_config(config_file(tmp_path, wobble_factor=2, auto_map={"AutoModel": "my_llama.Llama"}))[2]
    assert "auto_map, wobble_factor" in warnings[0]


def test_missing_extra_and_misshapen_tensors_are_all_named(tmp_path: Path) -> None:
    folder = written(tmp_path / "out", InMemory(build(CONFIGS["plain"])))
    state = library.load_file(folder / "model.safetensors")
    del state["model.norm.weight"], state["model.layers.1.mlp.up_proj.weight"]
    state["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(64)
    state["model.layers.0.self_attn.k_proj.weight"] = torch.zeros(32, 64)
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)  # of old files: no weight
    library.save_file(state, folder / "model.safetensors")
    with pytest.raises(ValueError, match="4 tensors are not what the model's configuration says") as refusal:
        HuggingFaceFolder(folder)
    for line in (
        "missing: model.norm.weight 64",
        "missing: model.layers.1.mlp.up_proj.weight 96x64",
        "not part of this model: model.layers.0.self_attn.q_proj.bias",
        "of another shape: model.layers.0.self_attn.k_proj.weight is 32x64, expected 64x64",
    ):
        assert line in str(refusal.value)
    assert "inv_freq" not in str(refusal.value)


def test_an_untied_model_needs_its_output_and_a_tied_one_must_mean_it(tmp_path: Path) -> None:
    tied = written(tmp_path / "tied", InMemory(build(CONFIGS["tied"])))
    state = library.load_file(tied / "model.safetensors")
    assert "lm_head.weight" not in state
    library.save_file(
        state | {"lm_head.weight": state["model.embed_tokens.weight"].clone()}, tied / "model.safetensors"
    )
    assert_same_bits(HuggingFaceFolder(tied), InMemory(build(CONFIGS["tied"])))
    library.save_file(state | {"lm_head.weight": torch.zeros(100, 64)}, tied / "model.safetensors")
    with pytest.raises(ValueError, match="tie_word_embeddings is true, but lm_head.weight is not"):
        HuggingFaceFolder(tied)
    library.save_file(state, tied / "model.safetensors")
    config = json.loads((tied / "config.json").read_text())
    (tied / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    with pytest.raises(ValueError, match="missing: lm_head.weight"):
        HuggingFaceFolder(tied)


def test_an_index_that_does_not_fit_its_files_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path / "out", InMemory(build(CONFIGS["plain"])), max_file_bytes=60_000)
    index = json.loads((folder / INDEX).read_text())
    last = sorted(folder.glob("*.safetensors"))[-1]

    def refused(said: str, **changes: str) -> None:
        (folder / INDEX).write_text(json.dumps(index | {"weight_map": index["weight_map"] | changes}))
        with pytest.raises(ValueError, match=said):
            HuggingFaceFolder(folder)

    refused("is not the name of a safetensors file in this folder", **{"model.norm.weight": "../model.safetensors"})
    refused("no such file in the folder: gone.safetensors", **{"model.norm.weight": "gone.safetensors"})
    refused("in none of the files: model.extra", **{"model.extra": last.name})
    last.write_bytes(last.read_bytes()[:-1])
    refused(f"{last.name}: cut short")
    (folder / INDEX).unlink()
    with pytest.raises(ValueError, match=f"no {INDEX}"):
        HuggingFaceFolder(folder)


@pytest.mark.parametrize(
    ("file", "said"), [("pytorch_model.bin", "are .bin files"), ("a.gguf", "GGUF"), (None, "no safe")]
)
def test_other_files_are_told_apart(file: str | None, said: str, tmp_path: Path) -> None:
    config_file(tmp_path)
    if file:
        (tmp_path / file).write_bytes(b"x")
    with pytest.raises(ValueError, match=said):
        HuggingFaceFolder(tmp_path)


def test_a_tied_model_has_one_matrix_fewer() -> None:
    tied, untied = CONFIGS["tied"], LlamaConfig(**BASE | {"n_kv_heads": 1})
    assert untied.params - tied.params == 100 * 64 and tied.flop_per_token == untied.flop_per_token
    assert sum(p.numel() for p in build(tied).parameters()) == tied.params
