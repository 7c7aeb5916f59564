"""Text from a trained run: its newest checkpoint, its own tokenizer."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp

from model.config import LlamaConfig
from model.generate import generate
from model.transformer import Llama
from orchestrator.checkpoint import newest_complete
from orchestrator.data.tokenizer import Tokenizer
from orchestrator.spec_file import BadInput, load_experiment


def load_model(run: Path) -> tuple[Llama, Tokenizer]:
    """Model and tokenizer of a run, on the GPU if there is one; BadInput where there is no complete checkpoint."""
    if not (run / "experiment.yaml").exists():
        raise BadInput(f"{run} is not a run: it has no experiment.yaml")
    newest = newest_complete(run / "checkpoints")
    if newest is None:
        raise BadInput(f"{run} has no complete checkpoint yet")
    tokenizer = Tokenizer.load(run / "tokenizer.model")
    config: LlamaConfig = load_experiment(run / "experiment.yaml").llama_config(tokenizer.vocab_size)
    model = Llama(config)
    state: dict[str, Any] = {"app": {"model": model.state_dict()}}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is what is meant
        dcp.load(state, checkpoint_id=newest, no_dist=True)
    model.load_state_dict(state["app"]["model"])
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer


def generate_text(
    run: Path, prompt: str, max_tokens: int, temperature: float, top_p: float, seed: int
) -> Iterator[str]:
    """The prompt, then its continuation in pieces as they are drawn."""
    model, tokenizer = load_model(run)
    tokens = tokenizer.encode(prompt, bos=True)
    room = model.config.sequence_length - len(tokens)
    if room < 1:
        raise BadInput(
            f"the prompt has {len(tokens)} tokens, the model's context {model.config.sequence_length}: shorten it"
        )
    shown = prompt
    yield prompt
    drawn: list[int] = []
    for token in generate(
        model,
        tokens,
        max_new_tokens=min(max_tokens, room),
        temperature=temperature,
        top_p=top_p,
        eos_id=tokenizer.eos_id,
        seed=seed,
    ):
        drawn.append(token)
        # A character may be spread over several byte tokens: what is shown grows only by whole characters.
        text = prompt + tokenizer.decode(drawn)
        if text.startswith(shown) and not text.endswith("\ufffd"):
            yield text[len(shown) :]
            shown = text
