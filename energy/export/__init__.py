"""Exports of one record: pure functions of footprint.json, one small file for each form that people must fill in.

    render(record, "huggingface") -> str

Numbers are rounded here and nowhere before. What the record does not know stays null, or is said to be not known, in
every form: never zero, and never a default of ours.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

Record = Mapping[str, Any]

TEXTS = {
    "huggingface": "huggingface",
    "csv": "ghg_csv",
    "sentence": "sentence",
    "latex": "latex",
}  # format -> module with `text(record) -> str`
DOCUMENTS = {"eu-form": "eu_form", "cyclonedx": "cyclonedx", "spdx": "spdx", "sci": "sci"}  # `document(record) -> dict`
FORMATS = (*TEXTS, *DOCUMENTS, "json")
OF_MODELS = ("eu-form", "cyclonedx", "spdx")  # they describe the model that a run trained


def render(record: Record, form: str) -> str:
    """A record in one of FORMATS, with a final newline.

    ValueError for a format that is not one of them, and for one of OF_MODELS of a command, which trained no model.
    """
    from importlib import import_module

    from energy.records.record import canonical
    from energy.runs import MEASURE

    if form in OF_MODELS and record["run"].get("purpose") == MEASURE:
        forms = ", ".join(name for name in FORMATS if name not in OF_MODELS)
        raise ValueError(f"{form} describes a trained model, and this run is a measured command; it has: {forms}")
    if form == "json":
        return canonical(dict(record))
    if form in TEXTS:
        text: Callable[[Record], str] = import_module(f"energy.export.{TEXTS[form]}").text
        return text(record)
    if form in DOCUMENTS:
        document: Callable[[Record], dict[str, Any]] = import_module(f"energy.export.{DOCUMENTS[form]}").document
        return json.dumps(document(record), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    raise ValueError(f"unknown format {form!r}; known: {', '.join(FORMATS)}")
