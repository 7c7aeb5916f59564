"""generate: continues prompts with a trained or imported model."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from orchestrator.commands import JSON, print_json

KINDS = {"gpu": "GPU", "cpu": "CPU", "dram": "memory", "node": "the whole node", "baseline": "the rest of the node"}
HOW = {
    "counter": "by counters",
    "integrated": "by power readings",
    "modelled": "modelled, not measured",
    "assumed": "assumed, not measured",
}


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--prompt", "prompts", required=True, multiple=True, help="Several are continued in one batch.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=100, show_default=True, help="For each prompt.")
@click.option("--temperature", type=click.FloatRange(min=0), default=0.8, show_default=True, help="0 is greedy.")
@click.option("--top-p", type=click.FloatRange(min=0, max=1, min_open=True), default=0.95, show_default=True)
@click.option("--seed", type=click.IntRange(0, 2**53), default=1, show_default=True,
              help="Of the first prompt; the next one has one more.")  # fmt: skip
@click.option("--stop", multiple=True, metavar="TEXT", help="Ends a text where this would come; may be repeated.")
@click.option("--stop-id", "stop_ids", type=int, multiple=True, help="A token that ends a text like the model's own.")
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto", show_default=True,
              help="auto: as stored; on a GPU bfloat16.")  # fmt: skip
@JSON
@click.option("-q", "--quiet", is_flag=True, help="The texts alone, without what they took.")
def generate(
    model: Path,
    prompts: tuple[str, ...],
    max_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    stop: tuple[str, ...],
    stop_ids: tuple[int, ...],
    dtype: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Continues prompts with the newest checkpoint of MODEL: a run, or weights that were imported.

    Texts appear as they grow, several one after another. At the end stands what they took: tokens/s and J/token, from
    reading the prompts to the last token, of all devices of this node; loading the model is not in it.
    """
    import torch

    from model.generate import Sampling
    from orchestrator.models.generation import Request, generate_texts

    request = Request(
        prompts=prompts,
        max_tokens=max_tokens,
        sampling=Sampling(temperature=temperature, top_p=top_p, seed=seed),
        stop=stop,
        stop_ids=stop_ids,
        dtype=None if dtype == "auto" else getattr(torch, dtype),
    )
    screen = _Screen(() if as_json else prompts)
    result = generate_texts(model, request, screen.show)
    if as_json:
        print_json(result)
    elif not quiet:
        click.echo(summary(result), err=True)
    if result["interrupted"]:
        click.echo("stopped", err=True)
        sys.exit(130)


class _Screen:
    """Texts one after another on stdout: the first that has not ended as it grows, those behind it when it has."""

    def __init__(self, prompts: Sequence[str]) -> None:
        self._unseen = list(prompts)
        self._ended = [False] * len(prompts)
        self._row = 0

    def show(self, row: int, text: str, ended: bool) -> None:
        if not self._unseen:
            return
        self._unseen[row] += text
        self._ended[row] = ended
        while self._row < len(self._unseen):
            if self._unseen[self._row]:
                click.echo(self._unseen[self._row], nl=False)
                self._unseen[self._row] = ""
            if not self._ended[self._row]:
                return
            self._row += 1
            click.echo("\n" if self._row < len(self._unseen) else "")  # an empty line between two


def summary(result: dict[str, Any]) -> str:
    """One line: tokens, seconds, tokens/s, J/token and how the joules are known."""
    done = (
        f"{result['prompt_tokens']:,} prompt tokens, {result['new_tokens']:,} new tokens in {result['seconds']:.2f} s: "
        f"{result['tokens_per_s']:,.1f} tokens/s"
    )
    if not result["new_tokens"]:
        return f"{done}, J/token not known: nothing was drawn"
    if result["joule_per_token"] is None:
        why = "; ".join(result["warnings"]) or "no device of this node was read; hoofprint doctor says which there are"
        return f"{done}, J/token not known: {why}"
    by_method: dict[str, list[str]] = {}
    for device in result["devices"]:
        how = "not accounted" if device["energy_j"] is None else HOW[device["method"]]
        kinds = by_method.setdefault(how, [])
        kind = KINDS[device["kind"]]
        if kind not in kinds:
            kinds.append(kind)
    known = "; ".join(f"{' and '.join(kinds)} {how}" for how, kinds in by_method.items())
    return f"{done}, {result['joule_per_token']:.3g} J/token ({known})"
