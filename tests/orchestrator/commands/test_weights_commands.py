"""import, export, and what is made of them: generation, a training that starts from them, a folder for transformers."""

import json
import os
import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
import yaml
from click.testing import CliRunner, Result
from tiny import train, write_spec

from energy.runs import RunFolder
from model.config import LlamaConfig
from model.transformer import Llama
from model.weights.dcp import CheckpointWeights
from orchestrator.checkpoints.saved import newest_complete
from orchestrator.cli import cli
from orchestrator.data.prepare import prepare_corpus, source_specs
from orchestrator.data.shards import open_corpus
from orchestrator.data.stream import TokenStream
from orchestrator.models import weights
from orchestrator.models.folder import initial_weights, open_model_folder
from orchestrator.models.generation import load_weights
from orchestrator.spec.file import BadInput, dump_experiment, load_experiment

STEPS = 20


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks, as a folder that other commands take."""
    folder = tmp_path_factory.mktemp("weights")
    spec = write_spec(folder)
    raw = yaml.safe_load(spec.read_text())
    raw["model"] |= {"n_heads": 4, "n_kv_heads": 2, "rope_theta": 50000.0}
    spec.write_text(yaml.safe_dump(raw))
    trained = train(spec, folder / "run", world=2)
    (trained.path / "experiment.yaml").write_text(dump_experiment(load_experiment(spec)))
    tokenizer = next((folder / "cache").rglob("tokenizer.model"))
    shutil.copyfile(tokenizer, trained.path / "tokenizer.model")
    return trained.path


def hoofprint(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def done(*arguments: object) -> dict[str, Any]:
    result = hoofprint(*arguments, "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout)


def trained_weights(run: Path) -> dict[str, torch.Tensor]:
    """The weights of a run by torch's own loader, whole."""
    model = Llama(open_model_folder(run).config)
    state: dict[str, Any] = {"app": {"model": model.state_dict()}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: not distributed
        dcp.load(state, checkpoint_id=newest_complete(run / "checkpoints"), no_dist=True)
    return state["app"]["model"]


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    opened = open_model_folder(folder)
    source = CheckpointWeights(opened.checkpoint, opened.config)
    return {name: source.read(name) for name in source.tensors}


@pytest.mark.parametrize("options", [(), ("--format", "meta"), ("--format", "meta", "--shards", 2)])
def test_a_run_goes_out_and_comes_back_bit_for_bit(run: Path, options: tuple[object, ...], tmp_path: Path) -> None:
    out = done("export", run, "-o", tmp_path / "out", *options)
    assert out["checkpoint"] == f"step-{STEPS:08d}" and out["dtype"] == "float32" and not out["rounded"]
    back = done("import", tmp_path / "out", "-o", tmp_path / "back")
    assert {key: back[key] for key in ("params", "tensors", "bytes", "format")} == {
        key: out[key] for key in ("params", "tensors", "bytes", "format")
    }
    assert back["tokenizer"][0] == "tokenizer.model" and not back["warnings"]
    assert (tmp_path / "back" / "tokenizer.model").read_bytes() == (run / "tokenizer.model").read_bytes()
    found, expected = weights_in(tmp_path / "back"), trained_weights(run)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    sizes = ("dim", "n_kv_heads", "ffn_hidden", "vocab_size", "sequence_length", "norm_eps", "rope_theta")
    assert open_model_folder(tmp_path / "back").special_tokens == {"bos_token_id": 1, "eos_token_id": 2}
    ours, theirs = open_model_folder(run).config, open_model_folder(tmp_path / "back").config
    assert [getattr(ours, size) for size in sizes] == [getattr(theirs, size) for size in sizes]


@torch.no_grad()
def test_transformers_loads_a_run_with_its_tokenizer(run: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    done("export", run, "-o", tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    folder = open_model_folder(run)
    model, tokenizer = load_weights(folder, torch.device("cpu")), folder.load_tokenizer()
    text = "abc  def\n ghi 123 é✓"
    ids = tokenizer.encode(text, bos=True)
    tokens = torch.tensor([ids])
    torch.testing.assert_close(model(tokens), theirs(tokens).logits, atol=1e-5, rtol=1e-5)
    cut = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert cut(text).input_ids == ids
    assert cut.decode(ids, skip_special_tokens=True) == text


def test_generation_is_the_same_from_imported_weights(run: Path, tmp_path: Path) -> None:
    done("export", run, "-o", tmp_path / "out")
    done("import", tmp_path / "out", "-o", tmp_path / "back")
    said = [hoofprint("generate", folder, "--prompt", "a", "--max-tokens", 20) for folder in (run, tmp_path / "back")]
    assert said[0].exit_code == 0 and said[0].stdout == said[1].stdout and len(said[0].stdout) > 5
    done("import", tmp_path / "out", "-o", tmp_path / "half", "--dtype", "bf16")
    model = load_weights(open_model_folder(tmp_path / "half"), torch.device("cpu"))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16} and model.cos.dtype == torch.float32
    assert hoofprint("generate", tmp_path / "half", "--prompt", "a", "--max-tokens", 5).exit_code == 0


def spec_from(run: Path, imported: Path, folder: Path, **model: Any) -> Path:
    raw = yaml.safe_load((run / "experiment.yaml").read_text())
    raw["model"] |= {"init_from": str(imported)} | model
    raw["data"]["tokenizer"] = {"path": str(imported / "tokenizer.model")}
    path = folder / "from.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def first_loss(spec: Path, model: Path) -> float:
    """Of the imported weights on the sequences of the first step, in nats per token; whole, in one process."""
    experiment = load_experiment(spec)
    corpus = open_corpus(prepare_corpus(experiment, lambda *_: None).path, source_specs(experiment))
    stream = TokenStream(corpus, None, experiment.model.sequence_length, experiment.seed)
    batch = torch.from_numpy(stream.batch(0, experiment.batch_sequences).astype("int64"))
    folder = open_model_folder(model)
    with torch.no_grad():
        return (load_weights(folder, torch.device("cpu"), torch.float32)(batch[:, :-1], batch[:, 1:]) / 256).item()


def test_a_training_starts_from_imported_weights(run: Path, tmp_path: Path) -> None:
    done("export", run, "-o", tmp_path / "out")
    done("import", tmp_path / "out", "-o", tmp_path / "back", "--dtype", "bf16")
    spec = spec_from(run, tmp_path / "back", tmp_path)
    experiment = load_experiment(spec)
    start = initial_weights(experiment, tmp_path / "back" / "tokenizer.model", 400)
    assert start is not None and start.imported is not None and start.imported["layout"] == "huggingface"
    after = train(spec, tmp_path / "run", world=2, initial_weights=str(start.checkpoint))
    first, fresh = after.steps()[0]["loss"], RunFolder(run).steps()
    assert first == pytest.approx(first_loss(spec, tmp_path / "back"), rel=1e-5)
    assert first < fresh[0]["loss"] - 0.5 and first < fresh[-1]["loss"] + 0.3
    assert after.steps()[0]["step"] == 1


def test_the_spec_must_be_of_the_model_that_it_starts_from(run: Path, tmp_path: Path) -> None:
    done("export", run, "-o", tmp_path / "out")
    done("import", tmp_path / "out", "-o", tmp_path / "back")
    spec = spec_from(run, tmp_path / "back", tmp_path, n_kv_heads=4, rope_theta=1e4, sequence_length=16)
    with pytest.raises(BadInput) as refusal:
        initial_weights(load_experiment(spec), tmp_path / "back" / "tokenizer.model", 400)
    said = str(refusal.value)
    assert "model.n_kv_heads is 4 in the spec, 2 in the weights" in said and "model.rope_theta is 10000.0" in said
    assert "sequence_length" not in said  # shorter sequences are the trainer's business
    other = tmp_path / "other.model"
    other.write_bytes((run / "tokenizer.model").read_bytes() + b"\x00")
    with pytest.raises(BadInput, match="data.tokenizer.path is not the tokenizer of the weights"):
        initial_weights(load_experiment(spec_from(run, tmp_path / "back", tmp_path)), other, 400)
    raw = yaml.safe_load(spec.read_text())
    raw["data"]["tokenizer"] = {"vocab_size": 400}
    spec.write_text(yaml.safe_dump(raw))
    with pytest.raises(BadInput, match="init_from needs tokenizer.path"):
        load_experiment(spec)


def test_what_import_prints_can_be_pasted_into_a_spec(run: Path, tmp_path: Path) -> None:
    done("export", run, "-o", tmp_path / "out")
    result = hoofprint("import", tmp_path / "out", "-o", tmp_path / "back")
    assert result.exit_code == 0, result.output
    said, _, section = result.stdout.partition("put this into an experiment:\n")
    assert "parameters in" in said and "of float32, with tokenizer.model" in said
    raw = yaml.safe_load((run / "experiment.yaml").read_text())
    pasted = yaml.safe_load(section)
    raw["model"], raw["data"]["tokenizer"] = pasted["model"], pasted["data"]["tokenizer"]
    spec = tmp_path / "pasted.yaml"
    spec.write_text(yaml.safe_dump(raw))
    assert initial_weights(load_experiment(spec), tmp_path / "back" / "tokenizer.model", 400) is not None


def nothing_but(folder: Path, *names: str) -> bool:
    return sorted(path.name for path in folder.iterdir()) == sorted(names)


def test_a_failure_leaves_nothing_behind(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done("export", run, "-o", tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    result = hoofprint("import", tmp_path / "out", "-o", tmp_path / "back")
    assert isinstance(result.exception, ValueError) and "model.safetensors: cut short" in str(result.exception)
    assert nothing_but(tmp_path, "out")

    def stop(done: int, total: int, name: str) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    file.write_bytes(whole)
    with pytest.raises(KeyboardInterrupt):
        weights.import_weights(tmp_path / "out", tmp_path / "back", "keep", None, None, stop)
    for layout in ("huggingface", "meta"):
        with pytest.raises(KeyboardInterrupt):
            weights.export_weights(run, tmp_path / "back", layout, "keep", 1, 10**9, stop)
    assert nothing_but(tmp_path, "out")
    monkeypatch.setattr(weights.shutil, "disk_usage", lambda path: type("U", (), {"free": 10})())
    with pytest.raises(BadInput, match="are needed there"):
        weights.import_weights(tmp_path / "out", tmp_path / "back", "keep", None, None, lambda *_: None)
    assert nothing_but(tmp_path, "out")


def test_a_damaged_checkpoint_is_named(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    data = max((newest_complete(copy / "checkpoints") or copy).glob("*.distcp"), key=lambda file: file.stat().st_size)
    data.write_bytes(data.read_bytes()[:100])
    result = hoofprint("export", copy, "-o", tmp_path / "out")
    assert isinstance(result.exception, ValueError) and "cut short or damaged" in str(result.exception)
    assert nothing_but(tmp_path, "run")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        ([], "holds no weights that are known here"),
        (["config.json", "consolidated.00.pth"], "put one of them into a folder of its own"),
        (["consolidated.00.pth"], "no params.json"),
        (["model.safetensors"], "no config.json"),
        (["model.json"], "is hoofprint's own"),
        (["experiment.yaml", "tokenizer.model"], "is hoofprint's own"),
    ],
)
def test_a_folder_that_is_no_release_is_refused(make: list[str], said: str, tmp_path: Path) -> None:
    for name in make:
        (tmp_path / name).write_bytes(b"")
    result = hoofprint("import", tmp_path, "-o", tmp_path / "back")
    assert isinstance(result.exception, BadInput) and said in str(result.exception)


def test_bad_requests_are_refused(run: Path, tmp_path: Path) -> None:
    for arguments in (("--shards", 2), ("--format", "meta", "--max-file-size", "1GB"), ("--max-file-size", "big")):
        assert hoofprint("export", run, "-o", tmp_path / "out", *arguments).exit_code == 2
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    result = hoofprint("export", run, "-o", tmp_path / "taken")
    assert "exists: give another folder" in str(result.exception) and nothing_but(tmp_path / "taken", "file")
    done("export", run, "-o", tmp_path / "out", "--max-file-size", "20KB")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 3
    assert "import it first" in str(hoofprint("generate", tmp_path / "out", "--prompt", "a").exception)
    result = hoofprint("import", tmp_path / "out", "-o", tmp_path / "back", "--sequence-length", 5)
    assert "says both itself" in str(result.exception)


def test_a_tokenizer_that_cannot_be_used_is_kept_and_said(run: Path, tmp_path: Path) -> None:
    done("export", run, "-o", tmp_path / "out")
    (tmp_path / "out" / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")  # as Llama 3's
    (tmp_path / "out" / "tokenizer.json").write_text("{}")
    (tmp_path / "out" / "chat_template.jinja").write_text("{{ messages }}")
    back = done("import", tmp_path / "out", "-o", tmp_path / "back")
    assert "254 of the 256 bytes" in back["warnings"][0] and "tokenizer.json" in back["tokenizer"]
    refused = hoofprint("generate", tmp_path / "back", "--prompt", "a").exception
    assert isinstance(refused, BadInput) and "it cannot encode every text" in str(refused)
    for name in ("tokenizer.model", "tokenizer.json"):
        (tmp_path / "out" / name).unlink()
    assert "there was no tokenizer" in done("import", tmp_path / "out", "-o", tmp_path / "none")["warnings"][0]
    out = done("export", tmp_path / "back", "-o", tmp_path / "again")
    assert {"tokenizer.model", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} == set(
        out["tokenizer"]
    )
    assert (tmp_path / "again" / "chat_template.jinja").read_text() == "{{ messages }}"


def test_rows_beyond_the_tokenizer_are_padding(tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    raw = yaml.safe_load(spec.read_text())
    raw["model"]["vocab_size"] = 512
    spec.write_text(yaml.safe_dump(raw))
    experiment = load_experiment(spec)
    assert isinstance(experiment.llama_config(400), LlamaConfig) and experiment.llama_config(400).vocab_size == 512
    with pytest.raises(ValueError, match="model.vocab_size 512 is less than the tokenizer's 600 pieces"):
        experiment.llama_config(600)


class _Runs:
    """Unpickled without care, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def test_a_checkpoint_that_would_run_code_is_refused_and_runs_nothing(run: Path, tmp_path: Path) -> None:
    copy, proof = tmp_path / "run", tmp_path / "it-ran"
    shutil.copytree(run, copy)
    newest = newest_complete(copy / "checkpoints")
    assert newest is not None
    (newest / ".metadata").write_bytes(pickle.dumps(_Runs(proof)))
    result = hoofprint("export", copy, "-o", tmp_path / "out")
    assert isinstance(result.exception, ValueError) and "it would call posix.system" in str(result.exception)
    assert nothing_but(tmp_path, "run")
