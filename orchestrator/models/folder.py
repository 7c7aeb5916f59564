"""A folder with a trained model in it: a run, or what `hoofprint import` wrote. No torch: the driver looks too.

model.json       of imported weights: the model's sizes, where it came from (a run has experiment.yaml)
tokenizer.model  and other files of a tokenizer, where there are some; tokenizer.json alone will do
checkpoints/step-*/   torch.distributed.checkpoint; imported weights are step 0
"""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from energy.run_version import MODEL_SCHEMA, require_known
from model.config import LlamaConfig, RopeScaling
from orchestrator.checkpoints.saved import newest_complete
from orchestrator.data.tokenizer import Tokenizer
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.file import NOTHING, BadInput, load_experiment

MODEL = "model.json"
TOKENIZER, TOKENIZER_JSON = "tokenizer.model", "tokenizer.json"
FIRST = Path("checkpoints") / "step-00000000"
# A run may train on shorter or longer sequences than its weights were trained on, and draws nothing.
FREE = ("sequence_length", "init_std")


@dataclass(frozen=True)
class ModelFolder:
    """A model that can be used, exported, or trained further."""

    path: Path
    config: LlamaConfig
    checkpoint: Path
    special_tokens: dict[str, Any]
    imported: dict[str, Any] | None  # where imported weights came from; None: trained here

    @property
    def tokenizer(self) -> Path | None:
        places = (self.path / name for name in (TOKENIZER, TOKENIZER_JSON))
        return next((path for path in places if path.exists()), None)

    def load_tokenizer(self) -> Tokenizer:
        """BadInput where there is none that this model can be used with."""
        if self.tokenizer is None:
            raise BadInput(f"{self.path} has no {TOKENIZER} or {TOKENIZER_JSON}: put that of the model there")
        try:
            tokenizer = Tokenizer.load(self.tokenizer)
        except ValueError as error:
            raise BadInput(str(error)) from error
        if tokenizer.vocab_size > self.config.vocab_size:
            raise BadInput(
                f"{self.tokenizer} has {tokenizer.vocab_size} pieces, the model only {self.config.vocab_size} rows: "
                "it belongs to another model"
            )
        return tokenizer


def open_model_folder(path: Path) -> ModelFolder:
    """The model in a run or in imported weights; BadInput where there is none, or no complete checkpoint of it."""
    is_run = (path / "experiment.yaml").exists()
    if not is_run and not (path / MODEL).exists():
        foreign = (path / "config.json").exists() or (path / "params.json").exists()
        advice = f"; import it first: hoofprint import {path} -o FOLDER" if foreign else ""
        raise BadInput(f"{path} is neither a run (experiment.yaml) nor imported weights ({MODEL}){advice}")
    require_known(path)
    newest = newest_complete(path / "checkpoints")
    if newest is None:
        raise BadInput(f"{path} has no complete checkpoint yet")
    if not is_run:
        return _imported(path, newest)
    tokenizer = Tokenizer.load(path / TOKENIZER)
    config = load_experiment(path / "experiment.yaml").llama_config(tokenizer.vocab_size)
    tokens = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    return ModelFolder(path, config, newest, tokens, None)


def _imported(path: Path, checkpoint: Path) -> ModelFolder:
    file = path / MODEL
    try:
        found: Any = json.loads(file.read_text(encoding="utf-8"))
        sizes = dict(found["config"])
        scaling = sizes.pop("rope_scaling")
        config = LlamaConfig(**sizes, rope_scaling=None if scaling is None else RopeScaling(**scaling))
        return ModelFolder(path, config, checkpoint, dict(found["special_tokens"]), dict(found["imported"]))
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{file}: not written by hoofprint import, or changed since: {error}") from error


def write_model_file(
    folder: Path, config: LlamaConfig, special_tokens: dict[str, Any], imported: dict[str, Any]
) -> None:
    value = {"schema": MODEL_SCHEMA, "config": asdict(config), "special_tokens": special_tokens, "imported": imported}
    (folder / MODEL).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def spec_keys(config: LlamaConfig) -> dict[str, Any]:
    """The `model` section of a spec for this model, without what a spec takes for granted."""
    found = asdict(config)
    found.pop("init_std")
    return {key: value for key, value in found.items() if value not in (None, False)}


def initial_weights(experiment: Experiment, tokenizer_path: Path, vocab_size: int) -> ModelFolder | None:
    """The model that `model.init_from` names, None without; BadInput where the spec is of another model."""
    named = experiment.model.init_from
    if named is None:
        return None
    folder = open_model_folder(named.resolve())
    wanted, found = experiment.llama_config(vocab_size), folder.config
    odd = [
        f"model.{field.name} is {getattr(wanted, field.name)} in the spec, {getattr(found, field.name)} in the weights"
        for field in fields(LlamaConfig)
        if field.name not in FREE and getattr(wanted, field.name) != getattr(found, field.name)
    ]
    kept = folder.tokenizer
    if kept is not None and kept.read_bytes() != tokenizer_path.read_bytes():
        odd.append(f"data.tokenizer.path is not the tokenizer of the weights; that is {kept}")
    if odd:
        raise BadInput(f"model.init_from {named}: the spec is of another model\n  " + "\n  ".join(odd) + f"\n{NOTHING}")
    return folder
