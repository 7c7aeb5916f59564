"""Import of released weights into a folder that runs and generation start from, and export of a model again.

Nothing half-written is left: a folder is written beside its final name and renamed when it is whole.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import sentencepiece

from model.config import LlamaConfig
from model.weights.dcp import CheckpointWeights, write_checkpoint
from model.weights.hf_config import CONFIG
from model.weights.huggingface import HuggingFaceFolder, write_huggingface
from model.weights.meta import PATTERN, MetaFolder, write_meta
from model.weights.meta_config import PARAMS
from model.weights.names import Layout
from model.weights.tensors import Progress, WeightSource, as_dtype, main_dtype, rounds, total_bytes
from orchestrator.models.folder import FIRST, TOKENIZER, open_model_folder, spec_keys, write_model_file
from orchestrator.spec.file import BadInput

TOKENIZER_FILES = (
    TOKENIZER,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
GB = 1e9


class _Release(WeightSource, Protocol):
    """Weights as somebody released them."""

    @property
    def special_tokens(self) -> dict[str, Any]: ...

    @property
    def warnings(self) -> Sequence[str]: ...


def import_weights(
    release: Path,
    output: Path,
    dtype: str,
    sequence_length: int | None,
    rope_scaling_factor: float | None,
    progress: Progress,
) -> dict[str, Any]:
    """Writes the model of `release` into the new folder `output`; what it is (see `_result`).

    dtype: a key of DTYPES. sequence_length and rope_scaling_factor: for Meta's layout, whose files do not say them.
    ValueError where the release is broken or not LLaMA; BadInput where `output` cannot be written.
    """
    layout = layout_of(release)
    original: _Release
    if layout == "huggingface":
        if sequence_length is not None or rope_scaling_factor is not None:
            raise BadInput(
                f"{release / CONFIG} says both itself: leave --sequence-length and --rope-scaling-factor out"
            )
        original = HuggingFaceFolder(release)
    else:
        original = MetaFolder(release, sequence_length, rope_scaling_factor)
    source = as_dtype(original, dtype)
    with written_beside(output, total_bytes(source.tensors)) as folder:
        (folder / FIRST).mkdir(parents=True)
        write_checkpoint(folder / FIRST, source, progress)
        # Meta puts one tokenizer beside the folders of all sizes.
        places = [release] if layout == "huggingface" else [release, release.resolve().parent]
        carried = _carry(places, folder, TOKENIZER_FILES if layout == "huggingface" else (TOKENIZER,))
        imported = {"layout": layout, "name": release.resolve().name, "dtype": _dtype(original), "stored": dtype}
        write_model_file(folder, source.config, original.special_tokens, imported)
    warnings = [*original.warnings, *_tokenizer_warnings(output / TOKENIZER)]
    return _result(output, layout, source, rounds(original, dtype), carried, warnings)


def export_weights(
    model: Path, output: Path, layout: Layout, dtype: str, shards: int, max_file_bytes: int, progress: Progress
) -> dict[str, Any]:
    """Writes the newest checkpoint of a run, or imported weights, into the new folder `output` in `layout`.

    shards: files of Meta's layout. max_file_bytes: of tensors in one file of Hugging Face's.
    """
    folder = open_model_folder(model)
    original = CheckpointWeights(folder.checkpoint, folder.config)
    source = as_dtype(original, dtype)
    with written_beside(output, total_bytes(source.tensors)) as place:
        if layout == "huggingface":
            write_huggingface(place, source, folder.special_tokens, max_file_bytes, progress)
            carried = _carry([model], place, TOKENIZER_FILES)
            if carried == [TOKENIZER]:
                carried += _describe_tokenizer(place, folder.config)
        else:
            write_meta(place, source, shards, progress)
            carried = _carry([model], place, (TOKENIZER,))
    return _result(output, layout, source, rounds(original, dtype), carried, []) | {
        "checkpoint": folder.checkpoint.name
    }


def layout_of(release: Path) -> Layout:
    """Whose layout a folder has; BadInput where it is nobody's, or both."""
    if not release.is_dir():
        raise BadInput(f"{release} is not a folder: give the one that holds the weights with {CONFIG} or {PARAMS}")
    huggingface, meta = (release / CONFIG).is_file(), any(release.glob(PATTERN))
    if huggingface and meta:
        raise BadInput(f"{release} holds {CONFIG} and {PATTERN}: put one of them into a folder of its own")
    if meta and not (release / PARAMS).is_file():
        raise BadInput(f"{release} holds {PATTERN}, but no {PARAMS}: it came with the weights, put it there")
    if not (huggingface or meta):
        raise BadInput(
            f"{release} holds no weights that are known here: expected {CONFIG} and *.safetensors (Hugging Face), or "
            f"{PARAMS} and {PATTERN} (Meta)"
        )
    return "huggingface" if huggingface else "meta"


