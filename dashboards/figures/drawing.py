"""What all figures share: the style, the forms in which one is given, scales, labels that do not touch."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.offsetbox import AnnotationBbox, DrawingArea
from matplotlib.patches import Rectangle

STYLE = Path(__file__).parents[1] / "style.mplstyle"
INK = "#101418"
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
LINES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2)), (0, (3, 1)), (0, (2, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
HATCH = "////"  # modelled, assumed or not attributed: never a plain colour
PIECE = (14.0, 8.0)  # points: of what a label names, before the label
MOST_POINTS = 1500  # of a line: more cannot be seen in print and makes an SVG of megabytes
FORMATS = ("svg", "png", "pdf")
PNG_DPI = 200
Look = Mapping[str, Any]  # how something is drawn, in matplotlib's words
# No clock and no version in a file: the same input gives the same bytes.
_NO_TRACE: dict[str, dict[str, Any]] = {
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


class Missing(ValueError):
    """The run lacks what a figure is drawn from; the message says what that is."""


@lru_cache(maxsize=1)
def _style() -> Any:
    return matplotlib.rc_params_from_file(STYLE, use_default_template=True)


@dataclass(frozen=True)
class Drawing:
    """A figure that can be given in several forms: what it is called, what it says in words, and how it is drawn."""

    name: str
    description: str
    draw: Callable[[Figure], None]

    def inline(self) -> str:
        """An SVG element fit for a page: ids of its own, a description, text in the page's own colour."""
        with matplotlib.rc_context(_style()):
            svg = self._rendered("svg").decode("utf-8")
        svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
        svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
        svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{self.name}-", svg)
        svg = svg.replace("<svg ", f'<svg role="img" aria-labelledby="{self.name}-description" ', 1)
        head = svg.index(">", svg.index("<svg")) + 1
        title = f'\n <title id="{self.name}-description">{escape(self.description)}</title>'
        return f"{svg[:head]}{title}{svg[head:]}"

    def file(self, form: str) -> bytes:
        """A file of its own, on white, with its letters inside it; form: one of FORMATS."""
        # Letters as outlines in SVG and as embedded TrueType in PDF: it looks the same where DejaVu is not installed.
        own = {"svg.fonttype": "path", "pdf.fonttype": 42, "savefig.transparent": False, "savefig.facecolor": "white"}
        with matplotlib.rc_context(dict(_style()) | own):
            return self._rendered(form, Title=self.description)

    def _rendered(self, form: str, **told: str) -> bytes:
        figure = Figure()
        self.draw(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format=form, dpi=PNG_DPI, metadata={**_NO_TRACE[form], **told})
        return buffer.getvalue()


def say_nothing(axes: Axes, text: str) -> None:
    """In the place of a figure of a report for which there is nothing to draw."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes)


def time_scale(seconds: float) -> tuple[float, str]:
    """(seconds in one unit, unit) that suits a length of time."""
    return next(((f, u) for f, u in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")) if seconds >= 3 * f), (1.0, "s"))


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """Positions of labels, in rising order, moved upwards where they would touch."""
    placed: list[float] = []
    for position in positions:
        placed.append(position if not placed else max(position, placed[-1] + gap))
    return placed


def _piece(look: Look) -> DrawingArea:
    width, height = PIECE
    area = DrawingArea(width, height)
    if "color" in look:
        area.add_artist(Line2D([0, width], [height / 2] * 2, **look))
        return area
    area.add_artist(Rectangle((0, 0), width, height, facecolor=look["facecolor"], linewidth=0))
    if "hatch" in look:  # apart, because SVG viewers give a pattern's ground the pattern's own opacity
        area.add_artist(Rectangle((0, 0), width, height, **{**look, "facecolor": "none"}))
    return area


def label_right(axes: Axes, ends: Sequence[tuple[float, str, Look]], gap: float = 0.075) -> None:
    """Names (y, text, look) at the right of the axes, level with what they name; gap: as a share of the height.

    Before each name stands a piece of what it names: of a line where its look has a `color`, of an area where it has a
    `facecolor`; so that it is found in grey too, and the letters need not be in colours that are hard to read.
    """
    low, high = axes.get_ylim()
    ordered = sorted(ends, key=lambda end: end[:2])
    at: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "annotation_clip": False}
    for y, (_, text, look) in zip(spread([y for y, *_ in ordered], gap * (high - low)), ordered, strict=True):
        if look:
            axes.add_artist(AnnotationBbox(_piece(look), (1, y), xybox=(6, 0), boxcoords="offset points",
                                           box_alignment=(0, 0.5), frameon=False, pad=0, **at))  # fmt: skip
        left = 10 + PIECE[0] if look else 6
        axes.annotate(text, (1, y), xytext=(left, 0), textcoords="offset points", va="center", **at)


def thin(x: np.ndarray, y: np.ndarray, most: int = MOST_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """A line of at most about `most` points: the lowest and the highest of each stretch stay, so no spike is lost."""
    if len(x) <= most:
        return x, y
    stretches = np.array_split(np.arange(len(x)), most // 2)
    kept: set[int] = {0, len(x) - 1}
    for stretch in stretches:
        values = y[stretch]
        if np.isfinite(values).any():
            kept |= {int(stretch[np.nanargmin(values)]), int(stretch[np.nanargmax(values)])}
    at = np.array(sorted(kept))
    return x[at], y[at]
