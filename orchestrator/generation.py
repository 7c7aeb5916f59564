"""Text from a trained run or imported weights: the newest checkpoint, its own tokenizer."""

from collections.abc import Iterator
from pathlib import Path

import torch

from model.generate import generate
from model.transformer import Llama
from model.weights.dcp import CheckpointWeights
from model.weights.tensors import Cast, main_dtype
from orchestrator.data.tokenizer import Tokenizer
from orchestrator.model_folder import open_model_folder
from orchestrator.spec_file import BadInput


def load_model(path: Path) -> tuple[Llama, Tokenizer]:
    """Model and tokenizer of a run or of imported weights, in their dtype, on the GPU if there is one.

    BadInput where there is no complete checkpoint, or no tokenizer.
    """
    folder = open_model_folder(path)
    tokenizer = folder.load_tokenizer()
    stored = CheckpointWeights(folder.checkpoint, folder.config)
    source = Cast(stored, main_dtype(stored.tensors))  # one dtype: a product of two would be refused
    with torch.device("meta"):
        model = Llama(folder.config)
    model.load_state_dict({name: source.read(name) for name in source.tensors}, assign=True)
    model.reset_buffers()
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