@contextmanager
def written_beside(output: Path, needed_bytes: int) -> Iterator[Path]:
    """A folder to write into, renamed to `output` when the block is done and removed when it fails.

    BadInput where `output` holds something already, or the disk has not that much room.
    """
    output = output.absolute()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise BadInput(f"{output} exists: give another folder, or remove it")
    partial = output.parent / f".{output.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # of an import that was killed
    partial.mkdir(parents=True)
    try:
        free = shutil.disk_usage(partial).free
        if needed_bytes > free:
            raise BadInput(f"{output}: {needed_bytes / GB:.1f} GB are needed there, {free / GB:.1f} GB are free")
        yield partial
        if output.exists():
            output.rmdir()
        partial.rename(output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _carry(places: Sequence[Path], folder: Path, names: Sequence[str]) -> list[str]:
    """Copies the files of a tokenizer that there are; their names."""
    carried = []
    for name in names:
        found = next((place / name for place in places if (place / name).is_file()), None)
        if found is not None:
            shutil.copyfile(found, folder / name)
            carried.append(name)
    return carried


def _tokenizer_warnings(path: Path) -> list[str]:
    if not path.exists():
        return [f"there was no {TOKENIZER}: generation and training need the model's SentencePiece file in {path}"]
    try:
        sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
    except RuntimeError:
        return [f"{path} is not a SentencePiece file (Llama 3 has another kind): kept for export, not usable here"]
    return []


def _describe_tokenizer(folder: Path, config: LlamaConfig) -> list[str]:
    """Writes what transformers must know of our tokenizer.model to cut text as we do."""
    pieces = sentencepiece.SentencePieceProcessor(model_proto=(folder / TOKENIZER).read_bytes())
    said = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "add_prefix_space": pieces.encode("a", out_type=str)[0].startswith("\u2581"),
        "clean_up_tokenization_spaces": False,
        "legacy": False,
        "model_max_length": config.sequence_length,
        "bos_token": pieces.id_to_piece(pieces.bos_id()),
        "eos_token": pieces.id_to_piece(pieces.eos_id()),
        "unk_token": pieces.id_to_piece(pieces.unk_id()),
    }
    name = "tokenizer_config.json"
    (folder / name).write_text(json.dumps(said, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return [name]


def _dtype(source: WeightSource) -> str:
    return str(main_dtype(source.tensors)).removeprefix("torch.")


def _result(
    output: Path,
    layout: Layout,
    source: WeightSource,
    rounded: bool,
    carried: Sequence[str],
    warnings: Sequence[str],
) -> dict[str, Any]:
    """What was written. `rounded`: the dtype that was asked for has fewer digits than the weights had."""
    return {
        "path": str(output),
        "format": layout,
        "params": source.config.params,
        "tensors": len(source.tensors),
        "bytes": total_bytes(source.tensors),
        "dtype": _dtype(source),
        "rounded": rounded,
        "model": spec_keys(source.config),
        "tokenizer": list(carried),
        "warnings": list(warnings),
    }
