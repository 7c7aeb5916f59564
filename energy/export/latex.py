"""The same sentence as LaTeX: escaped, with thin spaces between number and unit, and nothing that needs a package."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from energy.export import sentence

ESCAPES = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "µ": r"$\mu$", "₂": r"$_2$", "–": "--", "…": r"\ldots{}",
}  # fmt: skip
UNIT = r"(?:[mµkMG]?J|[mk]?g|t|[kM]?Wh|g/kWh|\\%|device-hours|h|d)"


def escape(text: str) -> str:
    """Text that LaTeX prints as it stands."""
    return "".join(ESCAPES.get(letter, letter) for letter in text)


def text(record: Mapping[str, Any]) -> str:
    """A LaTeX sentence or two, with a final newline."""
    said = escape(sentence.text(record))
    said = re.sub(r"(\d)e(-?\d+)\b", r"$\1\\times10^{\2}$", said)
    said = re.sub(r"(\d+) x ", r"\1~$\\times$~", said)
    return re.sub(rf"(\d) (?={UNIT}(?![A-Za-z]))", r"\1\\,", said)
