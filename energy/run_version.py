"""Whether this hoofprint knows what lies in a run folder, asked before anything of it is believed or changed."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from energy.ledger.frames import SCHEMA as LEDGER_SCHEMA
from energy.ledger.frames import first_schema
from energy.schemas import FAMILY, RECORD_VERSION

SPEC_VERSION = 1  # of experiment.yaml: what `spec_version` says there
CHECKPOINT_SCHEMA = "hoofprint/checkpoint/1"  # of a checkpoint's manifest.json
MODEL_SCHEMA = "hoofprint/model/1"  # of model.json, where imported weights have one


def require_known(path: str | os.PathLike[str], documents: Mapping[str, Any] | None = None) -> None:
    """ValueError for a run folder of which a newer hoofprint wrote some file: it may mean what this one does not know.

    Looked at are run.json (the version of hoofprint that wrote it), footprint.json, model.json, each ledger's first
    frame, the newest checkpoint's manifest and experiment.yaml. What is not there, or cannot be read, is for its reader
    to complain about. documents: what the caller has read of the folder's JSON files already, by name; None of one that
    is not there or is no JSON.
    """
    folder = Path(path)
    for what, wrote in _newer(folder, documents or {}):
        take = f"hoofprint {wrote} or a later one (pip install 'hoofprint>={wrote}')" if wrote else "a later one"
        mine = program_version() or "not installed"
        raise ValueError(
            f"{folder} was written by a newer version of hoofprint: {what}; this is {mine}: "
            f"take {take}; nothing was changed"
        )


def _newer(folder: Path, read: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    """(what is newer than what is known here, the version of hoofprint that wrote it where that is told)."""
    versions, mine = _told(folder / "run.json", "versions", read), program_version()
    wrote = versions.get("hoofprint") if isinstance(versions, dict) else None
    # The first two numbers of a version change when what lies in a run folder does.
    if isinstance(wrote, str) and mine and _release(wrote) > _release(mine):
        yield f"run.json is of hoofprint {wrote}", wrote
    documents = ((folder / "footprint.json", f"{FAMILY}{RECORD_VERSION}"), (folder / "model.json", MODEL_SCHEMA))
    ledgers = sorted(folder.glob("energy/*.ledger"))
    found = [(file, _told(file, "schema", read), known) for file, known in documents]
    found += [(ledger, first_schema(ledger), LEDGER_SCHEMA) for ledger in ledgers]
    for manifest in sorted(folder.glob("checkpoints/step-*/manifest.json"))[-1:]:
        found.append((manifest, _told(manifest, "schema"), CHECKPOINT_SCHEMA))
    for file, schema, known in found:
        if _number(schema, known) > _number(known, known):
            yield f"{file.relative_to(folder)} has the schema {schema}, and {known} is known", None
    spec = re.search(rb"^spec_version: *([0-9]+)", _bytes(folder / "experiment.yaml"), re.MULTILINE)
    if spec is not None and int(spec[1]) > SPEC_VERSION:
        yield f"experiment.yaml has the spec_version {int(spec[1])}, and {SPEC_VERSION} is known", None


def _told(file: Path, key: str, read: Mapping[str, Any] | None = None) -> Any:
    """The value of a key in a JSON file; None where there is none, or no such file. read: see `require_known`."""
    try:
        document = read[file.name] if read is not None and file.name in read else json.loads(_bytes(file))
    except ValueError:
        return None
    return document.get(key) if isinstance(document, dict) else None


def _bytes(file: Path) -> bytes:
    return file.read_bytes() if file.exists() else b""


def _number(schema: Any, known: str) -> int:
    """N of a schema `family/N`; 0 of anything else, which is not newer but wrong, or from before there were schemas."""
    family, _, number = str(schema).rpartition("/")
    return int(number) if family == known.rpartition("/")[0] and number.isdecimal() else 0


@cache
def program_version() -> str | None:
    """The version of hoofprint that runs; None where it is not installed: then its formats alone tell."""
    try:
        return importlib.metadata.version("hoofprint")
    except importlib.metadata.PackageNotFoundError:
        return None


def _release(version: str) -> tuple[int, ...]:
    """The first two numbers of a version; () of one that has none, which is older than any."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return tuple(map(int, numbers.groups())) if numbers else ()
