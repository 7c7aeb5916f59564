"""Files of settings that came with weights: JSON objects in which each key has one kind of value."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Kind:
    """What the values of a key are: in words, for many, and whether one is."""

    words: str
    holds: Callable[[Any], bool]


def _is_whole(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


WHOLE = Kind("positive whole numbers", _is_whole)
POSITIVE = Kind("positive numbers", _is_positive)
SWITCH = Kind("true or false", lambda value: type(value) is bool)
WORD = Kind("text", lambda value: type(value) is str)
WORDS = Kind("lists of names", lambda value: type(value) is list and all(type(each) is str for each in value))
OBJECT = Kind("objects", lambda value: type(value) is dict)
TOKENS = Kind(
    "a token's number, or a list of them",
    lambda value: all(type(each) is int for each in (value if type(value) is list else [value])),
)


def or_null(kind: Kind) -> Kind:
    """The same, or null, which says as much as a key that is not there."""
    return Kind(f"{kind.words}, or null", lambda value: value is None or kind.holds(value))


def read_object(path: Path, example: str) -> dict[str, Any]:
    """The object in a JSON file. ValueError, with the file, where there is none; `example`: some keys that it has."""
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected an object with {example}")
    return found


def require_kinds(path: Path, found: Mapping[str, Any], kinds: Mapping[str, Kind]) -> None:
    """ValueError, with the file and all that is odd in it, where a value is of another kind than its key's."""
    if odd := odd_values(found, kinds):
        raise ValueError(f"{path}: {'; '.join(odd)}")


def odd_values(found: Mapping[str, Any], kinds: Mapping[str, Kind]) -> list[str]:
    """A line for each kind of which there are values that are of another, naming them all."""
    odd: dict[str, list[str]] = {}
    for key, kind in kinds.items():
        if key in found and not kind.holds(found[key]):
            odd.setdefault(kind.words, []).append(f"{key} is {json.dumps(found[key])}")
    return [f"{', '.join(each)}: expected {words}" for words, each in odd.items()]
