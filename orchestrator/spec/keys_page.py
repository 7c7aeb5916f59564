"""Every key of a spec as a page for people: what it takes, what it is without it, what it means."""

import re
from collections.abc import Iterator
from typing import Any

from orchestrator.spec.experiment import Experiment

HEAD = """# Every key of a spec

Made by `hoofprint schema --markdown`: do not edit. A spec is one YAML file; an unknown key is an error, and all faults
of a file are told at once. `--set section.key=value` changes one key of it. Where units are named, a number may have
one of them; without, it is in tokens, W, s, g/kWh and so on, as its meaning says. For editors: `hoofprint schema`.
"""
_KINDS = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true, false",
    "object": "names and values",
}
_UNITS = re.compile(r"\\s\*\(([^()[]+)\)\?\\s\*\$$")  # at the end of a pattern of orchestrator.spec.quantities


def keys_page() -> str:
    """Markdown, one table for each section."""
    schema = Experiment.model_json_schema(mode="validation")
    parts = [HEAD, *_sections(schema, schema, "")]
    return "\n".join(parts)


def _sections(schema: dict[str, Any], section: dict[str, Any], place: str) -> Iterator[str]:
    """The table of a section, and then of those in it."""
    inner = {}
    yield f"## {f'`{place}`' if place else 'The file'}\n\n{_one_line(section['description'])}\n"
    yield "| key | takes | default | |\n|---|---|---|---|"
    for name, told in section["properties"].items():
        found = _section_in(schema, told)
        if found is not None:
            inner[f"{place}.{name}".lstrip(".") + ("[]" if told.get("type") == "array" else "")] = found
        takes = "a section" if found is not None and told.get("type") != "array" else _takes(told) or "text"
        default = "**required**" if name in section.get("required", ()) else _default(told)
        text = _one_line(told.get("description", "" if found is None else "see below"))
        yield f"| `{name}` | {takes} | {default} | {text} |"
    yield ""
    for where, found in inner.items():
        yield from _sections(schema, found, where)


def _section_in(schema: dict[str, Any], told: dict[str, Any]) -> dict[str, Any] | None:
    for part in (told, told.get("items", {}), *told.get("anyOf", ())):
        if "$ref" in part:
            found: dict[str, Any] = schema["$defs"][part["$ref"].rpartition("/")[2]]
            return found
    return None


def _takes(told: dict[str, Any]) -> str:
    """In words: the values, or the kind of value with its units."""
    parts = told.get("anyOf", [told])
    units = next((found[1] for part in parts if (found := _UNITS.search(part.get("pattern", "")))), None)
    kinds = [kind for part in parts if (kind := _kind(part))]
    return ", ".join(dict.fromkeys(kinds)) + (f" ({units.replace('|', ', ').replace(chr(92), '')})" if units else "")


def _kind(told: dict[str, Any]) -> str:
    if "anyOf" in told:
        return _takes(told)
    if "const" in told or "enum" in told:
        return ", ".join(f"`{value}`" for value in told.get("enum", [told.get("const")]) if value is not False)
    if "pattern" in told or told["type"] == "null":  # of numbers as text, of a name that the description explains
        return ""
    if told["type"] == "array":
        return f"a list of {len(told['prefixItems'])} numbers" if "prefixItems" in told else "a list of sections"
    return "path" if told.get("format") == "path" else _KINDS[told["type"]]


def _default(told: dict[str, Any]) -> str:
    value = told.get("default")
    if value is None or isinstance(value, dict):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
