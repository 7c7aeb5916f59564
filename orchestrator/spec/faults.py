"""How a fault of a spec is told: in words, with what is near, and the place in the file with a caret under it."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from orchestrator.spec.experiment import Experiment
from orchestrator.spec.section import Location, section_in

Mark = tuple[int, int]  # line and column, from 0

SHOWN = 160  # characters of a line, where it is longer round the caret
_MEANT = {"gpu": "cuda", "bf16": "bfloat16", "fp32": "float32", "fp8": "float8"}  # other names of values
_QUOTED = re.compile(r"'([^']*)'")
_KINDS = {
    "string_type": "text",
    "path_type": "a path",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "too_short": "at least one entry",
}


@dataclass(frozen=True)
class Source:
    """A spec as it stands in its file."""

    path: Path
    text: str
    node: yaml.Node | None

    def pointed(self, mark: Mark, message: str) -> str:
        """The message with file, line and column, and the line with a caret under the place."""
        return pointed(self.path, self.text, mark, message)

    def find(self, location: Location) -> tuple[Mark, bool]:
        """Where the key stands, or the nearest parent that does."""
        mark: Mark = (0, 0)
        node = self.node
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


def pointed(path: Path, text: str, mark: Mark, message: str) -> str:
    (line, column), lines = mark, text.splitlines()
    shown = lines[line] if line < len(lines) else ""
    first = max(0, column - SHOWN // 2) if len(shown) > SHOWN else 0
    part = shown[first : first + SHOWN]
    return f"{path}:{line + 1}:{column + 1}: {message}\n    {part}\n    {' ' * (column - first)}^"


def placed(source: Source, overridden: Mapping[Location, str], location: Location, message: str, absent: bool) -> str:
    """The message where the key stands: in the file, or on the command line, whose values have no place in the file.

    absent: that the key is not there is the fault; it is then told of its section.
    """
    key = ".".join(map(str, location))
    named = tuple(map(str, location))
    by_set = next((each for each in overridden if each == named[: len(each)]), None)
    if by_set is not None:
        return f"--set {overridden[by_set]}: " + (message if by_set == named else f"{key}: {message}")
    mark, found = source.find(location)
    if not found and not absent:
        return f"{source.path}: {key} (from --set or a default): {message}"
    return source.pointed(mark, f"{key}: {message}" if key else message)


def in_words(fault: Mapping[str, Any]) -> str:
    """What pydantic says of a key, in words that need no knowledge of it, with the name that was probably meant."""
    kind, location, given = fault["type"], tuple(fault["loc"]), fault.get("input")
    message: str = fault["msg"].removeprefix("Value error, ")
    context = fault.get("ctx") or {}
    if kind == "extra_forbidden":
        if location == ("cluster", "nodes"):
            return "unknown key nodes: write workers, nodes x gpus_per_node (--set and --sweep know cluster.nodes)"
        near = difflib.get_close_matches(str(location[-1]), _known_keys(location[:-1]), n=1)
        return f"unknown key {location[-1]}" + (f"; did you mean {near[0]}?" if near else "")
    if kind == "missing":
        if isinstance(location[-1], int):
            return f"the list is too short: entry {location[-1] + 1} is missing"
        return f"the key {location[-1]} is missing"
    if kind == "too_long":
        return f"expected at most {context['max_length']} entries, got {given!r}"
    if kind == "literal_error":
        names = _QUOTED.findall(str(context["expected"]))
        meant = _MEANT.get(str(given).lower())
        near = [meant] if meant is not None and meant in names else difflib.get_close_matches(str(given), names, n=1)
        return f"expected {context['expected']}, got {given!r}" + (f"; did you mean {near[0]}?" if near else "")
    if kind == "string_pattern_mismatch":
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", str(given)).lstrip("._-")
        return (
            "expected a name of letters, digits, dots, dashes and underscores that begins with a letter or a digit, "
            f"got {given!r}" + (f"; write {plain}?" if plain else "")
        )
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        keys = _known_keys(location)
        return f"expected keys{' such as ' if keys else ''}{', '.join(keys[:3])}, got {given!r}"
    if kind in _KINDS:
        hint = ""
        if isinstance(given, bool):
            hint = ": YAML reads no, yes, on and off as true or false; quote what is text"
        elif kind == "string_type" and isinstance(given, int | float):
            hint = f": quote it, '{given}'"
        return f"expected {_KINDS[kind]}, got {given!r}{hint}"
    if message.startswith("Input should be "):
        return f"expected a number {message.removeprefix('Input should be ')}, got {given!r}"
    return message


def _known_keys(location: Location) -> list[str]:
    section: Any = Experiment
    for part in location:
        if isinstance(part, int):
            continue
        section = section_in(section.model_fields[part].annotation) if part in section.model_fields else None
        if section is None:
            return []
    return list(section.model_fields)
