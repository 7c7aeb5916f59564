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
from orchestrator.data.byte_pairs import BytePairTokenizer, is_json
from orchestrator.data.tokenizer import Tokenizer
from orchestrator.models.folder import (
    FIRST,
    MODEL,
    TOKENIZER,
    TOKENIZER_JSON,
    ModelFolder,
    open_model_folder,
    spec_keys,
    write_model_file,
)
from orchestrator.spec.file import BadInput

TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER_FILES = (
    TOKENIZER,
    TOKENIZER_JSON,
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
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
        carried = _carry(places, folder, TOKENIZER_FILES if layout == "huggingface" else TOKENIZER_FILES[:2])
        imported = {"layout": layout, "name": release.resolve().name, "dtype": _dtype(original), "stored": dtype}
        tokens = original.special_tokens or _special_tokens(folder, carried)  # Meta's files leave them to the tokenizer
        write_model_file(folder, source.config, tokens, imported)
    warnings = [*original.warnings, *_tokenizer_warnings(open_model_folder(output))]
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
            if carried and (TOKENIZER_CONFIG not in carried or TOKENIZER_JSON not in carried):
                carried = _describe_tokenizer(place, folder.config, carried)
        else:
            write_meta(place, source, shards, progress)
            carried = _carry([model], place, TOKENIZER_FILES[:2])
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
    if not (huggingface or meta) and any(release.glob("*.safetensors")):
        raise BadInput(f"{release} holds *.safetensors, but no {CONFIG}: it came with the weights, put it there")
    if not (huggingface or meta) and any((release / name).exists() for name in (MODEL, "experiment.yaml")):
        raise BadInput(f"{release} is hoofprint's own: generate, export and model.init_from take it as it is")
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
    """Copies the files of a tokenizer that there are; their names there."""
    carried: list[str] = []
    for name in names:
        found = next((place / name for place in places if (place / name).is_file()), None)
        if found is not None:
            # A run keeps any kind as tokenizer.model; others go by the name.
            kept = TOKENIZER_JSON if name == TOKENIZER and is_json(found.read_bytes()) else name
            shutil.copyfile(found, folder / kept)
            carried.append(kept)
    return carried


def _special_tokens(folder: Path, carried: Sequence[str]) -> dict[str, Any]:
    """Begin and ends of a text by the tokenizer there, for what is exported to those who look into config.json."""
    name = next((each for each in (TOKENIZER_JSON, TOKENIZER) if each in carried), None)
    try:
        tokenizer = None if name is None else Tokenizer.load(folder / name)
    except ValueError:  # the import says so
        tokenizer = None
    if tokenizer is None:
        return {}
    ends = sorted(tokenizer.end_ids)
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": ends[0] if len(ends) == 1 else ends}


def _tokenizer_warnings(folder: ModelFolder) -> list[str]:
    if folder.tokenizer is None:
        wanted = f"{TOKENIZER} or {TOKENIZER_JSON}"
        return [f"there was no tokenizer: generation and training need the model's {wanted} in {folder.path}"]
    try:
        pieces, rows = folder.load_tokenizer().vocab_size, folder.config.vocab_size
    except BadInput as error:
        return [f"{error}; the file is kept for export, and not usable here"]
    if pieces == rows:
        return []
    return [f"{folder.tokenizer} has {pieces} pieces, the model {rows} rows: the last {rows - pieces} have no text"]


def _describe_tokenizer(place: Path, config: LlamaConfig, carried: list[str]) -> list[str]:
    """Writes what transformers must know of our tokenizer.model to cut text as we do; the names of all its files."""
    try:
        tokenizer = Tokenizer.load(place / (TOKENIZER_JSON if TOKENIZER_JSON in carried else TOKENIZER))
    except ValueError:
        return carried  # the import has said that it is none
    said: dict[str, Any] = {"clean_up_tokenization_spaces": False, "model_max_length": config.sequence_length}
    if isinstance(tokenizer, BytePairTokenizer):
        (place / TOKENIZER_JSON).write_text(tokenizer.description, encoding="utf-8")
        (place / TOKENIZER).unlink(missing_ok=True)  # to transformers a file of this name is SentencePiece's
        names = {key: tokenizer.name_of(token) for key, token in (("bos", tokenizer.bos_id), ("eos", tokenizer.eos_id))}
        said |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    else:
        pieces = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
        names = {key: pieces.id_to_piece(getattr(tokenizer, f"{key}_id")) for key in ("bos", "eos", "unk")}
        said |= {
            "tokenizer_class": "LlamaTokenizer",
            "add_bos_token": True,
            "add_eos_token": False,
            "add_prefix_space": pieces.encode("a", out_type=str)[0].startswith("\u2581"),
            "legacy": False,
        }
    said |= {f"{key}_token": name for key, name in names.items()}
    if TOKENIZER_CONFIG not in carried:
        text = json.dumps(said, indent=2, ensure_ascii=False) + "\n"
        (place / TOKENIZER_CONFIG).write_text(text, encoding="utf-8")
    return [name for name in TOKENIZER_FILES if (place / name).exists()]


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
