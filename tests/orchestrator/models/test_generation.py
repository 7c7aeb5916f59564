"""generate: texts of a batch as they grow, where they end, and what they took."""

import functools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from energy import Meter
from energy.sensors import Reading
from model.config import LlamaConfig
from model.generate import Generation, Sampling
from model.init import init_weights
from model.transformer import Llama
from model.weights.dcp import write_checkpoint
from model.weights.tensors import TensorInfo
from orchestrator.cli import cli
from orchestrator.commands.generation import summary
from orchestrator.data.tokenizer import Tokenizer
from orchestrator.models import generation
from orchestrator.models.folder import FIRST, open_model_folder, write_model_file
from orchestrator.models.generation import RECORDED_FROM, Request, Text, generate_texts
from orchestrator.spec.file import BadInput

CONTEXT, WATTS = 64, 50.0


class InMemory:
    def __init__(self, model: Llama) -> None:
        self.config = model.config
        self._weights = {name: weight.detach() for name, weight in model.named_parameters()}
        self.tensors = {name: TensorInfo(tuple(w.shape), w.dtype) for name, w in self._weights.items()}

    def read(self, name: str) -> torch.Tensor:
        return self._weights[name]


class Steady:
    """A CPU that always takes WATTS, by a counter or by a model."""

    def __init__(self, method: str) -> None:
        self._about = {"uuid": "cpu@here", "name": "a CPU", "node": "here", "kind": "cpu", "method": method}

    def describe(self) -> dict[str, Any]:
        return self._about | {"boundary": "node"}

    def read(self) -> Reading:
        if self._about["method"] == "modelled":
            return Reading(power_w=WATTS, covers_past=True)
        return Reading(energy_mj=round(time.monotonic() * WATTS * 1e3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Imported weights of a model that has learnt nothing, so that it says all sorts of bytes."""
    folder = tmp_path_factory.mktemp("model")
    (folder / FIRST).mkdir(parents=True)
    tokenizer = Tokenizer.train(
        ["the quick brown fox jumps over a lazy dog 0123456789 é"] * 50, 310, folder / "t.model"
    )
    tokenizer.save(folder / "tokenizer.model")
    model = Llama(LlamaConfig(dim=32, n_layers=2, n_heads=4, vocab_size=310, sequence_length=CONTEXT, init_std=0.3))
    init_weights(model, 2)
    write_checkpoint(folder / FIRST, InMemory(model), lambda done, total, name: None)
    write_model_file(folder, model.config, {"eos_token_id": [2, 5]}, {"layout": "huggingface"})
    return folder


@pytest.fixture(autouse=True)
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        generation, "Meter", functools.partial(Meter, sensors=[Steady("counter")], discover_sensors=False)
    )


def hoofprint(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["generate", *map(str, arguments)])


def ask(folder: Path, *prompts: str, **more: Any) -> dict[str, Any]:
    return generate_texts(folder, Request(prompts=prompts, **{"max_tokens": 20} | more), lambda row, text, ended: None)


def byte_decode(ids: Any) -> str:
    return bytes(ids).decode("utf-8", errors="replace")


def said(text: Text, tokens: bytes) -> list[str]:
    return [text.add(token) for token in tokens]


def test_a_text_grows_by_whole_characters() -> None:
    text = Text("", [1], [], byte_decode)
    assert said(text, "aé✓b".encode()) == ["a", "", "é", "", "", "✓", "b"]
    assert said(text, b"\xe2\x9c") == ["", ""] and text.finish() == "\ufffd"
    assert text.text == "aé✓b\ufffd" and text.new_tokens == 9


def test_a_stop_string_is_never_shown_nor_held_back_for_nothing() -> None:
    text = Text("", [1], ["STOP", "TO."], byte_decode)
    assert said(text, b"aSTx") == ["a", "", "", "STx"]
    assert said(text, b"ySTO.zz") == ["y", "", "", "", "S", "", ""]  # the shorter of the two came first
    assert text.stopped and text.text == "aSTxyS" and text.finish() == ""
    text = Text("", [1], ["STOP"], byte_decode)
    assert said(text, b"STO") == ["", "", ""] and text.finish() == "STO" and text.text == "STO"


def test_json_says_what_it_took(folder: Path) -> None:
    result = hoofprint(folder, "--prompt", "the ", "--prompt", "a lazy dog jumps", "--max-tokens", 9, "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 0 and [len(c["text"]) > 0 for c in found["completions"]] == [True, True]
    assert found["new_tokens"] == sum(c["new_tokens"] for c in found["completions"]) <= 18
    assert found["prompt_tokens"] == sum(c["prompt_tokens"] for c in found["completions"]) > 4
    assert found["energy_j"] == pytest.approx(WATTS * found["seconds"], rel=0.02)
    assert found["joule_per_token"] == pytest.approx(found["energy_j"] / found["new_tokens"])
    assert found["tokens_per_s"] == pytest.approx(found["new_tokens"] / found["seconds"])
    assert 0 < found["seconds_to_first_token"] <= found["seconds"]
    assert (found["method"], found["boundary"], found["share_measured"]) == ("counter", "node", 1.0)


def test_a_model_of_power_is_called_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        generation, "Meter", functools.partial(Meter, sensors=[Steady("modelled")], discover_sensors=False)
    )
    result = ask(folder, "the")
    assert result["method"] == "modelled" and result["share_modelled"] == 1.0
    assert summary(result).endswith(f"{result['joule_per_token']:.3g} J/token (CPU modelled, not measured)")


class Late(Steady):
    """A model that is found a moment after it was asked for."""

    def __init__(self) -> None:
        super().__init__("modelled")
        self._ready_s: float | None = None

    def read(self) -> Reading:
        self._ready_s = self._ready_s or time.monotonic() + 0.3
        return Reading(pending=True) if time.monotonic() < self._ready_s else super().read()


def test_a_model_is_awaited_until_it_is_looked_up_and_not_until_the_meter_asks_again() -> None:
    with Meter(sensors=[Late()], discover_sensors=False) as meter:
        generation._await_models(meter)
        assert [device["power_w"] for device in meter.now()] == [WATTS]


def test_no_sensor_gives_no_figure(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "Meter", functools.partial(Meter, discover_sensors=False))
    result = ask(folder, "the")
    assert result["energy_j"] is None and result["joule_per_token"] is None and result["method"] is None
    assert summary(result).endswith("J/token not known: no device of this node was read; hoofprint doctor says which "
                                    "there are")  # fmt: skip
    nothing = ask(folder, "the", stop_ids=range(310))
    assert nothing["new_tokens"] == 0 and summary(nothing).endswith("J/token not known: nothing was drawn")


def test_texts_are_the_same_in_a_batch_and_appear_in_order(folder: Path) -> None:
    prompts = ["the quick", "a", "lazy dogs"]
    alone = [
        ask(folder, prompt, sampling=Sampling(temperature=0.9, seed=4 + n))["completions"][0]["text"]
        for n, prompt in enumerate(prompts)
    ]
    assert len(set(alone)) == 3
    options = [part for prompt in prompts for part in ("--prompt", prompt)]
    result = hoofprint(folder, *options, "--max-tokens", 20, "--temperature", 0.9, "--top-p", 1, "--seed", 4)
    assert result.stdout == "\n\n".join(p + t for p, t in zip(prompts, alone, strict=True)) + "\n"
    assert "tokens/s" in result.stderr and "J/token (CPU by counters)" in result.stderr


def test_texts_end_at_stop_strings_and_tokens_and_at_the_context(folder: Path) -> None:
    whole = ask(folder, "the", max_tokens=10**6)["completions"][0]
    assert whole["finish_reason"] == "context" and whole["prompt_tokens"] + whole["new_tokens"] == CONTEXT
    part = whole["text"][5:8]
    cut = ask(folder, "the", max_tokens=50, stop=[part, "never said"])["completions"][0]
    assert cut["finish_reason"] == "stop" and cut["text"] == whole["text"][: whole["text"].find(part)]
    assert cut["new_tokens"] < whole["new_tokens"]
    with_the_last = ask(folder, "the", max_tokens=cut["new_tokens"], stop=[part])["completions"][0]
    assert with_the_last == cut
    tokenizer = Tokenizer.load(folder / "tokenizer.model")
    model = generation.load_weights(open_model_folder(folder), torch.device("cpu"))
    drawn = list(Generation(model, [tokenizer.encode("the", bos=True)], max_new_tokens=9))
    stopped = ask(folder, "the", stop_ids=[drawn[6][0]])["completions"][0]
    assert stopped["new_tokens"] == drawn.index(drawn[6]) and stopped["finish_reason"] == "stop"
    assert ask(folder, "the", max_tokens=3)["completions"][0]["finish_reason"] == "length"


def test_all_ends_of_text_are_known_and_a_gpu_is_to_record_the_steps_of_long_texts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    class Watched(Generation):
        def __init__(self, *args: Any, **more: Any) -> None:
            given.append((more["stop_ids"], more["recorded"]))
            super().__init__(*args, **more)

    monkeypatch.setattr(generation, "Generation", Watched)
    ask(folder, "the", stop_ids=[7])
    ask(folder, "the", max_tokens=RECORDED_FROM)
    ask(folder, "lazy dogs " * 4, max_tokens=100)  # there is room for a few only
    assert given == [({2, 5, 7}, False), ({2, 5}, True), ({2, 5}, False)]


def test_a_prompt_longer_than_the_context_is_named_and_refused(folder: Path) -> None:
    result = hoofprint(folder, "--prompt", "short", "--prompt", "lazy " * 100)
    assert isinstance(result.exception, BadInput) and result.stdout == ""
    said = str(result.exception)
    assert "prompt 2 ('lazy lazy" in said and f"the model's context {CONTEXT}: shorten it" in said
    assert "prompt 1" not in said
    result = hoofprint(folder, "--prompt", "lazy " * 100)
    assert str(result.exception).startswith("the prompt ('lazy")
    result = hoofprint(folder, "--prompt", "a", "--stop-id", 310)  # else it would be ignored in silence
    assert isinstance(result.exception, BadInput) and "the model's tokens are 0 to 309" in str(result.exception)
    result = hoofprint(folder, "--prompt", "a", "--stop", "x", "--stop", "")
    assert isinstance(result.exception, BadInput) and "--stop is empty" in str(result.exception)


def test_a_row_of_the_model_without_a_piece_is_shown_and_ends_nothing(folder: Path, tmp_path: Path) -> None:
    """Rows that pad a vocabulary are drawn like others, and tokenizers may lack tokens that were added to a model."""
    (tmp_path / FIRST).mkdir(parents=True)
    (tmp_path / "tokenizer.model").write_bytes((folder / "tokenizer.model").read_bytes())
    model = Llama(LlamaConfig(dim=32, n_layers=1, n_heads=4, vocab_size=2000, sequence_length=CONTEXT, init_std=0.3))
    init_weights(model, 2)
    write_checkpoint(tmp_path / FIRST, InMemory(model), lambda done, total, name: None)
    write_model_file(tmp_path, model.config, {}, {"layout": "huggingface"})
    result = hoofprint(tmp_path, "--prompt", "the", "--max-tokens", 30, "--temperature", 2, "--top-p", 1, "--json")
    assert result.exit_code == 0, result.output
    [text] = json.loads(result.stdout)["completions"]
    assert text["new_tokens"] == 30 and text["text"].count("\ufffd") > 15


def test_ctrl_c_shows_what_there_is_and_what_it_took(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(Generation):
        def __iter__(self) -> Iterator[list[int | None]]:
            for number, step in enumerate(super().__iter__()):
                if number == 4:
                    raise KeyboardInterrupt
                yield step

    whole = hoofprint(folder, "--prompt", "the", "--temperature", 0, "--max-tokens", 20)
    monkeypatch.setattr(generation, "Generation", Interrupted)
    result = hoofprint(folder, "--prompt", "the", "--temperature", 0, "--max-tokens", 20)
    assert result.exit_code == 130 and whole.stdout.startswith(result.stdout.rstrip("\ufffd\n"))
    assert result.stdout.endswith("\n") and len(result.stdout) < len(whole.stdout)
    assert "4 new tokens" in result.stderr and "J/token" in result.stderr and "stopped" in result.stderr
    result = hoofprint(folder, "--prompt", "the", "--temperature", 0, "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 130 and found["interrupted"]
    assert found["completions"][0]["finish_reason"] == "interrupted" and found["new_tokens"] == 4


def test_a_gpu_that_is_too_small_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> Llama:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(generation, "load_weights", full)
    with pytest.raises(BadInput, match="2 prompts do not fit into the GPU's memory: give fewer"):
        ask(folder, "a", "b")
