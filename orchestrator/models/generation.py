"""Texts from a trained run or imported weights: the newest checkpoint, its own tokenizer, and what they took."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from energy import Meter
from energy.boundaries import boundary_of, shares_of
from energy.metering.windows import Window
from model.generate import Generation, Sampling
from model.transformer import Llama
from model.weights.dcp import CheckpointWeights
from model.weights.tensors import Cast, main_dtype
from orchestrator.data.tokenizer import Tokenizer
from orchestrator.models.folder import ModelFolder, open_model_folder
from orchestrator.spec.file import BadInput

CUT = "\ufffd"  # what bytes that are not a whole character decode to
LOOK_UP_S = 5.0
# New tokens from which a GPU's steps are worth recording, which takes as long as a few of them (what it gains is in
# benchmarks/results/gpu.md).
RECORDED_FROM = 32
SHOWN_OF_PROMPT = 40  # characters of a prompt in a message
Show = Callable[[int, str, bool], None]  # number of the prompt, more of its text, whether it has ended


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to continue, and how. stop: strings that end a text, and are not part of it. dtype: None, the stored one;
    on a GPU bfloat16, in which training computes there."""

    prompts: Sequence[str]
    max_tokens: int
    sampling: Sampling = Sampling()
    stop: Sequence[str] = ()
    stop_ids: Sequence[int] = ()
    dtype: torch.dtype | None = None


class Text:
    """A prompt's continuation, given out by whole characters and never beyond a stop string."""

    def __init__(self, prompt: str, ids: Sequence[int], stop: Sequence[str], decode: Callable[[Iterable[int]], str]):
        self.prompt, self.ids, self.new_tokens, self.text = prompt, ids, 0, ""
        self.stopped = False  # at a stop string
        self.ended = False
        self._stop, self._decode = stop, decode
        self._bytes: list[int] = []  # tokens that do not end with a whole character yet
        self._held = ""  # may be the beginning of a stop string

    def add(self, token: int) -> str:
        """What can be shown now that the token is there."""
        self.new_tokens += 1
        self._bytes.append(token)
        piece = self._decode(self._bytes)
        return "" if piece.endswith(CUT) else self._show(piece)

    def finish(self) -> str:
        """The rest, when no token comes any more."""
        shown = self._show(self._decode(self._bytes)) + self._held
        self.text += self._held
        self._held = ""
        return shown

    def _show(self, piece: str) -> str:
        self._bytes.clear()
        held = "" if self.stopped else self._held + piece
        found = [place for place in map(held.find, self._stop) if place >= 0]
        if found:
            self.stopped, shown, self._held = True, held[: min(found)], ""
        else:
            lengths = range(1, min(len(held) + 1, max(map(len, self._stop), default=0)))
            kept = max((n for n in lengths if any(s.startswith(held[-n:]) for s in self._stop)), default=0)
            shown, self._held = held[: len(held) - kept], held[len(held) - kept :]
        self.text += shown
        return shown


def load_weights(folder: ModelFolder, device: torch.device, dtype: torch.dtype | None = None) -> Llama:
    """The model of `folder`, read one tensor at a time into the memory of `device`. dtype: None, the stored one."""
    stored = CheckpointWeights(folder.checkpoint, folder.config)
    source = Cast(stored, dtype or main_dtype(stored.tensors))  # one dtype: a product of two would be refused
    with torch.device("meta"):
        model = Llama(folder.config)
    model.load_state_dict({name: source.read(name).to(device) for name in source.tensors}, assign=True)
    model.reset_buffers()
    return model.eval()


def generate_texts(path: Path, request: Request, show: Show) -> dict[str, Any]:
    """Continues the prompts of `request`, all in one batch; `show` is told of each text as it grows.

    Returns what `hoofprint generate --json` prints. Ctrl-C ends the texts where they are. BadInput where the model
    cannot be used, a prompt leaves no room in its context, or a stop string is empty.
    """
    if "" in request.stop:
        raise BadInput("--stop is empty: give the text that ends a text, or leave it out")
    folder = open_model_folder(path)
    tokenizer = folder.load_tokenizer()
    odd = [str(token) for token in request.stop_ids if not 0 <= token < folder.config.vocab_size]
    if odd:
        raise BadInput(f"--stop-id {', '.join(odd)}: the model's tokens are 0 to {folder.config.vocab_size - 1}")
    decode = partial(_decoded, tokenizer)
    texts = [Text(prompt, tokenizer.encode(prompt, bos=True), request.stop, decode) for prompt in request.prompts]
    rooms = _rooms(texts, folder.config.sequence_length)
    device = _device()
    try:
        with Meter() as meter:  # before the weights are read: models of CPU and memory take seconds to be looked up
            model = load_weights(folder, device, request.dtype or _usual_dtype(device))
            generation = Generation(
                model,
                [text.ids for text in texts],
                max_new_tokens=[min(request.max_tokens, room) for room in rooms],
                sampling=request.sampling,
                stop_ids={*tokenizer.end_ids, *request.stop_ids, *_stop_ids(folder)},
                recorded=min(request.max_tokens, max(rooms)) >= RECORDED_FROM,
            )
            _await_models(meter)
            window, first_s = _continue(generation, texts, meter, show)
            done = figures(window, sum(text.new_tokens for text in texts))
    except torch.OutOfMemoryError as error:
        raise BadInput(
            f"{path} and {len(texts)} prompts do not fit into the GPU's memory: give fewer prompts at a time, or a "
            "smaller --max-tokens"
        ) from error
    interrupted = not all(generation.endings)
    return {
        "completions": [
            {
                "prompt": text.prompt,
                "text": text.text,
                "prompt_tokens": len(text.ids),
                "new_tokens": text.new_tokens,
                "finish_reason": _reason("stop" if text.stopped else ending, request.max_tokens > room),
            }
            for text, ending, room in zip(texts, generation.endings, rooms, strict=True)
        ],
        "interrupted": interrupted,
        "prompt_tokens": sum(len(text.ids) for text in texts),
        **done,
        "seconds_to_first_token": first_s,
        "device": device.type,
        "dtype": str(model.embedding.weight.dtype).removeprefix("torch."),
        "warnings": list(meter.warnings),
    }


