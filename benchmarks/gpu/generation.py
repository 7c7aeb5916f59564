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
Keep = Callable[[str, Callable[[], object], int], None]  # what, work, tokens of a call


def generation(case: Case, batches: list[int], prompt: int, new: int, seconds: float, say: Say) -> None:
    """Batches of prompts of `prompt` tokens, `new` tokens each. The weights are drawn: their values change no speed."""
    given = (case, batches, prompt, new)
    for name, system in (("ours", _ours), ("transformers", _theirs)):
        found: dict[str, Any] = {}

        def keep(what: str, work: Callable[[], object], tokens: int, name: str = name, found: Any = found) -> None:
            # A call is many steps: one warms up.
            found[what] = attempt(partial(metered, work, case.device, seconds, tokens, warm_up=1, least=2))
            say(name, found)  # after each, so that a part that is cut short keeps what it has

        failed = attempt(partial(_done, system, *given, keep))
        if "error" in failed:
            say(name, found | failed)


def _done(system: Callable[..., None], *given: Any) -> dict[str, Any]:
    system(*given)
    return {}


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


def _ours(case: Case, batches: list[int], prompt: int, new: int, keep: Keep) -> None:
    model = _model(case.config, case.device, case.torch_dtype)

    def draw(prompts: list[list[int]], recorded: bool) -> None:
        for _ in Generation(model, prompts, max_new_tokens=new, recorded=recorded):
            pass

    for batch in batches:
        prompts = _prompts(case.config, batch, prompt, "cpu").tolist()
        if case.device != "cuda" or batch == batches[0]:  # what recording gains, one batch tells
            keep(f"batch {batch}", partial(draw, prompts, False), batch * new)
        if case.device == "cuda":
            keep(f"batch {batch}, recorded", partial(draw, prompts, True), batch * new)


def _theirs(case: Case, batches: list[int], prompt: int, new: int, keep: Keep) -> None:
    import transformers

    with torch.device(case.device):
        given = transformers.LlamaConfig.from_dict(config_dict(case.config) | {"pad_token_id": 0})
        model = transformers.AutoModelForCausalLM.from_config(given, dtype=case.torch_dtype).eval()
    for batch in batches:
        prompts = _prompts(case.config, batch, prompt, case.device)
        options = {"attention_mask": torch.ones_like(prompts), "max_new_tokens": new, "do_sample": False}
        keep(f"batch {batch}", partial(model.generate, prompts, **options), batch * new)
