"""Greedy generation: tokens/s and J/token of ours, with and without recorded steps, and of transformers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.metered import attempt, metered
from benchmarks.training.systems import Case
from model.config import LlamaConfig
from model.generate import Generation
from model.transformer import Llama
from model.weights.hf_config import config_dict

Say = Callable[[str, Any], None]


def generation(case: Case, batches: list[int], prompt: int, new: int, seconds: float, say: Say) -> None:
    """Batches of prompts of `prompt` tokens, `new` tokens each. The weights are drawn: their values change no speed."""
    dtype, device = case.torch_dtype, case.device
    say("ours", attempt(partial(_ours, case.config, batches, prompt, new, seconds, device, dtype)))
    say("transformers", attempt(partial(_theirs, case.config, batches, prompt, new, seconds, device, dtype)))


def _prompts(config: LlamaConfig, batch: int, length: int, device: str) -> torch.Tensor:
    return torch.randint(config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(batch)).to(device)


@torch.inference_mode()
def _model(config: LlamaConfig, device: str, dtype: torch.dtype) -> Llama:
    with torch.device("meta"):
        model = Llama(config).to(dtype)
    model.to_empty(device=device)
    for parameter in model.parameters():
        parameter.normal_(0.0, config.init_std) if parameter.dim() > 1 else parameter.fill_(1.0)
    model.reset_buffers()
    return model.eval()


def _ours(
    config: LlamaConfig, batches: list[int], prompt: int, new: int, seconds: float, device: str, dtype: torch.dtype
) -> dict[str, Any]:
    model = _model(config, device, dtype)
    found: dict[str, Any] = {}
    texts: dict[str, list[int | None]] = {}

    def draw(name: str, prompts: list[list[int]], recorded: bool) -> None:
        steps = Generation(model, prompts, max_new_tokens=new, recorded=recorded)
        texts[name] = [token for step in steps for token in step]

    for batch in batches:
        prompts = _prompts(config, batch, prompt, "cpu").tolist()
        plain, recorded = f"batch {batch}", f"batch {batch}, recorded"
        found[plain] = attempt(partial(metered, partial(draw, plain, prompts, False), device, seconds, batch * new))
        if device == "cuda":
            work = partial(draw, recorded, prompts, True)
            found[recorded] = attempt(partial(metered, work, device, seconds, batch * new))
        if plain in texts and recorded in texts:
            # Of drawn weights the likeliest tokens are close together: rounding decides now and then.
            same = [a == b for a, b in zip(texts[plain], texts[recorded], strict=True)]
            found[recorded]["same_tokens"] = sum(same) / len(same)
    return found


def _theirs(
    config: LlamaConfig, batches: list[int], prompt: int, new: int, seconds: float, device: str, dtype: torch.dtype
) -> dict[str, Any]:
    import transformers

    with torch.device(device):
        model = transformers.LlamaForCausalLM(
            transformers.LlamaConfig.from_dict(config_dict(config) | {"pad_token_id": 0})
        )
    model = model.to(dtype).eval()
    found: dict[str, Any] = {}
    for batch in batches:
        prompts = _prompts(config, batch, prompt, device)
        options = {"attention_mask": torch.ones_like(prompts), "max_new_tokens": new, "do_sample": False}
        work = partial(model.generate, prompts, **options)
        found[f"batch {batch}"] = attempt(partial(metered, work, device, seconds, batch * new))
    return found
