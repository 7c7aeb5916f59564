"""A folder in Hugging Face's layout: config.json and one or many safetensors files with an index."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from model.weights.hf_config import CONFIG, read_config, read_ends, write_config
from model.weights.names import IGNORED, theirs
from model.weights.safetensors_file import SafetensorsFile, write_safetensors
from model.weights.tensors import (
    Progress,
    TensorInfo,
    WeightSource,
    counted,
    main_dtype,
    model_shapes,
    require_shapes,
    total_bytes,
)

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
OUTPUT, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


class HuggingFaceFolder:
    """The weights of a LlamaForCausalLM. ValueError where files are broken or the model is not LLaMA."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, tokens, self.warnings = read_config(path / CONFIG)
        self.special_tokens = tokens | read_ends(path)
        self._files = self._open()
        found = {name: file.tensors[name] for name, file in self._files.items()}
        expected = {theirs(name, "huggingface"): (name, shape) for name, shape in model_shapes(self.config).items()}
        extra = found.keys() - expected.keys()
        tied_twice = self.config.tie_embeddings and OUTPUT in extra
        require_shapes(
            path,
            {name: shape for name, (_, shape) in expected.items()},
            {name: info.shape for name, info in found.items()},
            sorted(name for name in extra if not IGNORED.fullmatch(name) and not (tied_twice and name == OUTPUT)),
        )
        if tied_twice and not torch.equal(self._files[OUTPUT].read(OUTPUT), self._files[EMBEDDING].read(EMBEDDING)):
            raise ValueError(f"{path}: tie_word_embeddings is true, but {OUTPUT} is not {EMBEDDING}")
        self._theirs = {ours: name for name, (ours, _) in expected.items()}
        self.tensors: Mapping[str, TensorInfo] = {ours: found[name] for ours, name in self._theirs.items()}

    def read(self, name: str) -> torch.Tensor:
        file_name = self._theirs[name]
        return self._files[file_name].read(file_name)

    def _open(self) -> dict[str, SafetensorsFile]:
        """The file of each tensor."""
        index = self.path / INDEX
        listed = self._index(index) if index.exists() else None
        if listed is None:
            names = sorted(file.name for file in self.path.glob("*.safetensors"))
            if len(names) > 1:
                raise ValueError(f"{self.path}: {len(names)} safetensors files, but no {INDEX} that says which belong")
            if not names:
                raise ValueError(f"{self.path}: {_no_weights(self.path)}")
        else:
            names = sorted(set(listed.values()))
        gone = [name for name in names if not (self.path / name).is_file()]
        if gone:
            raise ValueError(f"{index}: no such file in the folder: {', '.join(gone)}")
        files: dict[str, SafetensorsFile] = {}
        for name in names:
            file = SafetensorsFile(self.path / name)
            twice = sorted(files.keys() & file.tensors.keys())
            if twice:
                raise ValueError(f"{file.path}: these tensors stand in {files[twice[0]].path} too: {', '.join(twice)}")
            files |= dict.fromkeys(file.tensors, file)
        lost = sorted(tensor for tensor, name in (listed or {}).items() if tensor not in files)
        if lost:
            raise ValueError(f"{index}: these tensors are in none of the files: {', '.join(lost)}")
        return files

    @staticmethod
    def _index(path: Path) -> dict[str, str]:
        try:
            found: Any = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
            names = {str(tensor): str(name) for tensor, name in found.items()}
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: expected an object with weight_map ({error})") from error
        odd = [name for name in names.values() if Path(name).name != name or not name.endswith(".safetensors")]
        if odd:
            raise ValueError(f"{path}: {odd[0]!r} is not the name of a safetensors file in this folder")
        return names


def _no_weights(path: Path) -> str:
    if any(path.glob("*.bin")):
        return "its weights are .bin files; save them as safetensors with transformers and import that"
    if any(path.glob("*.gguf")):
        return "its weights are GGUF files, which are quantised; import the safetensors they were made of"
    return "there is no safetensors file"


def write_huggingface(
    folder: Path, source: WeightSource, special_tokens: Mapping[str, Any], max_file_bytes: int, progress: Progress
) -> None:
    """Write config and weights into an empty folder. A file has at most `max_file_bytes` of tensors, or one tensor."""
    ours = {theirs(name, "huggingface"): name for name in source.tensors}
    infos = {name: source.tensors[our] for name, our in ours.items()}
    parts = _split(infos, max_file_bytes)
    read = counted(lambda name: source.read(ours[name]), infos, progress)
    if len(parts) == 1:
        write_safetensors(folder / SINGLE, parts[0], read, {"format": "pt"})
    else:
        names = [f"model-{number + 1:05d}-of-{len(parts):05d}.safetensors" for number in range(len(parts))]
        for name, part in zip(names, parts, strict=True):
            write_safetensors(folder / name, part, read, {"format": "pt"})
        weight_map = {tensor: name for name, part in zip(names, parts, strict=True) for tensor in part}
        index = {"metadata": {"total_size": total_bytes(infos)}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    write_config(folder, source.config, main_dtype(infos), special_tokens)


def _split(infos: Mapping[str, TensorInfo], max_bytes: int) -> list[dict[str, TensorInfo]]:
    parts: list[dict[str, TensorInfo]] = [{}]
    size = 0
    for name, info in infos.items():
        if parts[-1] and size + info.nbytes > max_bytes:
            parts.append({})
            size = 0
        parts[-1][name] = info
        size += info.nbytes
    return parts
