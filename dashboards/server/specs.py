"""The experiments of a folder for the plan page, and what of a typed spec is not taken."""

from __future__ import annotations

import os
import re
from pathlib import Path

import yaml

ENDINGS = (".yaml", ".yml")
LARGEST_SPEC = 32_000  # bytes; of a real one 3,000
MOST_FILES, MOST_LOOKED_AT, DEEPEST = 200, 5_000, 2
DEEPEST_YAML = 40
_IS_SPEC = re.compile(rb"^spec_version\s*:", re.MULTILINE)


class Specs:
    """The experiments under a folder. Paths only come from listing it: no name from outside reaches the disk."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def listed(self) -> tuple[dict[str, Path], str]:
        """({name below the folder: path} of every YAML file with a spec_version, what keeps others from being seen)."""
        found: dict[str, Path] = {}
        try:
            places = self._walk(self.directory, 0, [MOST_LOOKED_AT])
        except OSError as error:
            return {}, f"{self.directory}: {error.strerror or error}"
        root = self.directory.resolve()
        for path in places:
            try:
                if not path.resolve().is_relative_to(root) or path.stat().st_size > LARGEST_SPEC:
                    continue
                if _IS_SPEC.search(path.read_bytes()):
                    found[path.relative_to(self.directory).as_posix()] = path
            except OSError:
                continue  # deleted since, or not ours to read: it cannot be chosen
        more = len(found) - MOST_FILES
        names = sorted(found)[:MOST_FILES]
        return {name: found[name] for name in names}, f"{more} more experiments are not listed" if more > 0 else ""

    def _walk(self, folder: Path, depth: int, left: list[int]) -> list[Path]:
        found: list[Path] = []
        with os.scandir(folder) as entries:
            for entry in entries:
                left[0] -= 1
                if left[0] < 0:
                    break
                if entry.is_dir(follow_symlinks=False) and depth < DEEPEST and not entry.name.startswith("."):
                    try:
                        found += self._walk(folder / entry.name, depth + 1, left)
                    except OSError:
                        continue  # not ours to read
                elif entry.name.endswith(ENDINGS) and entry.is_file():
                    found.append(folder / entry.name)
        return found


def tangled(text: str) -> str:
    """Why a typed YAML is not taken, in words; "" where it is. A few bytes of aliases can stand for gigabytes."""
    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            line = 0 if event.start_mark is None else event.start_mark.line + 1
            if isinstance(event, yaml.AliasEvent):
                return f"line {line}: aliases (*{event.anchor}) are not taken here: write out what they stand for"
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST_YAML:
                return f"line {line}: nested deeper than {DEEPEST_YAML} levels, as no spec is"
    except yaml.YAMLError:
        return ""  # what is wrong with it is told with its line and a caret
    return ""