def _decoded(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """The text of tokens; of a row of the model for which the tokenizer has no piece, U+FFFD."""
    known = itertools.groupby(ids, lambda token: token < tokenizer.vocab_size)
    return "".join(tokenizer.decode(group) if is_piece else CUT * len([*group]) for is_piece, group in known)


def _await_models(meter: Meter) -> None:
    """Until the models of CPU and memory are looked up, mostly while the weights were read: that takes the processor,
    which would show in the figures."""
    give_up_s = time.monotonic() + LOOK_UP_S
    while time.monotonic() < give_up_s:
        modelled = [device for device in meter.now() if device["method"] == "modelled"]
        if all(device["power_w"] is not None or device["missing"] for device in modelled):
            return
        meter.end(meter.begin("look-up"))  # has the meter ask them, which it does every ten seconds only by itself
        time.sleep(0.1)


def _continue(generation: Generation, texts: Sequence[Text], meter: Meter, show: Show) -> tuple[Window, float | None]:
    """The window of metering around all tokens, and the seconds until the first; Ctrl-C ends it early."""
    first_s: float | None = None
    window = meter.begin("generation")
    began_s = time.perf_counter()
    try:
        for step in generation:
            first_s = first_s or time.perf_counter() - began_s
            for row, (token, text) in enumerate(zip(step, texts, strict=True)):
                if text.ended:
                    continue
                shown = "" if token is None else text.add(token)
                if text.stopped:
                    generation.end(row)
                text.ended = generation.endings[row] is not None
                show(row, shown + (text.finish() if text.ended else ""), text.ended)
    except KeyboardInterrupt:
        for row, text in enumerate(texts):
            if not text.ended:
                show(row, text.finish(), True)
    finally:
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # a step may be at work whose tokens nobody wants
        meter.end(window)
    return window, first_s


def figures(window: Window, new_tokens: int) -> dict[str, Any]:
    """What a window says of the tokens that were drawn in it, and how that is known; None where it is not."""
    energy_j, seconds = window.energy_j, window.duration_s
    known = [device for device in window.counted if device.energy_j is not None]
    methods = sorted({device.method for device in known})
    return {
        "new_tokens": new_tokens,
        "seconds": seconds,
        "tokens_per_s": new_tokens / seconds,
        "energy_j": energy_j,
        "low_j": window.low_j,
        "high_j": window.high_j,
        "joule_per_token": energy_j / new_tokens if energy_j is not None and new_tokens else None,
        "method": " + ".join(methods) or None,
        "boundary": boundary_of(known) if known else None,
        **shares_of(known, energy_j),
        "devices": [
            {"name": d.name, "kind": d.kind, "energy_j": d.energy_j, "method": d.method, "note": d.note or None}
            for d in window.counted
        ],
    }


def _rooms(texts: Sequence[Text], context: int) -> list[int]:
    """How many tokens fit after each prompt; BadInput that names every prompt after which there is no room for one."""
    rooms = [context - len(text.ids) for text in texts]
    faults = []
    for number, (text, room) in enumerate(zip(texts, rooms, strict=True), 1):
        if room < 1:
            which = "the prompt" if len(texts) == 1 else f"prompt {number}"
            shown = text.prompt[:SHOWN_OF_PROMPT] + ("..." if len(text.prompt) > SHOWN_OF_PROMPT else "")
            faults.append(f"{which} ({shown!r}) has {len(text.ids)} tokens, the model's context {context}: shorten it")
    if faults:
        raise BadInput("\n".join(faults))
    return rooms


def _stop_ids(folder: ModelFolder) -> list[int]:
    """Released models may have several ends of text."""
    given = folder.special_tokens.get("eos_token_id")
    return given if isinstance(given, list) else [] if given is None else [given]


def _reason(ending: str | None, by_context: bool) -> str:
    """stop: a stop token or string; length: --max-tokens; context: the model's; interrupted: by Ctrl-C."""
    if ending is None:
        return "interrupted"
    return "context" if ending == "length" and by_context else ending


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _usual_dtype(device: torch.device) -> torch.dtype | None:
    return torch.bfloat16 if device.type == "cuda" else None
