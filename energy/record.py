"""Writes the record of a run: footprint.json, sorted and replaced in one move, never half of it."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from energy.account import account_run
from energy.footprint import make_footprint
from energy.runs import RunFolder

FILE_NAME = "footprint.json"


def canonical(record: dict[str, Any]) -> str:
    """The record as text: sorted keys, full precision, no NaN, a final newline."""
    return json.dumps(record, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def ledger_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every ledger by file name: what the record was computed from."""
    ledgers = sorted((folder / "energy").glob("*.ledger"))
    return {ledger.name: hashlib.sha256(ledger.read_bytes()).hexdigest() for ledger in ledgers}


def replace_text(path: Path, text: str) -> None:
    """Writes `text` beside `path` and moves it there."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def write_record(run: RunFolder) -> dict[str, Any]:
    """Computes the footprint from the folder's files, writes footprint.json and returns it."""
    record = make_footprint(run.read_run(), account_run(run), run.steps(), run.evaluations())
    record["quality"]["ledger_sha256"] = ledger_hashes(Path(run.path))
    replace_text(Path(run.path) / FILE_NAME, canonical(record))
    return record
