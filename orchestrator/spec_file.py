"""Reads an experiment from YAML and, when it is wrong, shows every fault at once where it stands in the file."""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from orchestrator.spec import Experiment

Mark = tuple[int, int]  # line and column, from 0
Location = tuple[str, ...]  # a key and its parents


class BadInput(ValueError):
    """Something the user gave that cannot be used; the message says what to do. Exit code 2."""


@dataclass(frozen=True)
class _Source:
    path: Path
    text: str
    node: yaml.Node | None


NOTHING = "nothing was started"


def load_experiment(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """The checked experiment in `path`, with `--set a.b=c` overrides; BadInput lists every fault found."""
    source = _read(path)
    data = yaml.safe_load(source.text)
    overridden = [_apply(data, override) for override in overrides]
    faults = [_pointed(source, mark, message) for mark, message in _repeated_keys(source.node)]
    try:
        experiment = Experiment.model_validate(data)
    except ValidationError as error:
        faults += [_describe(source, overridden, dict(fault)) for fault in error.errors()]
    if faults:
        raise _all(faults)
    return experiment


def require_files(experiment: Experiment, path: Path) -> None:
    """BadInput that lists every file or folder that the spec in `path` names and that is not there."""
    source = _read(path)
    faults = []
    for location, missing in _missing(experiment):
        mark, found = _find(source.node, location)
        text = f"{'.'.join(map(str, location))}: no such file or folder: {missing}"
        text += "" if missing.is_absolute() else f" (seen from {Path.cwd()})"
        faults.append(_pointed(source, mark, text) if found else f"{path}: {text}")
    if faults:
        raise _all(faults)


def _missing(experiment: Experiment) -> list[tuple[tuple[Any, ...], Path]]:
    named: list[tuple[tuple[Any, ...], Path | None]] = [
        (("data", "sources", i, "path"), source.path) for i, source in enumerate(experiment.data.sources)
    ]
    named.append((("data", "tokenizer", "path"), experiment.data.tokenizer.path))
    named.append((("model", "init_from"), experiment.model.init_from))
    named.append((("energy", "grid_series"), experiment.energy.grid_series))
    return [(location, path) for location, path in named if path is not None and not path.exists()]


def dump_experiment(experiment: Experiment) -> str:
    """The resolved spec as YAML: what truly ran, every default spelt out."""
    return yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read(path: Path) -> _Source:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}; {NOTHING}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 text at byte {error.start}; {NOTHING}") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadInput(f"{path}: not valid YAML: {error}\n{NOTHING}") from error
    if not isinstance(data, dict):
        raise BadInput(f"{path}: expected keys such as spec_version, name, model\n{NOTHING}")
    return _Source(path, text, node)


def _apply(data: dict[str, Any], override: str) -> Location:
    """Sets the key of `override` in `data`; where that is."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise BadInput(f"--set {override}: expected key=value, for example --set training.tokens=4M")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadInput(f"--set {override}: {text!r} is not valid YAML; quote it if it is text") from error
    *parents, last = key.split(".")
    target: Any = data
    for parent in parents:
        if isinstance(target, list):
            if not parent.isdigit() or int(parent) >= len(target):
                raise BadInput(f"--set {override}: {parent} is not an entry of the list (0..{len(target) - 1})")
            target = target[int(parent)]
        elif isinstance(target, dict):
            if target.get(parent) is None:
                target[parent] = {}
            target = target[parent]
        else:
            raise BadInput(f"--set {override}: {parent} lies below a plain value")
    if isinstance(target, list) and last.isdigit() and int(last) < len(target):
        target[int(last)] = value
    elif isinstance(target, dict):
        target[last] = value
    else:
        raise BadInput(f"--set {override}: there is no place called {last}")
    return tuple(key.split("."))


def _repeated_keys(node: yaml.Node | None) -> Iterator[tuple[Mark, str]]:
    """YAML lets the second of two equal keys win without a word."""
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            name = str(key.value)
            if name in seen:
                yield (
                    (key.start_mark.line, key.start_mark.column),
                    f"{name}: the key stands already in line {seen[name]}; keep one of them",
                )
            seen.setdefault(name, key.start_mark.line + 1)
            yield from _repeated_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _repeated_keys(value)


def _all(faults: list[str]) -> BadInput:
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    return BadInput("\n\n".join(faults) + f"\n\n{count}; {NOTHING}")


def _pointed(source: _Source, mark: Mark, message: str) -> str:
    """The message with file, line and column, and the line with a caret under the place."""
    (line, column), lines = mark, source.text.splitlines()
    shown = lines[line] if line < len(lines) else ""
    return f"{source.path}:{line + 1}:{column + 1}: {message}\n    {shown}\n    {' ' * column}^"


def _describe(source: _Source, overridden: list[Location], fault: dict[str, Any]) -> str:
    location = tuple(fault["loc"])
    mark, found = _find(source.node, location)
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(location[-1]), _known_keys(location[:-1]), n=1)
        message = f"unknown key {location[-1]}" + (f"; did you mean {near[0]}?" if near else "")
    elif fault["type"] == "missing":
        message = f"the key {location[-1]} is missing"
    key = ".".join(str(part) for part in location)
    # A value from the command line has no place in the file, though its key may have one.
    named = tuple(str(part) for part in location)
    by_set = next((each for each in overridden if each == named[: len(each)]), None)
    if by_set is not None:
        return f"--set {'.'.join(by_set)}: " + (message if by_set == named else f"{key}: {message}")
    if not found and fault["type"] != "missing":
        return f"{source.path}: {key} (from --set or a default): {message}"
    return _pointed(source, mark, f"{key}: {message}")


def _find(node: yaml.Node | None, location: tuple[Any, ...]) -> tuple[Mark, bool]:
    """Where the key stands, or the nearest parent that does."""
    mark: Mark = (0, 0)
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
