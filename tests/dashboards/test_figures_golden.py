"""Every figure, byte for byte, as an SVG element (golden/*.svg, to be looked at) and as a file (its SHA-256).

After a change that is meant: `python tests/dashboards/test_figures_golden.py`, then look at each changed SVG.
"""

import hashlib
import json
import re
import sys
import tempfile
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

from figure_sample import copy_sample, declare  # noqa: E402

from dashboards.comparison import compare  # noqa: E402
from dashboards.figures import AXES, FIGURES, Drawing, Source, make_figure  # noqa: E402

GOLDEN = Path(__file__).with_name("golden")
HASHES = GOLDEN / "files.json"
NAMES = [*(name for name in FIGURES if name != "loss"), *(f"loss-{x}" for x in AXES)]


def drawing_of(name: str, folder: Path) -> Drawing:
    """The figure of a copy of the sample, made in an empty folder."""
    source = Source(declare(copy_sample(folder / "sample")))
    if name == "pareto":
        other = copy_sample(folder / "other", planned_tokens=5242880, status="stopped")
        metrics = other.metrics_file(0)
        rows = [json.loads(line) for line in metrics.read_text().splitlines()]
        for row in rows:
            if "validation_loss" in row:
                row["validation_loss"] -= 0.25
        metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return compare([source, Source(other)]).figure()
    kind, _, x = name.partition("-")
    if kind == "loss":
        source.x = x
        return make_figure("loss", source)
    return make_figure(name, source)


@pytest.mark.parametrize("name", NAMES)
def test_a_figure_is_the_one_that_was_looked_at(name: str, tmp_path: Path) -> None:
    drawing = drawing_of(name, tmp_path)
    assert drawing.inline() == (GOLDEN / f"{name}.svg").read_text(encoding="utf-8")
    assert hashlib.sha256(drawing.file("svg")).hexdigest() == json.loads(HASHES.read_text())[name]


def test_there_is_a_golden_figure_for_each_and_no_other() -> None:
    assert {path.stem for path in GOLDEN.glob("*.svg")} == set(NAMES) == set(json.loads(HASHES.read_text()))


def test_letters_are_in_the_page_s_ink_or_white_on_a_dark_cell() -> None:
    """Letters in orange or light blue are hard to read: what is named is told by a piece of it before its name."""
    for path in GOLDEN.glob("*.svg"):
        texts = re.findall(r"<text [^>]*>", path.read_text(encoding="utf-8"))
        colours = {found[1] for text in texts if (found := re.search(r"fill: ([^;\"]+)", text))}
        assert texts and colours <= {"currentColor", "#ffffff"}, path.name
        assert path.stem == "places" or "#ffffff" not in colours, path.name


def write() -> None:
    """The goldens of the code as it is."""
    GOLDEN.mkdir(exist_ok=True)
    hashes = {}
    for name in NAMES:
        with tempfile.TemporaryDirectory() as folder:
            drawing = drawing_of(name, Path(folder))
        (GOLDEN / f"{name}.svg").write_text(drawing.inline(), encoding="utf-8")
        hashes[name] = hashlib.sha256(drawing.file("svg")).hexdigest()
    HASHES.write_text(json.dumps(hashes, indent=1) + "\n")


if __name__ == "__main__":
    write()
