"""Commands that bring weights in and out: import, export."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from orchestrator.commands import JSON, print_json

OUTPUT = click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="The folder to write; it must be new."
)
DTYPE = click.option(
    "--dtype", type=click.Choice(["keep", "bf16", "fp32"]), default="keep", show_default=True, help="Of the weights."
)
QUIET = click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9}


@click.command("import")
@click.argument("release", type=click.Path(path_type=Path))
@OUTPUT
@DTYPE
@click.option("--sequence-length", type=click.IntRange(min=1), help="Of a model by Meta, whose files do not say it.")
@click.option("--rope-scaling-factor", type=click.FloatRange(min=1), help="Likewise: Llama 3.1 has 8, 3.2 has 32.")
@QUIET
@JSON
def import_(
    release: Path,
    output: Path,
    dtype: str,
    sequence_length: int | None,
    rope_scaling_factor: float | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Imports the LLaMA in the folder RELEASE: Hugging Face's layout (config.json, safetensors) or Meta's (.pth).

    The folder that it writes is for generate, for export, and for the key model.init_from of an experiment.
    """
    from orchestrator.models.weights import import_weights

    with _progress("importing", quiet) as progress:
        result = import_weights(release, output, dtype, sequence_length, rope_scaling_factor, progress)
    _tell(result, as_json)
    if not as_json:
        click.echo("to train on, put this into an experiment:\n" + _section(result))


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True, file_okay=False))
@OUTPUT
@click.option("--format", "layout", type=click.Choice(["huggingface", "meta"]), default="huggingface",
              show_default=True)  # fmt: skip
@DTYPE
@click.option("--max-file-size", metavar="SIZE", help="Of Hugging Face's files, such as 500MB.  [default: 5GB]")
@click.option("--shards", type=click.IntRange(min=1), help="Files of Meta's layout: one a GPU there.  [default: 1]")
@QUIET
@JSON
def export(
    model: Path,
    output: Path,
    layout: str,
    dtype: str,
    max_file_size: str | None,
    shards: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Exports the newest checkpoint of MODEL, a run or imported weights, for transformers or Meta's code."""
    if shards is not None and layout != "meta":
        raise click.UsageError("--shards belongs to --format meta; Hugging Face's files have --max-file-size")
    if max_file_size is not None and layout != "huggingface":
        raise click.UsageError("--max-file-size belongs to --format huggingface; Meta's files have --shards")
    size = _bytes(max_file_size or "5GB")
    from typing import cast

    from model.weights.names import Layout
    from orchestrator.models.weights import export_weights

    with _progress("exporting", quiet) as progress:
        result = export_weights(model, output, cast(Layout, layout), dtype, shards or 1, size, progress)
    _tell(result, as_json)


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?b)?", text.strip().lower())
    size = int(float(match[1]) * UNITS.get(match[2] or "", 1)) if match else 0
    if not size:
        raise click.UsageError(f"--max-file-size {text}: expected a size such as 500MB or 5GB")
    return size


def _tell(result: dict[str, Any], as_json: bool) -> None:
    for warning in result["warnings"]:
        click.echo(f"warning: {warning}", err=True)
    if as_json:
        print_json(result)
        return
    if result["rounded"]:
        click.echo(f"rounded to {result['dtype']}: the weights had more digits", err=True)
    click.echo(
        f"{result['path']}: {_large(result['params'])} parameters in {result['tensors']} tensors, "
        f"{_size(result['bytes'])} of {result['dtype']}"
        + (f", with {', '.join(result['tokenizer'])}" if result["tokenizer"] else "")
    )


def _size(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.2f} MB"


def _large(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.2f} M" if number >= 1e6 else f"{number:,}"


def _section(result: dict[str, Any]) -> str:
    """The parts of a spec that say what was imported, to be pasted."""
    import yaml

    path = Path(result["path"]).resolve()  # the experiment may lie anywhere
    section: dict[str, Any] = {"model": {**result["model"], "init_from": str(path)}}
    names = [name for name in ("tokenizer.model", "tokenizer.json") if name in result["tokenizer"]]
    if names:
        section["data"] = {"tokenizer": {"path": str(path / names[0])}}
    return yaml.safe_dump(section, sort_keys=False, allow_unicode=True).rstrip()


@contextmanager
def _progress(what: str, quiet: bool) -> Iterator[Callable[[int, int, str], None]]:
    """Shows how far the bytes have come, on stderr where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
               TextColumn("[dim]{task.fields[tensor]}"))  # fmt: skip
    hidden = quiet or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task(what, total=None, tensor="")
        yield lambda done, total, name: bar.update(task, completed=done, total=total, tensor=name)
