"""Reads an experiment from YAML and, when it is wrong, shows every fault at once where it stands in the file."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from orchestrator.spec import Experiment

Location = tuple[int, int]  # line and column, from 0


class BadInput(ValueError):
    """Something the user gave that cannot be used; the message says what to do. Exit code 2."""


def load_experiment(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """The checked experiment in `path`, with `--set a.b=c` overrides; BadInput lists every fault found."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read: {error}") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadInput(f"{path}: not valid YAML: {error}\nnothing was started") from error
    if not isinstance(data, dict):
        raise BadInput(f"{path}: expected keys such as spec_version, name, model\nnothing was started")
    for override in overrides:
        _apply(data, override)
    faults: list[str] = []
    try:
        experiment = Experiment.model_validate(data)
    except ValidationError as error:
        lines = text.splitlines()
        faults = [_describe(path, lines, node, dict(fault)) for fault in error.errors()]
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise BadInput("\n\n".join(faults) + f"\n\n{count}; nothing was started") from None
    return experiment


def missing_files(experiment: Experiment) -> list[str]:
    """One line for each file or folder that the spec names and that is not there."""
    named = [
        (f"data.sources[{i}].path", source.path) for i, source in enumerate(experiment.data.sources) if source.path
    ]
    if experiment.data.tokenizer.path:
        named.append(("data.tokenizer.path", experiment.data.tokenizer.path))
    return [f"{key}: no such file or folder: {path}" for key, path in named if not path.exists()]


def dump_experiment(experiment: Experiment) -> str:
    """The resolved spec as YAML: what truly ran, every default spelt out."""
    return yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _apply(data: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise BadInput(f"--set {override}: expected key=value, for example --set training.tokens=4M")
    *parents, last = key.split(".")
    target: Any = data
    for parent in parents:
        if isinstance(target, list):
            if not parent.isdigit() or int(parent) >= len(target):
                raise BadInput(f"--set {override}: {parent} is not an entry of the list (0..{len(target) - 1})")
            target = target[int(parent)]
        elif isinstance(target, dict):
            target = target.setdefault(parent, {})
        else:
            raise BadInput(f"--set {override}: {parent} lies below a plain value")
    if isinstance(target, list) and last.isdigit() and int(last) < len(target):
        target[int(last)] = yaml.safe_load(value)
    elif isinstance(target, dict):
        target[last] = yaml.safe_load(value)
    else:
        raise BadInput(f"--set {override}: there is no place called {last}")


def _describe(path: Path, lines: list[str], node: yaml.Node | None, fault: dict[str, Any]) -> str:
    location = tuple(fault["loc"])
    unknown = fault["type"] == "extra_forbidden"
    (line, column), found = _find(node, location)
    message = fault["msg"].removeprefix("Value error, ")
    if unknown:
        near = difflib.get_close_matches(str(location[-1]), _known_keys(location[:-1]), n=1)
        message = f"unknown key {location[-1]}" + (f"; did you mean {near[0]}?" if near else "")
    elif fault["type"] == "missing":
        message = f"the key {location[-1]} is missing"
    key = ".".join(str(part) for part in location)
    head = f"{path}:{line + 1}:{column + 1}: {key}: {message}"
    if not found and fault["type"] != "missing":
        return f"{path}: {key} (from --set or a default): {message}"
    return f"{head}\n    {lines[line] if line < len(lines) else ''}\n    {' ' * column}^"


def _find(node: yaml.Node | None, location: tuple[Any, ...]) -> tuple[Location, bool]:
    """Where the key stands, or the nearest parent that does."""
    mark: Location = (0, 0)
    for part in location:
        child: yaml.Node | None = None
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(part):
                    mark, child = (key.start_mark.line, key.start_mark.column), value
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            child = node.value[part]
            mark = (child.start_mark.line, child.start_mark.column)
        if child is None:
            return mark, False
        node = child
    return mark, True


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    model: Any = Experiment
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        candidates = [
            annotation,
            *get_args(annotation),
            *[b for a in get_args(annotation) for b in get_args(a)],
        ]
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if model is None:
            return []
    return list(model.model_fields)
