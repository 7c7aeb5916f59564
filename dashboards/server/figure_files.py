"""Figures of a run as files, drawn when they are asked for: /run/NAME/figure/power.svg, or .png, or .pdf."""

from __future__ import annotations

import shlex
import threading
from collections.abc import Mapping

from dashboards.server.answers import plain_name
from dashboards.server.web import Response, text
from energy.runs import RunFolder

# By their names in the catalogue, which brings matplotlib along: the pages do without until a figure is asked for.
OF_A_RUN = ("power", "phases", "energy-spent", "carbon-spent", "loss", "rates", "gpu-heat", "places", "tornado", "fan")
FORMS = {"svg": "image/svg+xml", "png": "image/png", "pdf": "application/pdf"}
LARGEST_LEDGERS = 24_000_000  # bytes: a figure is of every reading, ten times as much in memory while it is drawn
DRAWING = threading.Lock()  # matplotlib draws for one at a time


def figure_file(folder: RunFolder, name: str, arguments: Mapping[str, str]) -> Response:
    """name: as power.svg; arguments: `x` of the loss. What a run lacks for a figure is said, and no figure drawn."""
    figure, _, form = name.rpartition(".")
    if figure not in OF_A_RUN or form not in FORMS:
        return text(404, f"there is no figure {name}; there are {', '.join(OF_A_RUN)}, each as {', '.join(FORMS)}")
    size = sum(path.stat().st_size for path in folder.energy_dir.glob("*"))
    if size > LARGEST_LEDGERS:
        command = f"hoofprint plot {shlex.quote(str(folder.path))} --figure {figure} -o {name}"
        return text(413, f"the run's readings are too many ({size / 1e6:,.0f} MB) to draw here; draw it by: {command}")
    from dashboards.figures import AXES, Missing, Source, make_figure

    x = arguments.get("x", AXES[0])
    if x not in AXES:
        return text(404, f"there is no axis {x}; there are {', '.join(AXES)}")
    try:
        drawing = make_figure(figure, Source(folder, x))
        with DRAWING:
            body = drawing.file(form)
    except Missing as error:
        return text(404, str(error))
    return Response(200, body, FORMS[form], f"{plain_name(folder.path.name)}-{figure}.{form}")
